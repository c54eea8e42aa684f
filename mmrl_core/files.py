"""Files that are either whole or absent: atomic writes, content hashes, versioned JSON."""

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import Damaged, UserError
from mmrl_core.parsing import parse_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA_VERSION = 1


def local_path(text: str) -> str:
    """The path with a leading ~ or ~NAME as that home folder. Raises ValueError for a URL: only files are read and
    written."""
    if "://" in text:
        raise ValueError("a URL is no path; copy what it names here, as `dvc get-url URL PATH` does, and give the path")
    return os.path.expanduser(text)


def path_of(text: str | Path) -> Path:
    """`local_path` of what was typed on a command line, where shells leave the ~ of `--out=~/x` alone. Raises UserError
    for a URL."""
    try:
        return Path(local_path(str(text)))
    except ValueError as error:
        raise UserError(f"{text}: {error}") from None


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: object) -> bytes:
    """The one byte string that equal values share: sorted keys, no spaces. Used for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def write_bytes(path: str | Path, content: bytes, *, sync: bool = True) -> None:
    """Write beside the target, flush to disk, then rename: a killed process leaves the old file or the new one.

    Without `sync`, for what can be made again and is checked when it is read, a loss of power may leave less.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Mapping[str, object]) -> None:
    """Write `value` with `schema_version` first, indented for people, atomically."""
    write_bytes(path, json_document(value))


def json_document(value: Mapping[str, object]) -> bytes:
    """The bytes that `write_json` writes."""
    return (json.dumps({"schema_version": SCHEMA_VERSION, **value}, indent=2, ensure_ascii=False) + "\n").encode()


def read_json(path: str | Path, *, made_by: str, keys: Iterable[str] = (), shape: type | None = None) -> dict[str, Any]:
    """Read a file that `write_json` wrote and that holds `keys`; what it holds of the entries of `shape`, a TypedDict
    of typing_extensions, is of the types given there.

    Raises UserError when it is missing, cannot be read or is of a later schema version, Damaged when it is not JSON, of
    no schema version that there was, without one of the keys, or with an entry of another type.
    """
    path = Path(path)
    try:
        value = parse_json(path.read_bytes())
    except FileNotFoundError:
        whole = ", or `dvc repro` for all stages" if "--dataset" in made_by else ""
        raise UserError(f"{path} does not exist; run `{made_by}` first{whole}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it readable, then repeat") from None
    except ValueError as error:
        raise Damaged(f"{path} is not valid JSON ({error}); delete it and run `{made_by}` again") from None
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        later = type(version) is int and version > SCHEMA_VERSION  # written by a later release, not damaged
        raise (UserError if later else Damaged)(
            f"{path} has schema_version {version!r}, this release reads {SCHEMA_VERSION}; run `{made_by}` again"
        )
    missing = [key for key in keys if key not in value]
    if missing:
        raise Damaged(f"{path} has no {missing[0]!r}; run `{made_by}` again")
    if shape and (problem := wrong_entry(value, shape)):
        raise Damaged(f"{path}: {problem}; run `{made_by}` again")
    return value


def wrong_entry(document: Mapping[str, object], shape: type) -> str | None:
    """Which entry of a document is not of the type that a TypedDict gives, and why; None where all are. An entry may be
    missing, one within an entry may not."""
    from pydantic import ValidationError  # which not everybody who reads a document needs

    try:
        _type_of(shape).validate_python(document, strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        wrong = [one for one in problems if one["type"] != "missing" or len(one["loc"]) > 1]
        return f"{'.'.join(map(str, wrong[0]['loc']))}: {wrong[0]['msg']}" if wrong else None
    return None


@functools.cache
def _type_of(shape: type) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(shape)
