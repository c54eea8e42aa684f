"""YAML that a person wrote, read as DVC reads it (YAML 1.2), and bounded: no file or value keeps a command busy."""

import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node

from mmrl_core.errors import UserError

LARGEST = 250_000  # bytes of a file; the shipped params.yaml has 5,000
LARGEST_VALUE = 20_000  # of --set
DEEPEST = 20  # collections within one another


def read_text(path: str | Path) -> str:
    """A settings file's text, line ends as they are. Raises UserError where there is none, or more than LARGEST."""
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST:,} bytes, which no settings are; shorten it")
        return content.decode()
    except FileNotFoundError:
        project = "`mmrl init` makes a project here, or " if str(path) == "params.yaml" else ""
        raise UserError(f"{path} does not exist; {project}name the settings with --params FILE") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name the settings with --params FILE") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read as YAML: it is not UTF-8 text ({error}); save it as that") from None


def read_yaml(text: str, where: str) -> Any:
    """The value that a file's text holds, of plain types. Raises UserError, which begins with `where`, where it is no
    YAML, names a key twice in one section, has an alias or a tag, or is larger than LARGEST or nested deeper than
    DEEPEST."""
    return _read(text, where, LARGEST, pure=False)


def read_value(text: str, where: str) -> Any:
    """The same of one value. Read as YAML 1.2 says, while what DVC reads files with also wants URLs in [] quoted."""
    return _read(text, where, LARGEST_VALUE, pure=True)


def _read(text: str, where: str, largest: int, *, pure: bool) -> Any:
    try:
        if len(text) > largest:
            raise UserError(f"{where} is larger than {largest:,} characters; shorten it")
        _check(text, where, pure)
        value = _reader(pure).load(text)
        json.dumps(value, ensure_ascii=False, default=str, skipkeys=True).encode()  # raises for half a character
        return value
    except DuplicateKeyError as error:
        raise UserError(f"{where}: {error.problem}; keep one of them") from None
    except MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, error.problem or error.context
        line = f", line {mark.line + 1}" if mark else ""
        hint = "; quote the value" if problem and "':'" in problem else ""
        raise UserError(f"{where}{line} is not valid YAML: {problem}{hint}") from None
    except (YAMLError, ValueError, OverflowError) as error:  # characters that are none; a date or number that is none
        reason = "a number has thousands of digits" if "int_max_str_digits" in str(error) else error
        raise UserError(f"{where} is not valid YAML: {reason}") from None


def _reader(pure: bool) -> YAML:
    reader = YAML(typ="safe", pure=pure)
    reader.Constructor = _Constructor
    return reader


class _Constructor(SafeConstructor):
    """Plain values. Of a key that a mapping has twice, both lines are said."""

    def check_mapping_key(self, node: MappingNode, key_node: Node, mapping: Any, key: Any, value: Any) -> bool:
        if key not in mapping:
            return True
        first = next(one for one, _ in node.value if self.construct_object(one, deep=True) == key)
        lines = sorted({one.start_mark.line + 1 for one in (first, key_node)})
        where = " and ".join(f"line {line}" for line in lines)
        raise DuplicateKeyError(problem=f"the key {str(key)!r} is there twice, in {where}")


def _check(text: str, where: str, pure: bool) -> None:
    """Read the text as events, which takes no memory for what they would make of it."""
    depth = 0
    for event in _reader(pure).parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        line = f"{where}, line {event.start_mark.line + 1}"
        if depth > DEEPEST:
            raise UserError(f"{line}: nested deeper than {DEEPEST} levels; no setting is")
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
            raise UserError(f"{line}: anchors (&) and aliases (*) are not read here; write the value out")
        if getattr(event, "tag", None):
            raise UserError(f"{line}: tags (!) are not read here; write the plain value")
