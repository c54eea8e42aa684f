"""Settings given to a flow: written into params.yaml, the one file that DVC's stages read."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from flows.settings.dotted import section_of
from flows.settings.params import load_params
from mmrl_core.files import write_bytes


def edit_params(path: Path, overrides: Sequence[str]) -> None:
    """Put `key.path=value` overrides into the file, its comments kept. Raises UserError, and changes nothing, when the
    result would not be valid settings."""
    load_params(path, overrides)
    editor = _editor()
    document = editor.load(path.read_text())
    for override in overrides:
        key, _, text = override.partition("=")
        section, name = section_of(document, key)
        section[name] = editor.load(text)
    written = StringIO()
    editor.dump(document, written)
    write_bytes(path, written.getvalue().encode())


def _editor() -> YAML:
    """Keeps comments, quotes and the spelling of lists; writes null as the file does."""
    editor = YAML()
    editor.preserve_quotes, editor.width = True, 4096
    editor.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return editor
