"""What a command may import: nobody waits for, or keeps in memory, what the command does not use."""

import sys

import pytest
from PIL import Image

from tests.flows.conftest import RUN
from tests.support.workspace import run

# Packages whose own import is dear; of timm and torchvision a few files of little cost belong to open_clip.
DEAR = {
    "dvc", "fastapi", "matplotlib", "mlflow", "onnx", "onnxruntime", "onnxscript", "open_clip", "optuna", "pandas",
    "prefect", "pyarrow", "ray", "scipy", "sklearn", "sympy", "timm", "timm.layers", "timm.models", "torch",
    "torch._dynamo", "torchvision", "torchvision.models", "torchvision.ops", "transformers", "webdataset",
}  # fmt: skip
TRACKING = {"mlflow", "fastapi", "pandas", "pyarrow", "scipy"}  # all of it MLflow's
MODEL = ["--model", "models/digits/mmrl-2shot/seed1"]


@pytest.mark.parametrize(
    ("command", "may"),
    [
        (["prepare", "--dataset", "digits"], set()),
        (["prepare", "--dataset", "digits", "--set", "backbone.name=ViT-L-14", "--out", "elsewhere"], set()),
        (["train", *RUN], {"open_clip", "sklearn", "torch", *TRACKING}),
        (["fit-baselines", *RUN[:2], "--shots", "2"], set()),  # the project has none
        (["evaluate-baselines", *RUN[:2], "--shots", "2"], set()),
        (["evaluate", *RUN], {"open_clip", "torch", "pandas", "pyarrow", "scipy", "sklearn"}),
        (["predict", "one.png", *MODEL], set()),
        (["predict", "one.png", *MODEL, "--class", "two", "--class", "ten"], {"open_clip", "torch"}),
        (["embed", "one.png", "--out", "features.npz", *MODEL], {"open_clip", "torch"}),
        (["backbones"], {"open_clip", "torch"}),
        (["register"], TRACKING),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_imports_only_what_it_uses(project, command, may):
    Image.new("RGB", (32, 32), "red").save("one.png")
    script = (
        f"import sys\nsys.argv = {['mmrl', *command]}\nfrom flows.cli import main\ntry: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        f"print(*({DEAR} & set(sys.modules)))"
    )
    imported = set(run(project, sys.executable, "-c", script).stdout.splitlines()[-1].split())
    assert imported <= may


def test_a_command_that_has_had_torchs_compiler_ends_without_a_word(tmp_path):
    script = "import triton, sys\nfrom flows.cli import main\nsys.argv = ['mmrl', 'datasets']\nmain()"
    assert run(tmp_path, sys.executable, "-c", script).stderr == ""
