"""MMRL and MMRL++ for CLIP as a library: the method, its data and its evaluation. It knows nothing of the pipeline.

`from mmrl_core import ...` gives the public names in `__all__`, each with its module when it is first asked for: a bare
`import mmrl_core` loads nothing else, not even torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Read as onnxruntime is imported, which else writes an identifier and a database of events under ~/.cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from mmrl_core.adapting.adapted import Adapted as Adapted
    from mmrl_core.adapting.adapted import load as load
    from mmrl_core.adapting.embedding import embed as embed
    from mmrl_core.adapting.run import adapt as adapt
    from mmrl_core.baselines.finish import finish as finish
    from mmrl_core.baselines.fit import fit_baseline as fit_baseline
    from mmrl_core.client import Answer as Answer
    from mmrl_core.client import Client as Client
    from mmrl_core.clip.backbone import Backbone as Backbone
    from mmrl_core.clip.backbone import load_backbone as load_backbone
    from mmrl_core.config import AdapterConfig as AdapterConfig
    from mmrl_core.config import BaselineConfig as BaselineConfig
    from mmrl_core.config import TrainConfig as TrainConfig
    from mmrl_core.data.catalog import open_source as open_source
    from mmrl_core.data.sets import ImageSet as ImageSet
    from mmrl_core.data.sets import image_set as image_set
    from mmrl_core.data.shards import Example as Example
    from mmrl_core.errors import UserError as UserError
    from mmrl_core.evaluation.scores import score as score
    from mmrl_core.export import export_onnx as export_onnx
    from mmrl_core.method.adapter import Adapter as Adapter
    from mmrl_core.method.adapter import load_adapter as load_adapter
    from mmrl_core.method.adapter import save_adapter as save_adapter
    from mmrl_core.method.model import AdaptedCLIP as AdaptedCLIP
    from mmrl_core.predict import Predictor as Predictor
    from mmrl_core.training.fit import fit as fit

# Part of what every adapter depends on: raise it when the same data and settings would train to another adapter.
METHOD_VERSION = 7
# The same of every shard: raise it when the same source would be sampled or written differently.
DATA_VERSION = 4
# And of every evaluation: raise it when the same adapter would get other figures, or figures on other images.
EVALUATION_VERSION = 3

_MODULES = {
    "Adapted": "adapting.adapted",
    "AdaptedCLIP": "method.model",
    "Adapter": "method.adapter",
    "AdapterConfig": "config",
    "Answer": "client",
    "Backbone": "clip.backbone",
    "BaselineConfig": "config",
    "Client": "client",
    "Example": "data.shards",
    "ImageSet": "data.sets",
    "Predictor": "predict",
    "TrainConfig": "config",
    "UserError": "errors",
    "adapt": "adapting.run",
    "embed": "adapting.embedding",
    "export_onnx": "export",
    "finish": "baselines.finish",
    "fit": "training.fit",
    "fit_baseline": "baselines.fit",
    "image_set": "data.sets",
    "load": "adapting.adapted",
    "load_adapter": "method.adapter",
    "load_backbone": "clip.backbone",
    "open_source": "data.catalog",
    "save_adapter": "method.adapter",
    "score": "evaluation.scores",
}
if not TYPE_CHECKING:  # a checker that met a computed list would take none of the names above to be public
    __all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
