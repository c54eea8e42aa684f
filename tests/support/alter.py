"""Adapters and bundles that someone altered, every sum made right again."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from mmrl_core.files import sha256_file
from mmrl_core.method.adapter_card import CARD, TENSORS, card_sha256


def alter_card(adapter: Path, change: Callable[[dict], object]) -> None:
    """Change adapter.json, and its own digest with it."""
    card = json.loads((adapter / CARD).read_text())
    change(card)
    card["card_sha256"] = card_sha256(card)
    (adapter / CARD).write_text(json.dumps(card))


def alter_tensors(adapter: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors, and the card's digests with them."""
    tensors = load((adapter / TENSORS).read_bytes())
    change(tensors)
    replace_tensors(adapter, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def replace_tensors(adapter: Path, content: bytes) -> None:
    """Other bytes in place of the tensors, and the card's digests with them."""
    (adapter / TENSORS).write_bytes(content)
    alter_card(adapter, lambda card: card.update(sha256=hashlib.sha256(content).hexdigest()))


def sum_again(bundle: Path) -> None:
    """SHA256SUMS of what lies there."""
    paths = sorted(path for path in bundle.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    lines = [f"{sha256_file(path)}  {path.relative_to(bundle)}\n" for path in paths]
    (bundle / "SHA256SUMS").write_text("".join(lines))
