"""What a search reads: labelled items of the base classes, and which prompt template suits them."""

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from flows.project import paths
from flows.settings.params import Params
from mmrl_core.data.lacking import check_trained
from mmrl_core.data.shards import Example, read_examples, read_manifest
from mmrl_core.evaluation.gate import is_gate_image
from mmrl_core.protocols import PROTOCOLS, labels_of
from mmrl_core.rounding import first_of_best
from mmrl_core.search.partitions import SearchData

if TYPE_CHECKING:
    from mmrl_core.clip.backbone import Backbone


def search_data(params: Params, dataset: str) -> tuple[SearchData, list[str]]:
    """The base classes' labelled items, and the prompt templates, the first of which is the data's until one is chosen.

    Loads no PyTorch.
    """
    protocol = PROTOCOLS[params.data.protocol]
    folders = [paths.few_shot(dataset, max(params.shots), seed) for seed in params.seeds]
    train = [_read(folder, "train", protocol.trains_on) for folder in folders]
    if params.search.validation == "full":
        pool = _read(paths.pool(dataset), "val", protocol.trains_on)
        val = [[example for example in pool if not is_gate_image(example.path)]] * len(folders)
    else:
        val = [_read(folder, "val", protocol.trains_on) for folder in folders]
    digests = {example.path: sha256(example.image).hexdigest() for part in [*train, *val] for example in part}
    manifest = read_manifest(folders[0])
    check_trained(manifest, protocol.trains_on)
    names, templates = manifest["class_names"], manifest["templates"]
    base = labels_of(manifest, protocol.trains_on)
    return SearchData(names, templates[0], base, params.seeds, train, val, protocol.new_classes, digests), templates


def template_accuracies(backbone: "Backbone", data: SearchData, templates: list[str]) -> dict[str, float | None]:
    """Every template's zero-shot accuracy on the items for validation.

    Of a single template, or without a validation image, nothing is measured.
    """
    from mmrl_core.evaluation.templates import template_accuracies as measured

    labelled = list({example.path: example for examples in data.val for example in examples}.values())
    if not labelled or len(templates) == 1:
        return dict.fromkeys(templates)
    return {**measured(backbone, templates, data.class_names, data.base, labelled)}


def measured_templates(params: Params, dataset: str) -> dict[str, float | None]:
    """`template_accuracies` on what the search of a dataset reads; PyTorch is loaded where there is a choice."""
    data, templates = search_data(params, dataset)
    if len(templates) == 1:
        return dict.fromkeys(templates)
    from flows.project.resources import backbone_for

    return template_accuracies(backbone_for(params), data, templates)


def best_template(accuracies: dict[str, float | None]) -> str:
    """The most accurate prompt template, the first of equals; where none is measured, the first."""
    return first_of_best(accuracies, lambda template: accuracies[template] or 0, within=0)


def _read(folder: Path, split: str, halves: tuple[str, ...]) -> list[Example]:
    return [example for half in halves for example in read_examples(folder, split, half)]
