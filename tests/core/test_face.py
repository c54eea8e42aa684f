"""The public face: `from mmrl_core import ...`."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmrl
import mmrl_core
from mmrl_core import (
    AdaptedCLIP,
    AdapterConfig,
    BaselineConfig,
    Example,
    Predictor,
    TrainConfig,
    UserError,
    finish,
    fit,
    fit_baseline,
    image_set,
    load_adapter,
    load_backbone,
    open_source,
    save_adapter,
    score,
)

CONFIG = AdapterConfig(method="mmrlpp", insertion_depth=3, n_tokens=2, rep_dim=16, projection_rank=4, residual_rank=2)


def in_a_fresh_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_bare_import_loads_nothing_else():
    heavy = "{'torch', 'numpy', 'pydantic', 'open_clip', 'PIL', 'mmrl_core.config'}"
    code = f"import sys, mmrl_core; mmrl_core.METHOD_VERSION; dir(mmrl_core); print({heavy} & set(sys.modules))"
    assert in_a_fresh_process(code) == "set()"


def test_settings_and_errors_need_no_torch():
    code = "import sys; from mmrl_core import AdapterConfig, TrainConfig, UserError, open_source"
    assert in_a_fresh_process(f"{code}; print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize("name", mmrl_core.__all__)
def test_every_public_name_is_there_and_documented(name):
    thing = getattr(mmrl_core, name)
    assert thing.__name__ == name and thing.__doc__ and name in dir(mmrl_core)


def test_type_checkers_see_the_same_names():
    body = ast.parse(Path(mmrl_core.__file__).read_text()).body
    [block] = [node for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.asname: getattr(importlib.import_module(node.module), alias.name)
            for node in block.body for alias in node.names}  # fmt: skip
    assert seen == {name: getattr(mmrl_core, name) for name in mmrl_core.__all__}
    assert Path(mmrl_core.__file__).with_name("py.typed").exists()


def test_the_package_called_as_the_command_has_the_same_names_and_is_as_light():
    code = "import sys, mmrl; dir(mmrl); print({'torch', 'numpy', 'pydantic', 'huggingface_hub'} & set(sys.modules))"
    assert in_a_fresh_process(code) == "set()"
    assert mmrl.__all__ == mmrl_core.__all__ and set(mmrl.__all__) <= set(dir(mmrl))
    assert all(getattr(mmrl, name) is getattr(mmrl_core, name) for name in mmrl.__all__)
    assert Path(mmrl.__file__).with_name("py.typed").exists()
    assert re.fullmatch(r"\d+(\.\w+)+", mmrl.__version__)
    with pytest.raises(ImportError, match="cannot import name 'adopt' from 'mmrl'"):
        from mmrl import adopt  # noqa: F401


def test_a_name_that_is_not_there_is_told_as_python_tells_it():
    with pytest.raises(ImportError, match="cannot import name 'Adaptor' from 'mmrl_core'"):
        from mmrl_core import Adaptor  # noqa: F401


def test_from_labelled_images_to_predictions_by_the_face_alone(tmp_path):
    source = open_source("digits", "")
    examples = [Example(item.path, item.path, item.label, item.class_name, source.read(item))
                for label in (0, 1) for item in [x for x in source.train if x.label == label][:2]]  # fmt: skip
    names, template = source.class_names[:2], source.templates[0]
    backbone = load_backbone("tiny")

    data, content = image_set(examples, [0, 1], names, template), {"class_names": names, "template": template}
    fitted = fit(backbone, CONFIG, TrainConfig(epochs=1), data)
    abstain = finish(backbone, fitted.adapter, data, data)
    save_adapter(tmp_path / "adapter", fitted.adapter, backbone, {**content, "abstain": abstain})

    adapter, card = load_adapter(tmp_path / "adapter", backbone)
    model = AdaptedCLIP(backbone, adapter, card["class_names"], card["template"])
    scores = score(model, examples, labels=[0, 1], trained=[0, 1])
    predictor = Predictor.load(tmp_path / "adapter")
    predicted = predictor.predict([example.image for example in examples])
    assert [one.label for one in predicted] == [names[index] for index in scores.adapted.argmax(-1)]

    baseline, _ = fit_baseline(backbone, BaselineConfig(method="linear_probe"), data, data, seed=1)
    save_adapter(tmp_path / "baseline", baseline, backbone, content)
    of_baseline = Predictor.load(tmp_path / "baseline").predict([example.image for example in examples])
    assert [one.label for one in of_baseline] == [example.class_name for example in examples]

    written = tmp_path / "adapter/adapter.json"
    written.write_text(written.read_text().replace('"zero"', '"nought"'))
    with pytest.raises(UserError, match="altered"):
        load_adapter(tmp_path / "adapter", backbone)
