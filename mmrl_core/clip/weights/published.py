"""Which files of weights are published: what is called or kept as one of them has to be it."""

import re
from pathlib import Path
from typing import Any

from mmrl_core.clip.openclip import open_clip
from mmrl_core.errors import UserError

PretrainedCfg = dict[str, Any]  # what open_clip says of published weights: url, quick_gelu, mean, resize_mode ...


def _published() -> dict[str, tuple[str, PretrainedCfg]]:
    """File name -> sha256 or its first digits, and open_clip's facts: the files whose address carries a digest."""
    facts = [open_clip.get_pretrained_cfg(*pair) for pair in open_clip.list_pretrained()]
    return {known["url"].split("/")[-1]: (digest, known) for known in facts if (digest := _digest_in(known["url"]))}


def _digest_in(url: str) -> str:
    """OpenAI's folder is a sha256, open_clip's own file names end in its first eight digits."""
    folder, _, file = url.rpartition("/")
    if "openaipublic" in url:
        return folder.split("/")[-1]
    return Path(file).stem.split("-")[-1] if "mlfoundations" in url else ""


def published_by(sha256: str) -> PretrainedCfg | None:
    return next((known for digest, known in _published().values() if sha256.startswith(digest)), None)


def check_digest(path: Path, sha256: str) -> None:
    """Raises UserError when a file is not what it is called or where it lies says.

    Files that bear a published name must be that file. A folder named by a sha256, as in OpenAI's addresses, and a
    link to a file so named, as in the Hugging Face cache, say what the file must be.
    """
    digests = [name for name in (path.parent.name, path.resolve().name) if re.fullmatch("[0-9a-f]{64}", name)]
    published, _ = _published().get(path.name, ("", {}))
    for digest in [published, *digests]:
        if not sha256.startswith(digest):
            raise UserError(
                f"the weights {path} are not the file that their name or folder says: the sha256 begins with "
                f"{sha256[:12]}, not {digest[:12]}; fetch them again, or rename them if they are another model's"
            )
