"""What the tests of serving share: adapters made quickly, a registry that holds them, and requests."""

import base64
import contextlib
import hashlib
import io
import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import torch
from PIL import Image

from flows.project.paths import RunKey
from flows.registry import promotion, versions
from flows.serving.app import create_app
from flows.serving.follower import Follower, Live
from flows.serving.metrics import Metrics
from flows.serving.service import Service
from flows.settings.params import Params
from flows.settings.sections import ServingSection
from flows.tracking.store import absolute
from mmrl_core.clip.backbone import load_backbone
from mmrl_core.config import AdapterConfig
from mmrl_core.files import write_json
from mmrl_core.method.adapter import Adapter, save_adapter
from mmrl_core.predict import Predictor
from tests.support.processes import TOKEN, end_all
from tests.support.workspace import BIN
from tests.support.workspace import environment as workspace_environment

NAME, CLASSES = "digits-base-to-novel", ["zero", "one", "two"]
URI = f"models:/{NAME}@champion"
ABSTAIN = {"confidence": "class_cosine", "keep": 0.95, "threshold": 0.99, "images": 5}


def make_adapter(folder: Path, seed: int, std: float = 0.2, **card) -> Path:
    """An untrained adapter of the bundled backbone; every seed answers otherwise."""
    backbone = load_backbone("tiny")
    torch.manual_seed(seed)
    adapter = Adapter(AdapterConfig(method="mmrl", insertion_depth=backbone.depth, rep_dim=16), backbone)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=std)
    base = {"class_names": CLASSES, "template": "a photo of a {}.", "settings": {}, "sources": {},
            "data": {"dataset": "digits", "digest": "d" * 64}}  # fmt: skip
    save_adapter(folder, adapter, backbone, base | card)
    return folder


def app_of(predictor: Predictor | None, key: str | None = None, **options):
    return app_with_metrics(predictor, key, **options)[0]


def app_with_metrics(predictor: Predictor | None, key: str | None = None, loopback: bool = False, **limits):
    follower = Follower(URI, "sqlite:///none.db", 1)
    if predictor:
        follower.current, follower.problem = Live(NAME, 3, predictor), None
    settings, metrics = ServingSection(**limits), Metrics(follower)
    sha256 = key and hashlib.sha256(key.encode()).hexdigest()
    return create_app(settings, Service(settings, follower, metrics), metrics, sha256, loopback=loopback), metrics


def settings(**serving) -> Params:
    return Params(datasets=["digits"], methods=["mmrl"], shots=[16], seeds=[1], serving=serving)


def register(seed: int, **card) -> int:
    """Train nothing, register an adapter of that seed from the working directory; gives its version."""
    return versions.register(settings(), make_run("digits", seed, **card)).version


def make_run(dataset: str, seed: int, **card) -> RunKey:
    """The folders of a run that was trained and evaluated, in the working directory; an adapter of that seed."""
    key = RunKey(dataset, "mmrl", 16, seed)
    key.model.mkdir(parents=True, exist_ok=True)
    make_adapter(key.model, seed, **card)
    sha256 = json.loads((key.model / "adapter.json").read_text())["sha256"]
    metrics = {"adapter_sha256": sha256, "protocol": "base-to-novel", "preset": "published", "parts": [],
               "data_digest": "e" * 64, "validation": {}}  # fmt: skip
    write_json(key.results() / "metrics.json", metrics)
    return key


def promote(version: int) -> None:
    promotion.promote(settings(), "digits", version, force="test")


def predictor(version: int):
    return versions.load(f"models:/{NAME}/{version}", absolute("sqlite:///mlflow.db"))


def picture(seed: int = 0, size: tuple[int, int] = (40, 30), format: str = "PNG") -> bytes:
    """An image of random pixels, of which every seed makes another."""
    pixels = torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    encoded = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(encoded, format=format)
    return encoded.getvalue()


def in_base64(image: bytes) -> str:
    return base64.b64encode(image).decode()


@contextlib.contextmanager
def serve(folder: Path, *options: str, environment: dict[str, str] | None = None) -> Iterator["Server"]:
    """`mmrl serve` on a free port of loopback, from the moment it says its address; killed whatever happens."""
    token = uuid.uuid4().hex
    command = [str(BIN / "mmrl"), "serve", "--port", "0", "--json", *options]
    environment = workspace_environment() | {TOKEN: token} | (environment or {})
    with open(folder / "serve.err", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline()  # it says nothing before, and ends its output when it fails
        assert line, (folder / "serve.err").read_text()
        yield Server(json.loads(line)["address"], process, token)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        end_all(token)


class Server(NamedTuple):
    address: str
    process: subprocess.Popen
    token: str

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.address + path, timeout=120)

    def predict(self, image: bytes, **asked) -> httpx.Response:
        return httpx.post(f"{self.address}/predict", json={"image": in_base64(image), **asked}, timeout=120)

    def version(self) -> int:
        return self.get("/readyz").json()["model"]["version"]
