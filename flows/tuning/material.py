"""What a search reads: labelled items of the base classes, and which prompt template suits them."""

from pathlib import Path

from flows import paths
from mmrl_core.backbone import Backbone
from mmrl_core.config import Params
from mmrl_core.data.shards import Example, read_examples, read_manifest
from mmrl_core.gate import is_gate_image
from mmrl_core.protocols import PROTOCOLS, labels_of
from mmrl_core.search import SearchData
from mmrl_core.templates import template_accuracies


def search_data(params: Params, dataset: str, backbone: Backbone) -> tuple[SearchData, dict[str, float | None]]:
    """The base classes' labelled items, and every template's zero-shot accuracy on those for validation.

    The best template is the data's; of a single template, or without a validation image, nothing is measured.
    """
    protocol = PROTOCOLS[params.data.protocol]
    folders = [paths.few_shot(dataset, max(params.shots), seed) for seed in params.seeds]
    manifest = read_manifest(folders[0])
    names, base = manifest["class_names"], labels_of(manifest, protocol.trains_on)
    accuracies: dict[str, float | None] = dict.fromkeys(manifest["templates"])
    train = [_read(folder, "train", protocol.trains_on) for folder in folders]
    if params.search.validation == "full":
        pool = _read(paths.pool(dataset), "val", protocol.trains_on)
        val = [[example for example in pool if not is_gate_image(example.path)]] * len(folders)
    else:
        val = [_read(folder, "val", protocol.trains_on) for folder in folders]
    labelled = list({example.path: example for examples in val for example in examples}.values())
    if labelled and len(accuracies) > 1:
        accuracies = template_accuracies(backbone, list(accuracies), names, base, labelled)
    template = max(accuracies, key=lambda one: accuracies[one] or 0)
    return SearchData(names, template, base, params.seeds, train, val, protocol.new_classes), accuracies


def _read(folder: Path, split: str, halves: tuple[str, ...]) -> list[Example]:
    return [example for half in halves for example in read_examples(folder, split, half)]
