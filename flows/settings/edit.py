"""Settings given to a flow: written into params.yaml, the one file that DVC's stages read."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from flows.settings.dotted import section_of
from flows.settings.params import checked, parse_overrides
from flows.settings.reading import read_text, read_yaml
from mmrl_core.errors import UserError
from mmrl_core.files import write_bytes


def edit_params(path: Path, overrides: Sequence[str]) -> None:
    """Put `key.path=value` overrides into the file; every other byte stays. Raises UserError, and changes nothing, when
    the result would not be valid settings."""
    before = read_text(path)
    after = edited(before, path, overrides)
    if after != before:
        write_bytes(path.resolve(), after.encode())


def edited(text: str, path: Path, overrides: Sequence[str]) -> str:
    """The text of a settings file with the overrides in it. Raises UserError as `edit_params` does."""
    wanted = checked(text, path, overrides)
    for key, value in parse_overrides(overrides):
        text = _put(text, key, value)
    try:
        if checked(text, path) == wanted:
            return text
    except UserError:  # what was made of the text is no YAML
        pass
    raise UserError(f"{path} is laid out in a way that --set cannot edit; write the settings into the file yourself")


def _put(text: str, key: str, value: Any) -> str:
    """The text with one value in it: in place of the key's own, or where the key's section ends."""
    section, name = section_of(read_yaml(text, key), key)
    if name in section and section[name] == value and type(section[name]) is type(value):
        return text
    node, (*outer, last) = YAML(pure=True).compose(text), key.split(".")
    for depth, part in enumerate(outer):
        entry = _entry(node, part)
        if entry is None:
            return _insert(text, node, part, _nested([*outer[depth + 1 :], last], value))
        node = entry[1]
    entry = _entry(node, last)
    return _replace(text, *entry, value) if entry else _insert(text, node, last, value)


def _entry(mapping: MappingNode, name: str) -> tuple[ScalarNode, Node] | None:
    return next((entry for entry in mapping.value if entry[0].value == name), None)


def _nested(names: list[str], value: Any) -> Any:
    return {names[0]: _nested(names[1:], value)} if names else value


def _replace(text: str, key: ScalarNode, old: Node, value: Any) -> str:
    colon = text.index(":", key.end_mark.index) + 1
    start, end = old.start_mark.index, _end(text, key, old)
    if end <= colon:  # nothing stood there
        return f"{text[:colon]} {_spelled(value)}{text[colon:]}"
    if isinstance(old, CollectionNode) and not old.flow_style:  # its lines give way to one; the key's own comment stays
        comment = text[colon:start].partition("\n")[0].rstrip()
        return f"{text[:colon]} {_spelled(value)}{'  ' if comment else ''}{comment.strip()}{text[end:]}"
    return f"{text[:start]}{_spelled(value)}{text[end:]}"


def _insert(text: str, section: MappingNode, name: str, value: Any) -> str:
    """Behind the section's last entry: within its braces, or in a line of its own."""
    entry = f"{_spelled(name)}: {_spelled(value)}"
    if section.flow_style and not section.value:
        place = section.start_mark.index + 1
        return f"{text[:place]}{entry}{text[place:]}"
    place = _end(text, *section.value[-1])
    if section.flow_style:
        return f"{text[:place]}, {entry}{text[place:]}"
    line = text.find("\n", place) + 1 or len(text)
    before = text[:line] if text[:line].endswith("\n") else f"{text[:line]}\n"
    newline = "\r\n" if before.endswith("\r\n") else "\n"
    return f"{before}{' ' * section.value[0][0].start_mark.column}{entry}{newline}{text[line:]}"


def _end(text: str, key: ScalarNode | None, node: Node) -> int:
    """Where a value ends: not at the comments and blank lines behind it, which its mark would include."""
    if isinstance(node, CollectionNode) and not node.flow_style:
        last = node.value[-1]
        return _end(text, *last) if isinstance(node, MappingNode) else _end(text, None, last)
    start, end = node.start_mark.index, node.end_mark.index
    if start == end and key:
        return text.index(":", key.end_mark.index) + 1
    return start + len(text[start:end].rstrip())


def _spelled(value: Any) -> str:
    """A value in one line, as it can stand anywhere; what needs quotes for DVC has them."""
    writer, written = YAML(typ="safe", pure=True), StringIO()  # ruamel's C writer, which need not be there, has others
    writer.default_flow_style, writer.width = True, 10**6
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.brace_single_entry_mapping_in_flow_sequence = True
    writer.Representer = _Quoting
    writer.dump([value], written)
    return written.getvalue().strip()[1:-1]


class _Quoting(SafeRepresenter):
    """With quotes where a text has a colon: what DVC reads with may refuse a URL within brackets."""

    def represent_text(self, text: str) -> ScalarNode:
        style = "'" if ":" in text and text.isprintable() else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Quoting.add_representer(str, _Quoting.represent_text)
