"""Encoding shards to score them: one after another in this process, or one Ray task a shard on a cluster. The features
are the same.

Adapter and class features are sent once; shards are read where a node finds them, or travel there. What comes back are
the images' features, as many numbers however many classes there are. A shard that cannot be scored, after retries on
other nodes, fails the evaluation.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from flows.cluster.connection import Needs, connected
from flows.project.resources import backbone_of
from flows.settings.sections import BackboneSection, ClusterSection
from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.data.shards import Shard, check_shard, examples_of, packed
from mmrl_core.errors import UserError
from mmrl_core.evaluation.scores import Encoded, encode_each
from mmrl_core.method.adapter_card import CardOfTensors
from mmrl_core.method.model import AdaptedCLIP

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.remote_function import RemoteFunction

RETRIES = 3
AHEAD = 2  # shards under way for every worker that the cluster has room for: what bounds memory

ReportImages = Callable[[int], None]  # how many are scored


class AdapterToScore(NamedTuple):
    """An adapter with its prompts, as it travels to the nodes."""

    card: CardOfTensors
    tensors: dict[str, Tensor]
    template: str
    text: tuple[Tensor, Tensor]  # adapted and frozen class features (C, E)


class ScoringTask(NamedTuple):
    """What every shard is scored with, as it travels to the nodes."""

    backbone: BackboneSection
    class_names: list[str]
    labels: list[int]
    adapters: list[AdapterToScore]


def score_here(
    models: list[AdaptedCLIP], shards: list[Shard], labels: list[int], report: ReportImages, store: FeatureStore | None
) -> Iterator[list[Encoded]]:
    """Every batch of every shard in order, as each model sees it; each shard is checked before the first is read."""
    for shard in shards:
        check_shard(shard)
    done = 0
    for shard in shards:
        yield from encode_each(models, examples_of(shard), labels, _after(done, report), store)
        done += shard.count


def _after(done: int, report: ReportImages) -> ReportImages:
    """Reports a shard's images on top of the `done` ones of the shards before it."""
    return lambda n: report(done + n)


def score_on_cluster(
    cluster: ClusterSection, task: ScoringTask, shards: list[Shard], report: ReportImages
) -> list[list[Encoded]]:
    """The same by tasks on `cluster`; raises UserError naming the first shard that failed for good."""
    import ray

    for shard in shards:
        check_shard(shard)
    with connected(cluster, Needs(cluster.cpus_per_worker, cluster.gpus_per_worker)):
        shared = ray.put(task)
        score_shard = ray.remote(_score_shard).options(
            num_cpus=cluster.cpus_per_worker, num_gpus=cluster.gpus_per_worker, max_retries=RETRIES,
            retry_exceptions=[OSError], scheduling_strategy="SPREAD",
        )  # fmt: skip
        room = int(ray.cluster_resources().get("CPU", 1) / cluster.cpus_per_worker)
        return _collected(score_shard, shared, shards, cluster.data, max(1, AHEAD * room), report)


def _collected(
    score_shard: "RemoteFunction",
    task: "ObjectRef[ScoringTask]",
    shards: list[Shard],
    data: str | None,
    most: int,
    report: ReportImages,
) -> list[list[Encoded]]:
    """Each shard's batches in order; at most `most` Ray tasks are under way at a time."""
    import ray

    scored: dict[int, list[list[Encoded]]] = {}
    waiting = list(enumerate(shards))[::-1]
    running: dict[ObjectRef[list[list[Encoded]] | None], int] = {}  # to the index of its shard
    while waiting or running:
        while waiting and len(running) < most:
            index, shard = waiting.pop()
            content = packed(shard) if shard.tars else None  # tar files of the user's own are at hand here alone
            running[score_shard.remote(task, shard, data, content)] = index
        [ready], _ = ray.wait(list(running), num_returns=1)
        index = running.pop(ready)
        batches = _result(ready, shards[index])
        if batches is None:  # its node does not find the shard
            running[score_shard.remote(task, shards[index], data, shards[index].path.read_bytes())] = index
            continue
        scored[index] = batches
        report(sum(shards[done].count for done in scored))
    return [batch for index in range(len(shards)) for batch in scored[index]]


def _result(reference: "ObjectRef[list[list[Encoded]] | None]", shard: Shard) -> list[list[Encoded]] | None:
    """What the task of a shard returned. Raises UserError naming the shard when the task failed."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(f"the shard {shard.path} could not be scored on the cluster: {reason}") from error


def _score_shard(
    task: ScoringTask, shard: Shard, data: str | None, content: bytes | None
) -> list[list[Encoded]] | None:
    """The Ray task; None where `content` was not given and this node has no such shard."""
    content = content or _content(shard, data)
    if content is None:
        return None
    return list(encode_each(_models(_ModelsKey(task)), examples_of(shard, content), task.labels))


def _content(shard: Shard, data: str | None) -> bytes | None:
    """The whole shard from `cluster.data` or its own path; raises OSError where that holds another."""
    if data:
        import fsspec

        url = f"{data.rstrip('/')}/{shard.path.relative_to('data')}"
        with fsspec.open(url, "rb") as file:
            content = file.read()
    elif Path(shard.path).is_file():
        url, content = str(shard.path), shard.path.read_bytes()
    else:
        return None
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise OSError(f"{url} is not what the manifest says (sha256 differs)")
    return content


class _ModelsKey(NamedTuple):
    """A task as a key of `_models`: equal by content, since each Ray task unpickles its own copy."""

    task: ScoringTask

    def __hash__(self) -> int:
        return hash((tuple(self.task.class_names), *(adapter.template for adapter in self.task.adapters)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _ModelsKey):
            return False
        mine, theirs = self.task, other.task
        same = (mine.backbone, mine.class_names, len(mine.adapters)) == (
            theirs.backbone, theirs.class_names, len(theirs.adapters))  # fmt: skip
        return same and all(map(_are_equal, mine.adapters, theirs.adapters))


def _are_equal(one: AdapterToScore, other: AdapterToScore) -> bool:
    same = (one.card, one.template) == (other.card, other.template)
    return same and all(tensor.equal(other.tensors[name]) for name, tensor in one.tensors.items())


@functools.lru_cache(maxsize=2)
def _models(key: _ModelsKey) -> list[AdaptedCLIP]:
    """A task's adapted models; a worker process builds them for its first shard and keeps them."""
    from mmrl_core.method.adapter import new_adapter

    names, backbone, models = key.task.class_names, backbone_of(key.task.backbone), []
    for sent in key.task.adapters:
        adapter = new_adapter(sent.card, backbone)
        adapter.load_state_dict({name: tensor.clone() for name, tensor in sent.tensors.items()})
        models.append(AdaptedCLIP(backbone, adapter.to(backbone.device), names, sent.template, text=sent.text))
    return models
