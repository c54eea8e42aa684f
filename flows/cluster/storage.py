"""Where a training on a cluster keeps its checkpoints: a folder, or by URI a store that every node reaches."""

import contextlib
import posixpath
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mmrl_core.errors import UserError
from mmrl_core.training.checkpoints import Folder

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

STANDSTILL = 300.0  # seconds in which a slow store may take and send nothing


def open_storage(where: str, name: str) -> "Local | Remote":
    """The checkpoints called `name` below an absolute path or a URI such as s3://bucket/folder.

    Raises ValueError for a URI that pyarrow does not know.
    """
    return Local(Path(where) / name) if Path(where).is_absolute() else Remote(where, name)


def reached_storage(where: str, name: str) -> "Local | Remote":
    """The same on a worker's node. Raises UserError where it does not see the folder that the command has made."""
    storage = open_storage(where, name)
    if not storage.exists():
        raise UserError(f"cluster.storage {where}: the folder that the command has made there is not seen from here")
    return storage


class Local(Folder):
    def exists(self) -> bool:
        return Path(self.folder).is_dir()

    def remove(self) -> None:
        """Delete the checkpoints of a training that is done, and what Ray keeps beside them."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Remote(Folder):
    """The same below a URI. Stores such as S3 show a file once it is whole; elsewhere a half-written one is damaged."""

    def __init__(self, uri: str, name: str):
        from pyarrow.fs import FileSystem

        system, path = FileSystem.from_uri(uri)
        self.system = _patient(system)
        super().__init__(posixpath.join(path, name))

    def exists(self) -> bool:
        from pyarrow.fs import FileType

        return self.system.get_file_info(str(self.folder)).type == FileType.Directory

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.system.delete_dir(self.folder)

    def _names(self) -> Iterable[str]:
        from pyarrow.fs import FileSelector

        return [file.base_name for file in self.system.get_file_info(FileSelector(self.folder, allow_not_found=True))]

    def _read(self, name: str) -> bytes:
        with self.system.open_input_file(self._path(name)) as file:
            return file.read()

    def _write(self, name: str, content: bytes) -> None:
        with self.system.open_output_stream(self._path(name)) as file:
            file.write(content)

    def _delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.system.delete_file(self._path(name))

    def _path(self, name: str) -> str:
        return posixpath.join(self.folder, name)


def _patient(system: "FileSystem") -> "FileSystem":
    """The same, where it is S3's with a limit for a slow store: AWS's own is 3 s, and a URI cannot say another. The
    limit for a dead one, which is AWS's for connecting, stays."""
    if system.type_name != "s3":
        return system
    make, (options,) = system.__reduce__()
    return make({**options, "request_timeout": STANDSTILL})
