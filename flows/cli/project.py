"""`mmrl init` and `mmrl upgrade`: a project folder, made and brought to the installed release."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import PATH, AsJson

if TYPE_CHECKING:
    from flows.scaffold.new import Found


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the project; default: this one.", **PATH)] = Path("."),
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of class folders, or of benchmark datasets.", **PATH)
    ] = None,
    json_: AsJson = False,
) -> None:  # fmt: skip
    """Make a project: params.yaml, dvc.yaml, git and DVC. With --images, for the images that lie there."""
    from flows.scaffold.new import make

    found = make(folder, images)
    if json_:
        about = {name: value for name, value in found._asdict().items() if name != "overrides"} if found else {}
        print(json.dumps({"folder": str(folder), **about}))
        return
    for line in _told(found):
        print(line)
    step = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    print(f"{folder / 'params.yaml'}: the settings; dvc.yaml: the stages; git and DVC are set up")
    print(f"next: {step}mmrl flow adapt")


def _told(found: "Found | None") -> list[str]:
    """What was found, in lines."""
    from mmrl_core.data.own.records import some

    if found is None:
        return ["two small datasets that come with the package, digits and objects; --images DIR takes your own"]
    names = ", ".join(found.datasets)
    if not found.class_names:
        return [f"found {names}: {found.images:,} images; protocol {found.protocol}"]
    classes = f"{len(found.class_names)} classes ({some(found.class_names, 10)})"
    notes = [f"{names}: note: {note}" for note in found.notes]
    return [f"found {names}: {found.images:,} images of {classes}; protocol {found.protocol}", *notes]


def upgrade(json_: AsJson = False) -> None:
    """Bring a project to the installed release: dvc.yaml, versions.yaml, and dvc.lock where its layout was another."""
    from flows.scaffold.upgrade import upgrade as bring

    done = bring()
    if json_:
        print(json.dumps(done._asdict()))
        return
    print(f"written: {', '.join(done.written)}" if done.written else "nothing to do: this is the installed release's")
    print("".join(f"{line}\n" for line in done.stale), end="")
    if done.newer:
        print(f"dvc.yaml has changes of your own; put them and {done.newer}, this release's, together")
    if done.stale:
        print("next: dvc repro, or mmrl flow adapt")
