"""Where a CLIP with its configuration lies: a folder (`local-dir:PATH`) or a repository (`hf-hub:org/name`)."""

import os
import re
from pathlib import Path
from typing import Any

from mmrl_core.errors import UserError
from mmrl_core.parsing import parse_json

HUB, DIRECTORY = "hf-hub:", "local-dir:"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
PLAIN_FILE = re.compile(r"[\w][\w.-]*")  # of a name that stays within its folder


class Folder:
    """A folder with a configuration and weights."""

    def __init__(self, name: str):
        self.name, self.source = name, os.path.expanduser(name.removeprefix(DIRECTORY))
        if not self.source or not Path(self.source).is_dir():
            raise UserError(f"backbone.name {name}: there is no folder {self.source}; correct the path")

    def file(self, name: str) -> Path | None:
        """The file of that name, None where there is none."""
        path = Path(self.source, name)
        return path if path.is_file() else None

    def lacks(self, what: str) -> UserError:
        """That it has none of what is needed."""
        return UserError(f"backbone.name {self.name}: the folder has {what}; name a folder that has it")


class Repository:
    """A repository of the Hugging Face Hub, each file fetched when it is asked for, or of the cache of one."""

    def __init__(self, name: str):
        self.name, self.source = name, name.removeprefix(HUB)
        if not REPOSITORY.fullmatch(self.source):
            raise UserError(f"backbone.name {name} names no repository; write hf-hub:org/name")
        self.unreachable: str | None = None  # why; then only the cache is asked

    def file(self, name: str) -> Path | None:
        """The file of that name in the cache, fetched if need be; None where the repository has none, or where that
        cannot be known without a network. Raises UserError for a repository that cannot be had."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.source, name, local_files_only=self.unreachable is not None))
        except LocalEntryNotFoundError as error:
            self.unreachable = self.unreachable or short(error)
            return None
        except EntryNotFoundError:
            return None
        except Exception as error:  # a hub raises many kinds
            raise self._not_to_be_had(short(error)) from error

    def lacks(self, what: str) -> UserError:
        """That it has none of what is needed, or is not to be reached."""
        if self.unreachable:
            return self._not_to_be_had(self.unreachable)
        return UserError(f"backbone.name {self.name}: the repository has {what}; name one that has it")

    def _not_to_be_had(self, reason: str) -> UserError:
        return UserError(
            f"backbone.name {self.name} could not be fetched ({reason}); correct the name, try again with a network, "
            f"or give a folder that you have as local-dir:PATH"
        )


Place = Folder | Repository


def is_place(name: str) -> bool:
    """Whether a backbone's name says where it lies, rather than which of open_clip's it is."""
    return name.startswith((HUB, DIRECTORY))


def place_of(name: str) -> Place:
    """Raises UserError for a folder that there is not and for what names no repository; fetches nothing."""
    return Folder(name) if name.startswith(DIRECTORY) else Repository(name)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError for anything else."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({short(error)}); fetch or save it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; fetch or save it again")
    return content


def shards_of(index: Path) -> dict[str, list[str]]:
    """File -> names of its tensors, as a list of shards says, files in order of name. Raises UserError for a list that
    is none, or that names a file elsewhere."""
    listed = read_object(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{index} lists no shards under weight_map; fetch or save it again")
    shards: dict[str, list[str]] = {}
    for tensor, file in sorted(listed.items(), key=lambda item: str(item[1])):
        if not isinstance(file, str) or not PLAIN_FILE.fullmatch(file):
            raise UserError(f"{index} names the shard {str(file)[:80]!r}, which is no file beside it; do not use it")
        shards.setdefault(file, []).append(tensor)
    return shards


def short(error: Exception) -> str:
    """What an error of somebody else's says, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
