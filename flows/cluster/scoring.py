"""Scoring shards: one after another in this process, or one task a shard on a Ray cluster. The figures are the same.

Adapter and class features are sent once; shards are read where a node finds them, or travel there. A shard that cannot
be scored, after retries on other nodes, fails the evaluation.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from flows.cluster.connection import Needs, connected
from flows.project.resources import backbone_of
from flows.settings.sections import BackboneSection, ClusterSection
from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.config import AdapterConfig
from mmrl_core.data.shards import Shard, check_shard, examples_of
from mmrl_core.errors import UserError
from mmrl_core.evaluation.scores import Scores, score_each
from mmrl_core.method.model import AdaptedCLIP

RETRIES = 3
AHEAD = 2  # shards under way for every worker that the cluster has room for: what bounds memory

Report = Callable[[int], None]


class Examinee(NamedTuple):
    """An adapter with its prompts, as it travels."""

    adapter: AdapterConfig
    tensors: dict[str, Tensor]
    template: str
    text: tuple[Tensor, Tensor]  # adapted and frozen class features (C, E)


class Exam(NamedTuple):
    """What every shard is scored with, as it travels."""

    backbone: BackboneSection
    class_names: list[str]
    labels: list[int]
    fused: list[int]  # labels that get the fused logits
    examinees: list[Examinee]


def score_here(
    models: list[AdaptedCLIP], shards: list[Shard], labels: list[int], fused: list[int], report: Report,
    store: FeatureStore | None,
) -> Iterator[list[Scores]]:  # fmt: skip
    """Every shard's scores in order, each model's; each shard is checked before the first is scored."""
    for shard in shards:
        check_shard(shard)
    done = 0
    for shard in shards:
        yield score_each(models, examples_of(shard), labels, fused, lambda n, done=done: report(done + n), store)
        done += shard.count


def score_on_cluster(cluster: ClusterSection, exam: Exam, shards: list[Shard], report: Report) -> list[list[Scores]]:
    """The same by tasks on `cluster`; raises UserError naming the first shard that failed for good."""
    import ray

    for shard in shards:
        check_shard(shard)
    with connected(cluster, Needs(cluster.cpus_per_worker, cluster.gpus_per_worker)):
        shared = ray.put(exam)
        task = ray.remote(_score_shard).options(
            num_cpus=cluster.cpus_per_worker, num_gpus=cluster.gpus_per_worker, max_retries=RETRIES,
            retry_exceptions=[OSError], scheduling_strategy="SPREAD",
        )  # fmt: skip
        room = int(ray.cluster_resources().get("CPU", 1) / cluster.cpus_per_worker)
        return _collected(task, shared, shards, cluster.data, max(1, AHEAD * room), report)


def _collected(task, shared, shards: list[Shard], data: str | None, most: int, report: Report) -> list[list[Scores]]:
    import ray

    found: dict[int, list[Scores]] = {}
    waiting, running = list(enumerate(shards))[::-1], {}
    while waiting or running:
        while waiting and len(running) < most:
            index, shard = waiting.pop()
            running[task.remote(shared, shard, data, None)] = index
        [ready], _ = ray.wait(list(running), num_returns=1)
        index = running.pop(ready)
        scores = _result(ready, shards[index])
        if scores is None:  # its node does not find the shard
            running[task.remote(shared, shards[index], data, shards[index].path.read_bytes())] = index
            continue
        found[index] = scores
        report(sum(shards[one].count for one in found))
    return [found[index] for index in range(len(shards))]


def _result(reference, shard: Shard) -> list[Scores] | None:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(f"the shard {shard.path} could not be scored on the cluster: {reason}") from error


def _score_shard(exam: Exam, shard: Shard, data: str | None, content: bytes | None) -> list[Scores] | None:
    """A task; None where the shard is not to be found on this node and did not come along."""
    content = content or _content(shard, data)
    if content is None:
        return None
    return score_each(_models(_Once(exam)), examples_of(shard, content), exam.labels, exam.fused)


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


class _Once(NamedTuple):
    """An exam that is told by its classes and tensors, so that a process builds its models once."""

    exam: Exam

    def __hash__(self) -> int:
        return hash((tuple(self.exam.class_names), *(one.template for one in self.exam.examinees)))

    def __eq__(self, other) -> bool:
        mine, theirs = self.exam, other.exam
        same = (mine.backbone, mine.class_names, len(mine.examinees)) == (
            theirs.backbone, theirs.class_names, len(theirs.examinees))  # fmt: skip
        return same and all(map(_are_equal, mine.examinees, theirs.examinees))


def _are_equal(one: Examinee, other: Examinee) -> bool:
    same = (one.adapter, one.template) == (other.adapter, other.template)
    return same and all(tensor.equal(other.tensors[name]) for name, tensor in one.tensors.items())


@functools.lru_cache(maxsize=2)
def _models(once: _Once) -> list[AdaptedCLIP]:
    from mmrl_core.method.adapter import Adapter

    exam, backbone, models = once.exam, backbone_of(once.exam.backbone), []
    for one in exam.examinees:
        adapter = Adapter(one.adapter, backbone)
        adapter.load_state_dict({name: tensor.clone() for name, tensor in one.tensors.items()})
        models.append(AdaptedCLIP(backbone, adapter.to(backbone.device), exam.class_names, one.template, text=one.text))
    return models
