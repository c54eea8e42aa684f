"""Which files of a folder or repository hold its weights, and their digest. Imports no PyTorch."""

import hashlib
from pathlib import Path

from mmrl_core.clip.weights.places import DIRECTORY, Folder, Place, shards_of
from mmrl_core.files import sha256_file

CONFIGURATION = "open_clip_config.json"  # in the layout that open_clip writes and reads
OPEN_CLIP, TRANSFORMERS = "open_clip", "transformers"  # the layouts
INDEX = ".index.json"
# The names that weights have, the one that is taken first.
NAMES = {
    OPEN_CLIP: ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
                "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin"),
    TRANSFORMERS: ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}"),
}  # fmt: skip
ENDINGS = ("*.safetensors", "*.pt", "*.pth", "*.bin")


def weight_files(place: Place, layout: str) -> list[Path]:
    """The files of weights, fetched if need be, in order of name. Raises UserError where there are none, or several of
    which none is the one."""
    names = NAMES[layout]
    for name in names:
        if path := place.file(name):
            return _shards(place, path) if name.endswith(INDEX) else [path]
    if isinstance(place, Folder) and layout == OPEN_CLIP:
        others = sorted(path for ending in ENDINGS for path in Path(place.source).glob(ending))
        if len(others) == 1:
            return others
        if others:
            found = ", ".join(path.name for path in others[:4])
            raise place.lacks(f"several files of weights ({found}), none of them called {names[0]}")
    raise place.lacks(f"no weights ({', '.join(names[:3])} or such)")


def _shards(place: Place, index: Path) -> list[Path]:
    files = {name: place.file(name) for name in shards_of(index)}
    if missing := [name for name, path in files.items() if path is None]:
        raise place.lacks(f"no {missing[0]}, which its {index.name} lists")
    return [path for path in files.values() if path]


def digest_of(digests: list[str]) -> str:
    """One sha256 for files with these: that of the only one, of several the digest of their digests."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def folders_digest(name: str) -> str | None:
    """Digest of the weights in a folder, `LoadedCLIP.file_sha256`; None for what is no `local-dir:PATH`. Raises
    UserError as `weight_files`."""
    if not name.startswith(DIRECTORY):
        return None
    place = Folder(name)
    layout = OPEN_CLIP if place.file(CONFIGURATION) else TRANSFORMERS
    return digest_of([sha256_file(path) for path in weight_files(place, layout)])
