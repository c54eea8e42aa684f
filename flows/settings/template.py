"""The files of a new project, as this release has them: flows/template."""

from pathlib import Path

import flows

DEFAULT_PARAMS = Path("params.yaml")
FOLDER = Path(flows.__file__).parent / "template"


def template(name: str) -> bytes:
    """A file's bytes: params.yaml, gitignore, dvcignore, and stages.yaml, that is dvc.yaml: DVC would find one here."""
    return (FOLDER / name).read_bytes()
