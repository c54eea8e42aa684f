"""Repositories of the Hub, on a server here that counts what is asked of it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save_file

from mmrl_core.clip.backbone import new_clip
from mmrl_core.clip.weights.places import Repository
from mmrl_core.clip.weights.pretrained import load_clip
from mmrl_core.errors import UserError
from tests.core.clip.weights.test_pretrained import SHAPE

# What is loaded one after the other in a process of its own, since the Hub's address is read when it is imported.
SCRIPT = """
import sys
from huggingface_hub import constants
from mmrl_core.clip.weights.pretrained import load_clip
for argument in sys.argv[1:]:
    name, weights, where = argument.split(",")
    constants.HF_HUB_OFFLINE = where == "offline"
    try:
        print(f"{name} loads, {load_clip(name, weights or None).file_sha256}")
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


class Hub(BaseHTTPRequestHandler):
    """Files of repositories as the Hub gives them; keeps the paths that were asked for."""

    files: dict[str, bytes] = {}
    asked: list[str] = []

    def do_HEAD(self):
        self.asked.append(self.path)
        content = self.files.get(self.path.lstrip("/").replace("/resolve/main/", "/"))
        self.send_response(404 if content is None else 200)
        if content is None:
            known = {name.rsplit("/", 1)[0] for name in self.files}
            found = self.path.lstrip("/").split("/resolve/")[0] in known
            self.send_header("X-Error-Code", "EntryNotFound" if found else "RepoNotFound")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        return content or b""

    def do_GET(self):
        self.wfile.write(self.do_HEAD())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What was printed, a line a name, and the files that were asked for."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hub")
    save_file(new_clip(SHAPE).state_dict(), folder / "weights.safetensors")
    whole = (folder / "weights.safetensors").read_bytes()
    refused = {**SHAPE, "vision_cfg": {"timm_model_name": "resnet50", "image_size": 32}}
    Hub.asked, Hub.files = [], {
        "org/whole/open_clip_config.json": json.dumps({"model_cfg": SHAPE}).encode(),
        "org/whole/open_clip_model.safetensors": whole,
        "org/refused/open_clip_config.json": json.dumps({"model_cfg": refused}).encode(),
        "org/refused/open_clip_model.safetensors": whole,
        "org/blip/config.json": b'{"model_type": "blip"}',
        "org/blip/model.safetensors": whole,
        "org/empty/README.md": b"",
    }  # fmt: skip
    names = [f"hf-hub:org/{name}" for name in ("refused", "blip", "empty", "none", "whole")]
    given = [*[f"{name},,here" for name in names], "RN50,openai,here", "RN101,yfcc15m,here",
             "hf-hub:org/whole,,offline", "hf-hub:org/other,,offline"]  # fmt: skip
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(folder / "cache"),
                       "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip
        done = _run(environment, *given)
        server.shutdown()
    return done, Hub.asked


def _run(environment: dict[str, str], *names: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *names], env={**os.environ, **environment},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_of_a_repository_that_is_refused_nothing_but_its_configuration_is_fetched(answers):
    told, asked = answers
    refused, blip, *_ = told
    assert refused.startswith("UserError: backbone hf-hub:org/refused is not supported: its image tower is a ResNet")
    assert "is a model of the kind 'blip'; only clip and siglip are read" in blip
    of_these = [path.split("/")[-1] for path in asked if "org/refused" in path or "org/blip" in path]
    assert {*of_these} == {"open_clip_config.json", "config.json"}


def test_for_an_architecture_that_is_refused_nothing_is_asked(answers):
    told, asked = answers
    assert all("is not supported" in line for line in told[5:7])
    assert not [path for path in asked if "org/" not in path]


def test_a_repository_is_loaded_its_configuration_first(answers):
    told, asked = answers
    digest = hashlib.sha256(Hub.files["org/whole/open_clip_model.safetensors"]).hexdigest()
    assert told[4] == f"hf-hub:org/whole loads, {digest}"
    fetched = [path.split("/")[-1] for path in asked if "org/whole" in path]
    assert fetched[0] == "open_clip_config.json" and fetched[-1] == "open_clip_model.safetensors"
    assert told[7] == told[4]  # from the cache


def test_a_repository_that_is_not_to_be_had_is_said_in_one_line(answers):
    told, _ = answers
    assert "the repository has neither open_clip_config.json nor a config.json of transformers" in told[2]
    for line in (told[3], told[8]):
        assert "could not be fetched (" in line and "or give a folder that you have as local-dir:PATH" in line


def test_weights_beside_a_repository_are_refused_without_asking_it():
    with pytest.raises(UserError, match="but hf-hub:org/whole comes with its own; leave it null"):
        load_clip("hf-hub:org/whole", "laion2b_s34b_b88k")


def test_a_hub_that_was_not_to_be_reached_is_not_asked_again():
    place = Repository("hf-hub:org/none")
    place.unreachable = "no network"  # as after a file that was tried for half a minute
    assert place.file("config.json") is None
    assert "could not be fetched (no network)" in str(place.lacks("no config.json"))
