"""The tower as a graph gives what the folded form's gives."""

import functools

import numpy as np
import onnx
import pytest
import torch

from mmrl_core.clip.backbone import Backbone, load_backbone
from mmrl_core.light.graph import OUTPUTS, Tokens, feature_graph
from mmrl_core.light.session import Session, session_of
from mmrl_core.method.folded import FoldedCLIP, tower_facts
from mmrl_core.method.model import AdaptedCLIP
from tests.core.method.test_folded import TEMPLATE, shaped_backbone
from tests.support.small import CLASSES, random_images, small_backbone, small_kind

TOLERANCE = 1e-5
TINY = functools.partial(load_backbone, "tiny")
QUICK_GELU = functools.partial(shaped_backbone, 3, 32, quick_gelu=True)
UNEVEN = functools.partial(small_backbone, 5, 3)  # token layers of the image tower do not end where the text's do
NOT_FILLED = functools.partial(shaped_backbone, 2, 40)  # its patches leave pixels over


def folded(backbone: Backbone, kind: str, **settings) -> FoldedCLIP:
    return FoldedCLIP.from_model(AdaptedCLIP(backbone, small_kind(backbone, kind, **settings), CLASSES, TEMPLATE))


def graph_of(model: FoldedCLIP) -> bytes | None:
    arrays = {name: tensor.numpy() for name, tensor in model.backbone.visual.state_dict().items()}
    tokens = None
    if model.tokens is not None and model.projection is not None:
        tokens = Tokens(model.tokens.numpy(), model.projection.numpy(), model.beta, model.head is not None)
    return feature_graph(arrays, tower_facts(model.backbone), tokens)


@pytest.mark.parametrize(
    ("backbone", "kind", "settings"),
    [
        (TINY, "mmrl", {}),
        (TINY, "mmrlpp + probe", {"insertion_depth": 4}),
        (TINY, "tip_adapter", {}),
        (small_backbone, "mmrl", {"insertion_depth": 1}),
        (small_backbone, "mmrl + probe", {"insertion_depth": 3}),
        (small_backbone, "mmrlpp", {"insertion_depth": 4, "n_tokens": 1}),
        (QUICK_GELU, "mmrlpp", {"insertion_depth": 1, "beta": 1.0}),
        (QUICK_GELU, "linear_probe", {}),
        (UNEVEN, "mmrlpp + probe", {"insertion_depth": 1, "beta": 0.3}),
        (NOT_FILLED, "mmrl", {"insertion_depth": 2}),
    ],
)
@torch.no_grad()
def test_it_computes_what_the_folded_form_does_for_batches_of_any_size(backbone, kind, settings):
    model = folded(backbone(), kind, **settings)
    session = Session(graph_of(model))
    for batch in (1, 2, 7):
        images = random_images(batch, model.backbone.image_size, seed=batch)
        expected = [features for features in model.encode(images) if features is not None]
        found = session(images.numpy())
        assert len(found) == (1 if model.tokens is None else len(expected))
        for one, other in zip(found, expected, strict=False):
            assert one.shape == (batch, model.backbone.embed_dim) and one.dtype == np.float32
            assert np.abs(one - other.numpy()).max() < TOLERANCE * np.abs(other.numpy()).max()


def test_it_is_an_onnx_file_of_standard_operators_that_holds_every_weight_once():
    model = folded(load_backbone("tiny"), "mmrlpp + probe")
    graph = onnx.load_from_string(graph_of(model))
    onnx.checker.check_model(graph, full_check=True)
    assert [output.name for output in graph.graph.output] == list(OUTPUTS)
    assert {node.domain for node in graph.graph.node} == {""}
    weights = sum(tensor.numel() for tensor in model.backbone.visual.state_dict().values())
    assert sum(np.prod(array.dims) for array in graph.graph.initializer) < 1.05 * weights


def test_the_last_layer_is_computed_for_the_rows_alone_that_are_read():
    def rows_of(kind: str, **settings) -> int:
        """Rows that come out of the last layer's largest product for one image."""
        graph = onnx.load_from_string(graph_of(folded(small_backbone(), kind, **settings)))
        [name] = {
            node.output[0] for node in graph.graph.node if "transformer.resblocks.3.mlp.c_fc.weight" in node.input
        }
        graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        return Session(graph.SerializeToString())(random_images(1).numpy())[-1].shape[0]

    assert rows_of("linear_probe") == 1  # of five
    assert rows_of("mmrl", n_tokens=3) == 4  # of eight


def test_weights_of_another_kind_of_tower_are_not_covered():
    backbone = small_backbone()
    arrays = {name: tensor.numpy() for name, tensor in backbone.visual.state_dict().items()}
    facts = tower_facts(backbone)
    assert feature_graph(arrays, facts, None)
    assert feature_graph(arrays | {"attn_pool.query": arrays["proj"]}, facts, None) is None
    assert feature_graph(arrays, facts | {"size": 48}, None) is None


def test_a_graph_of_operators_that_the_runtime_lacks_is_not_run():
    graph = onnx.load_from_string(graph_of(folded(small_backbone(), "mmrl")))
    graph.opset_import[0].version = 99
    assert session_of(graph.SerializeToString()) is None
