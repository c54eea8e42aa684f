"""Where the classes of a list are among the trained ones."""


def places(class_names: list[str], trained_names: list[str]) -> list[int]:
    """Of each class its place among the trained ones, by name, -1 for others; of a name that is there more than once
    the first has the first place, and so on."""
    if class_names == trained_names:
        return list(range(len(class_names)))
    by_name: dict[str, list[int]] = {}
    for place, name in enumerate(trained_names):
        by_name.setdefault(name, []).append(place)
    seen: dict[str, int] = {}
    found = []
    for name in class_names:
        mine = by_name.get(name, [-1])
        found.append(mine[min(seen.get(name, 0), len(mine) - 1)])
        seen[name] = seen.get(name, 0) + 1
    return found
