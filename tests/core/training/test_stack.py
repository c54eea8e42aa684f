"""Several runs in one pass and one step: what they give is what each gives alone, but for rounding."""

import pytest
import torch
from PIL import Image

from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.clip.packing import pack
from mmrl_core.clip.text_tower import SharedPrefix
from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.data.sets import ImageSet
from mmrl_core.errors import UserError
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.training import fit as training
from mmrl_core.training.fit import Training, fit, fit_group, fit_together, groups
from mmrl_core.training.stack import StackedCLIP
from mmrl_core.training.step import Graphed
from mmrl_core.training.whole import WholeStep
from tests.support.small import random_images, small_adapter, small_backbone

TOLERANCE = 1e-5
NAMES = [["dog", "polar bear", "a very long name of a class"], ["cat", "red_panda", "dog"], ["dog house", "cat", "ant"]]
PLACES = range(len(NAMES))


def images_of(names: list[str], shots: int = 3) -> ImageSet:
    """Solid colours, another one for every name."""
    colours = [tuple(hash_of(f"{name} {shot}")) for name in names for shot in range(shots)]
    images = [Image.new("RGB", (20, 16), colour) for colour in colours]
    items = [f"{name}-{shot}" for name in names for shot in range(shots)]
    return ImageSet(items, images, [index // shots for index in range(len(items))], names, "a {}.")


def hash_of(text: str) -> list[int]:
    total = sum((place + 1) * ord(letter) for place, letter in enumerate(text))
    return [total % 256, total // 7 % 256, total // 3 % 256]


def config(method: str, **changes) -> AdapterConfig:
    small = {"insertion_depth": 2, "n_tokens": 2, "rep_dim": 8, "residual_rank": 2, "projection_rank": 4, "beta": 0.6}
    return AdapterConfig(method=method, **{**small, **changes})


def trainings(method: str, **changes) -> list[Training]:
    """Three partitions with seeds, regularisation, alpha and learning rate of their own."""
    return [
        Training(
            config(method, reg_weight=0.5 + place, alpha=0.7 - place / 10, **changes),
            TrainConfig(epochs=3, batch_size=4, lr=(1 + place) * 1e-3, seed=place),
            images_of(NAMES[place]),
        )
        for place in PLACES
    ]


def furthest(one: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((mine - theirs).detach().abs().max()) for mine, theirs in pairs)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
def test_runs_that_train_together_are_those_that_train_alone(method, depth):
    backbone, wanted = small_backbone(), trainings(method, insertion_depth=depth)
    assert groups(backbone, wanted) == [[0, 1, 2]]
    for one, alone in zip(fit_together(backbone, wanted), (fit(backbone, *each) for each in wanted), strict=True):
        assert furthest(one.adapter, alone.adapter) < TOLERANCE
        for epoch, expected in zip(one.history, alone.history, strict=True):
            assert epoch == pytest.approx(expected, rel=1e-4, abs=TOLERANCE)


def test_runs_of_different_kinds_train_in_groups_and_come_back_in_order():
    wanted = trainings("mmrl")
    wanted.insert(1, Training(config("mmrlpp"), TrainConfig(epochs=1, batch_size=4), images_of(NAMES[0])))
    wanted.append(Training(config("mmrl"), TrainConfig(epochs=3, batch_size=4), images_of(NAMES[0], shots=9)))
    assert groups(small_backbone(), wanted) == [[0, 2, 3], [1], [4]]
    fitted = fit_together(small_backbone(), wanted)
    assert [one.adapter.config for one in fitted] == [one.adapter for one in wanted]


def test_no_more_train_together_than_fill_the_image_towers_chunk(monkeypatch):
    monkeypatch.setattr(training, "CHUNK_TOKENS", 2 * 4 * (small_backbone().image_tokens + 2))
    assert groups(small_backbone(), trainings("mmrl")) == [[0, 1], [2]]


def test_a_group_has_reports_and_validation_figures_as_each_has_alone():
    backbone, wanted = small_backbone(), trainings("mmrl")
    vals = [images_of(NAMES[0], shots=2), None, images_of(NAMES[2], shots=1)]
    told: list[list] = [[], [], []]
    reports = [lambda epoch, metrics, mine=mine: mine.append((epoch, metrics)) for mine in told]
    together = fit_group(backbone, wanted, vals=vals, reports=reports)
    for one, each, val, mine in zip(together, wanted, vals, told, strict=True):
        alone = fit(backbone, *each, val=val)
        assert [epoch.keys() for epoch in one.history] == [epoch.keys() for epoch in alone.history]
        for epoch, expected in zip(one.history, alone.history, strict=True):
            assert epoch == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert mine == list(enumerate(one.history))


def test_a_group_that_is_broken_off_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path):
    backbone, wanted, told = small_backbone(), trainings("mmrlpp"), []
    whole = fit_group(backbone, wanted)

    def break_off(epoch: int, metrics: dict[str, float]) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_group(backbone, wanted, reports=[break_off] * 3, checkpoints=tmp_path)
    reports = [lambda epoch, metrics: told.append(metrics["loss"])] * 3
    resumed = fit_group(backbone, wanted, reports=reports, checkpoints=tmp_path)
    assert [furthest(one.adapter, other.adapter) for one, other in zip(resumed, whole, strict=True)] == [0, 0, 0]
    assert [one.history for one in resumed] == [one.history for one in whole]
    assert told == [one.history[epoch]["loss"] for epoch in range(3) for one in whole]


def test_features_that_are_kept_change_no_bit_of_runs_that_train_together(tmp_path):
    backbone = small_backbone()
    plain = fit_together(backbone, trainings("mmrlpp"))
    store = FeatureStore(tmp_path, 1e9, depth=1)
    for _ in range(2):  # what the first computes, the second reads
        kept = fit_together(backbone, trainings("mmrlpp"), store=store)
        assert [furthest(one.adapter, other.adapter) for one, other in zip(kept, plain, strict=True)] == [0, 0, 0]
    other = FeatureStore(tmp_path, 1e9, depth=1)  # from the files, not from memory
    kept = fit_together(backbone, trainings("mmrlpp"), store=other)
    assert [furthest(one.adapter, other.adapter) for one, other in zip(kept, plain, strict=True)] == [0, 0, 0]


def test_a_run_that_diverges_ends_the_group_and_says_so():
    wanted = trainings("mmrl")
    wanted[1] = wanted[1]._replace(train=wanted[1].train.model_copy(update={"lr": 1e38, "warmup_epochs": 0}))
    with pytest.raises(UserError, match=r"training diverged at epoch \d step \d"):
        fit_together(small_backbone(), wanted)


@pytest.mark.parametrize("chunk_tokens", [10**6, 30, 7, 1])
@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
def test_text_features_of_runs_are_those_of_each_in_chunks_of_any_size(method, chunk_tokens):
    backbone = small_backbone()
    adapters = [small_adapter(backbone, method, seed=place) for place in PLACES]
    every = [name for names in NAMES for name in names]
    tower = SharedPrefix(backbone, every, "a {}.", adapters[0].n_insert, chunk_tokens=chunk_tokens, runs=len(NAMES))
    assert (len(tower.packings) == 1) is (chunk_tokens > 1000)
    tokens = torch.stack([adapter.text_tokens() for adapter in adapters])
    together = tower.adapted(tokens, adapters[0].config.composition).unflatten(0, (len(NAMES), -1))
    frozen = tower.zero_shot().unflatten(0, (len(NAMES), -1))
    for place, adapter in enumerate(adapters):
        alone = SharedPrefix(backbone, NAMES[place], "a {}.", adapter.n_insert)
        expected = alone.adapted(adapter.text_tokens(), adapter.config.composition)
        assert torch.allclose(together[place], expected, atol=TOLERANCE)
        assert torch.allclose(frozen[place], alone.zero_shot(), atol=TOLERANCE)


@pytest.mark.parametrize("runs", [1, 2, 3])
@pytest.mark.parametrize("each", [1, 2, 5])
def test_no_group_of_suffixes_holds_classes_of_two_runs(runs, each):
    lengths = [1 + (7 * place) % 11 for place in range(runs * each)]
    packing = pack(lengths, torch.device("cpu"), runs)
    run_of = torch.tensor([place // each for place, length in enumerate(lengths) for _ in range(length)])
    places = torch.arange(packing.n_tokens) if packing.places is None else packing.places
    groups_of_run = len(packing.ends_own) // runs
    assert torch.equal(places // len(packing.own) // groups_of_run, run_of)
    ends = torch.arange(runs * each)[:, None].float()
    assert torch.equal(packing.ungroup_ends(packing.group_ends(ends)), ends)
    assert torch.equal(packing.ungroup(packing.group(run_of[:, None])), run_of[:, None])


def test_logits_of_runs_are_those_of_each_model():
    backbone = small_backbone()
    adapters = [small_adapter(backbone, "mmrlpp", seed=place, alpha=0.2 + place / 5) for place in PLACES]
    together = StackedCLIP(backbone, adapters, NAMES, "a {}.")
    models = [AdaptedCLIP(backbone, adapter, names, "a {}.") for adapter, names in zip(adapters, NAMES, strict=True)]
    trunks = torch.stack([together.image_tower.trunk(random_images(5, seed=place)) for place in PLACES])
    found = together.from_trunk(trunks)
    for place, model in enumerate(models):
        for mine, expected in zip(found[:-1], model.from_trunk(trunks[place])[:-1], strict=True):  # without a head
            assert torch.allclose(mine[place], expected, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_on_a_gpu_the_runs_are_one_graph(precision):
    backbone = small_backbone().to("cuda")
    wanted = [one._replace(train=one.train.model_copy(update={"precision": precision})) for one in trainings("mmrlpp")]
    run = training._begin(backbone, wanted, training.NoCheckpoints(), None, training.Workers())
    together = run.train([lambda epoch, metrics: None] * len(wanted))
    assert isinstance(run.step._run, Graphed if precision == "fp16" else WholeStep)
    tolerance = 1e-4 if precision == "float32" else 2e-2
    for one, alone in zip(together, (fit(backbone, *each) for each in wanted), strict=True):
        assert one.history[-1]["loss"] == pytest.approx(alone.history[-1]["loss"], rel=tolerance)
