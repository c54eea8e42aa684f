"""The published training loop as a script of its own: what `mmrl train` as a whole is measured against.

    python -m benchmarks.startup.published WEIGHTS FEW_SHOT TEMPLATE EPOCHS BATCH

It does what the authors' code does, on one CPU or GPU: whole processes load the images of a prepared few-shot folder,
draw crops and flips by torchvision in the workers of a DataLoader, and every step takes two whole image passes and a
whole text pass (tests/oracle). Nothing of mmrl_core is imported. It trains and writes the learned tensors; it neither
validates nor tests, as the authors do after the last epoch.
"""

import io
import json
import math
import os
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import open_clip
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from tests.oracle import Oracle

TOKENS, REP_DIM, FIRST = 5, 512, 6  # published: K, d_r and the first layer with tokens
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
WORKERS = 8  # of the authors' DataLoader, at most one a core


class Shards(Dataset):
    """The training images of a prepared few-shot folder."""

    def __init__(self, folder: Path, size: int):
        self.rows = [row for shard in sorted(folder.glob("train*.tar")) for row in members(shard)]
        self.transform = transforms.Compose([
            transforms.RandomResizedCrop(size, (0.5, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.rows[index]
        return self.transform(Image.open(io.BytesIO(image)).convert("RGB")), label


def members(shard: Path) -> list[tuple[bytes, int]]:
    """Images and labels of a WebDataset shard."""
    images, labels = {}, {}
    with tarfile.open(shard) as tar:
        for member in tar:
            stem, _, kind = member.name.partition(".")
            content = tar.extractfile(member).read()
            if kind == "json":
                labels[stem] = json.loads(content)["label"]
            elif kind == "cls":
                labels[stem] = int(content)
            else:
                images[stem] = content
    return [(images[stem], labels[stem]) for stem in images]


class Aligner(nn.Module):
    """A linear map for every insertion layer."""

    def __init__(self, layers: int, width: int):
        super().__init__()
        linear = nn.Linear(REP_DIM, width)
        self.weight = nn.Parameter(linear.weight.detach().repeat(layers, 1, 1))
        self.bias = nn.Parameter(linear.bias.detach().repeat(layers, 1))


class Learned(nn.Module):
    """MMRL's learnable tensors."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        image, text = (tower.ln_1.normalized_shape[0] for tower in
                       (clip.visual.transformer.resblocks[0], clip.transformer.resblocks[0]))  # fmt: skip
        layers = len(clip.visual.transformer.resblocks) - FIRST + 1
        self.config = SimpleNamespace(
            method="mmrl", insertion_depth=FIRST, n_tokens=TOKENS, alpha=0.7, reg_weight=0.5, beta=1.0
        )
        self.space = nn.Parameter(torch.randn(TOKENS, REP_DIM) * 0.02)
        self.image_aligner, self.text_aligner = Aligner(layers, image), Aligner(layers, text)
        self.projection = nn.ParameterDict({"weight": torch.randn_like(clip.visual.proj) * image**-0.5})


def main() -> None:
    weights, folder, template, epochs, batch = sys.argv[1:]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(1)
    clip = open_clip.create_model("ViT-B-16", pretrained=weights, device=device).eval().requires_grad_(False)
    class_names = json.loads(Path(folder, "manifest.json").read_text())["class_names"]
    learned = Learned(clip).to(device)
    model = Oracle(clip, open_clip.get_tokenizer("ViT-B-16"), learned, class_names, template)
    model.token_ids = model.token_ids.to(device)
    data = Shards(Path(folder), clip.visual.image_size[0])
    loader = DataLoader(data, int(batch), shuffle=True, drop_last=True, num_workers=min(WORKERS, os.cpu_count() or 1))
    optimizer = torch.optim.AdamW(learned.parameters(), lr=1e-3, weight_decay=5e-4)
    with torch.no_grad():
        zero_shot_text = clip.encode_text(model.token_ids, normalize=True)
    for epoch in range(int(epochs)):
        for group in optimizer.param_groups:
            group["lr"] = 1e-5 if epoch < 1 else 5e-4 * (1 + math.cos(math.pi * (epoch - 1) / int(epochs)))
        losses = []
        for images, labels in loader:
            optimizer.zero_grad()
            loss = model.loss(images.to(device), labels.to(device), zero_shot_text)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}/{epochs}: {len(losses)} steps, loss {sum(losses) / len(losses):.3f}", flush=True)
    torch.save(learned.state_dict(), Path("published.pt"))


if __name__ == "__main__":
    main()
