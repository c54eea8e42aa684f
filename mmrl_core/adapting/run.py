"""adapt(): labelled images in, an adapter that predicts out."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from mmrl_core import METHOD_VERSION
from mmrl_core.adapting.adapted import Adapted
from mmrl_core.adapting.devices import device_of, plainly
from mmrl_core.adapting.held_out import check_share, check_shots, divide
from mmrl_core.adapting.images import open_image
from mmrl_core.adapting.labelled import Collection, Entry, among, collect, collect_some
from mmrl_core.baselines.finish import finish
from mmrl_core.clip.backbone import Backbone, load_backbone
from mmrl_core.clip.precision import settle_precision
from mmrl_core.config import AdapterConfig, TrainConfig, WrongSetting, did_you_mean
from mmrl_core.data.parallel import map_in_order
from mmrl_core.data.sets import ImageSet
from mmrl_core.errors import UserError
from mmrl_core.estimate.fits import refuse_heavy
from mmrl_core.method.adapter import save_adapter
from mmrl_core.method.adapter_card import CardContent
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.presets import published
from mmrl_core.training.fit import EpochCallback, fit

TEMPLATE = "a photo of a {}."


class Settings(NamedTuple):
    """Of one run."""

    adapter: AdapterConfig
    train: TrainConfig


@plainly()
def adapt(
    images: Any, *, class_names: Sequence[str] | None = None, backbone: str | Backbone = "tiny",
    weights: str | None = None, method: str = "mmrl", template: str = TEMPLATE, shots: int | None = None,
    validation: Any = None, seed: int = 1, device: str | torch.device | None = None,
    progress: bool | EpochCallback = False, **settings: Any,
) -> Adapted:  # fmt: skip
    """Adapt a CLIP to labelled images.

    `images` is a mapping of class names to lists of images (paths, encoded bytes, PIL images, arrays of bytes), a
    folder of class folders, a Hugging Face `Dataset`, or a torchvision dataset; `class_names` are the names of a
    dataset's labels where it has none. `backbone` is a model of open_clip with `weights` (a tag, a file), the bundled
    `tiny`, or a loaded Backbone. `method` is `mmrl` or `mmrlpp`; `template` the prompt, with {} for the class.

    At most `shots` images a class are trained on, by default all but those that are held out to choose a probe's
    weight, temperatures and the threshold of "none of these": a quarter of each class, at most four. `validation` is
    another share, or images in any of these forms; a folder's own validation split is taken where it has one.

    `device` is by default the GPU if there is one. `progress` prints a line an epoch on stderr, or is a function of
    (epoch from 0, metrics). More `settings`: `epochs`, `batch_size`, `lr`, `warmup_epochs`, `precision`, `probe`
    ("fused" or "off") and the fields of `AdapterConfig`, by default the published values.

    Raises UserError, one line, for whatever of this cannot be.
    """
    check_shots(shots)
    check_template(template)
    clip = _backbone(backbone, weights, device)
    config, train = _settings(method, clip, {"seed": seed, **settings})
    collection = collect(images, class_names)
    share, own = _validation(validation, collection, class_names)
    division = divide(collection.entries, shots, share, train.seed)
    names = collection.class_names
    data = _image_set(division.train, names, template)
    held_out = _image_set([*division.held_out, *own], names, template)
    return _train(clip, Settings(config, train), data, held_out, _report(progress, train.epochs))


def _train(
    backbone: Backbone, settings: Settings, data: ImageSet, held_out: ImageSet, report: EpochCallback | None
) -> Adapted:
    """Fit and finish an adapter as the pipeline does, and give it its card."""
    fitted = fit(backbone, settings.adapter, settings.train, data, report=report)
    abstain = finish(backbone, fitted.adapter, data, held_out)
    card: CardContent = {
        "method_version": METHOD_VERSION,
        "class_names": data.class_names,
        "template": data.template,
        "settings": _by_key(settings),
        "history": fitted.history,
        "abstain": abstain,
    }
    with TemporaryDirectory() as folder:  # the card says the digest of the file that it is beside
        document = save_adapter(folder, fitted.adapter, backbone, card)
    return Adapted(AdaptedCLIP(backbone, fitted.adapter, data.class_names, data.template), document)


def check_template(template: object) -> None:
    """Raises UserError unless it is text with {} for the class."""
    if not isinstance(template, str) or "{}" not in template:
        raise UserError(f"template is {template!r}; give a prompt with {{}} for the class, such as {TEMPLATE!r}")


def _validation(
    validation: Any, collection: Collection, class_names: Sequence[str] | None
) -> tuple[float | None, list[Entry]]:
    """The share of the training images to hold out, None for the usual one, and images to hold out beside them."""
    if validation is None:
        return (0.0, collection.held_out) if collection.held_out else (None, [])
    if isinstance(validation, int | float):
        return check_share(validation), []
    named = None if isinstance(validation, str | Path | Mapping) else class_names
    return 0.0, among(collect_some(validation, named), collection.class_names)


def _backbone(backbone: str | Backbone, weights: str | None, device: str | torch.device | None) -> Backbone:
    if isinstance(backbone, Backbone):
        if weights is not None:
            raise UserError("weights are those of the loaded backbone; leave them out, or name the backbone")
        return backbone if device is None else backbone.to(device_of(device))
    if not isinstance(backbone, str):
        raise UserError(
            f"backbone is of type {type(backbone).__name__}; give the name of a model of open_clip, or `tiny`"
        )
    refuse_heavy(backbone, device_of(device))
    return load_backbone(backbone, weights, device=device_of(device))


def _settings(method: str, backbone: Backbone, given: dict[str, Any]) -> Settings:
    """The published values, but for those that are given. Raises UserError for one that is unknown or cannot be."""
    fields = {"adapter": AdapterConfig.model_fields, "train": TrainConfig.model_fields}
    known = [name for names in fields.values() for name in names if name != "method"]
    if unknown := [name for name in given if name not in known]:
        hint = (
            did_you_mean(unknown[0], [*known, "backbone", "template", "validation"]) or f"; known: {', '.join(known)}"
        )
        raise WrongSetting(f"adapt() has no setting {unknown[0]!r}{hint}")
    values = {key.rpartition(".")[2]: value for key, value in published("", method, backbone.depth).items()}
    values |= {"method": method, "probe": "fused", **given}
    adapter, train = ({name: values[name] for name in names if name in values} for names in fields.values())
    settings = Settings(AdapterConfig(**adapter), TrainConfig(**train))
    precision = settle_precision(settings.train.precision, backbone.device)
    return settings._replace(train=settings.train.model_copy(update={"precision": precision}))


def _image_set(entries: list[Entry], class_names: list[str], template: str) -> ImageSet:
    """The images, decoded. Raises UserError naming the first that cannot be."""
    read = ((entry.read(), entry.name) for entry in entries)  # by this thread; decoded by others
    opened = list(map_in_order(lambda one: open_image(*one), read))
    return ImageSet([entry.key for entry in entries], opened, [entry.label for entry in entries], class_names, template)


def _report(progress: bool | EpochCallback, epochs: int) -> EpochCallback | None:
    if callable(progress):
        return progress
    return (lambda epoch, metrics: _say(epoch, epochs, metrics)) if progress else None


def _say(epoch: int, epochs: int, metrics: dict[str, float]) -> None:
    print(f"adapt: epoch {epoch + 1}/{epochs}, loss {metrics['loss']:.3f}", file=sys.stderr)


def _by_key(settings: Settings) -> dict[str, Any]:
    """Every setting as adapter.json holds them, by dotted key."""
    sections = settings._asdict().items()
    return {f"{name}.{key}": value for name, one in sections for key, value in one.model_dump().items()}
