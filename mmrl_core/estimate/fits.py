"""The refusal of what surely does not fit into a device's memory, before and after its backbone is loaded.

Nothing is refused that could fit: only what is counted exactly has a say, and less of it than the formulas give.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn

from mmrl_core.clip.precision import settle_precision
from mmrl_core.clip.shapes import Shape, Tower, shape_of
from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.errors import UserError
from mmrl_core.estimate.machine import Room, room_on
from mmrl_core.estimate.training import FLOAT, GB, Case, refuse_what_cannot_fit

if TYPE_CHECKING:
    from mmrl_core.clip.backbone import Backbone


def shape_of_named(name: str) -> Shape | None:
    """Of a backbone by its name alone; None where its measures are not known without loading it."""
    from mmrl_core.clip.catalogue import config_of

    config = config_of(name)
    try:
        return shape_of(config) if config else None
    except UserError:
        return None


def refuse_heavy(name: str, device: torch.device, room: Room | None = None) -> None:
    """Raises UserError where the weights alone of a backbone of that name are more than the device's memory."""
    shape, room = shape_of_named(name), room or room_on(device)
    weights = FLOAT * (shape.image_parameters + shape.text_parameters) if shape else 0
    if room and weights > room.bytes:
        raise UserError(
            f"the weights of backbone {name} need {weights / GB:.1f} GB, but {room.of} has {room.bytes / GB:.1f} GB; "
            f"take a smaller one, which `mmrl backbones` lists"
        )


def refuse_unloaded(
    name: str, config: AdapterConfig, train: TrainConfig, images: int, classes: int, device: torch.device,
    room: Room | None = None,
) -> None:  # fmt: skip
    """Raises UserError as `refuse_too_large`, by a backbone's name alone, for a training on so many images."""
    shape = shape_of_named(name)
    if shape is None or config.insertion_depth > shape.depth:  # for the adapter to tell
        return
    batch, precision = min(train.batch_size, images), settle_precision(train.precision, device)
    case = Case(shape, config, batch, classes, precision, device.type)
    refuse_what_cannot_fit(case, room or room_on(device), f"backbone {name}")


def refuse_too_large(
    backbone: "Backbone", config: AdapterConfig, batch: int, classes: int, precision: str, runs: int = 1
) -> None:
    """Raises UserError where steps of `batch` images for `classes`, of that many `runs` together, surely need more
    memory than the backbone's device has. `precision` is settled: not `auto`."""
    shape = shape_of_loaded(backbone)
    if config.insertion_depth > shape.depth:  # for the adapter to tell
        return
    case = Case(shape, config, batch, max(1, classes), precision, backbone.device.type)
    refuse_what_cannot_fit(case, room_on(torch.device(backbone.device)), f"backbone {backbone.name}", runs)


def shape_of_loaded(backbone: "Backbone") -> Shape:
    """By its tensors. What cannot be told from them is taken to be what costs least: one head, a causal text tower."""
    image = _tower(backbone.image_blocks, backbone.image_width, backbone.image_tokens)
    text = _tower(backbone.text_blocks, backbone.text_width, 1)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    return Shape(image, text, backbone.embed_dim, backbone.image_size, 1, 1, True, False, parameters, 0)


def _tower(blocks: list[nn.Module], width: int, rows: int) -> Tower:
    """An MLP is what a layer has beside its attention, the norms and biases left out."""
    numbers = sum(parameter.numel() for parameter in blocks[0].parameters())
    return Tower(width, len(blocks), 1, rows, max(0, (numbers - 4 * width**2) // (2 * width) - 6))
