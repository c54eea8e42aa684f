"""Training on a Ray cluster: `fit` in Ray Train's workers, its checkpoints in storage that every node reaches.

Only the process that DVC started writes outputs: data, metrics and adapter travel through Ray's object store.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.cluster.connection import Needs, connected, on_this_node
from flows.cluster.progress_actor import ProgressActor, Trained
from flows.cluster.storage import Local, Remote, open_storage, reached_storage
from flows.settings.sections import BackboneSection, ClusterSection
from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.data.shards import Example
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    import torch
    from ray.actor import ActorHandle

    from mmrl_core.clip.backbone import Backbone
    from mmrl_core.distributed import Workers

RETRIES = 20  # of a training whose workers or nodes die; each goes on from the last checkpoint
RESIZE_SECONDS = 10.0  # between looks at whether an elastic training could grow

ReportEpoch = Callable[[int, dict[str, float], int], None]  # epoch, its metrics, number of workers


class TrainingJob(NamedTuple):
    """A training, as it travels to the workers."""

    name: str  # settled by everything that its result depends on: a later job of this name resumes it
    backbone: BackboneSection
    adapter: AdapterConfig
    train: TrainConfig
    examples: list[Example]
    val: list[Example]  # of the same classes
    labels: list[int]
    class_names: list[str]
    template: str


def train_on_cluster(cluster: ClusterSection, job: TrainingJob, storage: Path, report: ReportEpoch) -> Trained:
    """Train on `cluster`; `report(epoch, metrics, workers)` is called as epochs end.

    Without `cluster.storage`, and on one node, checkpoints lie below the folder `storage`. A driver that is killed
    resumes when it is started again, on any number of workers. Raises UserError as `fit` does, and for a cluster of
    several nodes without storage.
    """
    with connected(cluster, Needs(cluster.cpus_per_worker, cluster.gpus_per_worker, cluster.worker_range[0])):
        import ray

        where = cluster.storage or _local_storage(storage)
        progress = on_this_node(ProgressActor).remote()
        with _reporting(progress, report):
            _run(cluster, job, where, progress)
        trained, failure = ray.get(progress.result.remote())
        if failure or trained is None:
            raise UserError(failure or "training ended without an adapter; see Ray's logs, and start it again")
        open_storage(where, job.name).remove()
        return trained


def _local_storage(folder: Path) -> str:
    import ray

    if sum(node["Alive"] for node in ray.nodes()) > 1:
        raise UserError(
            "cluster.storage is null, but the cluster has several nodes: name a path or URI that every node reaches, "
            "such as s3://bucket/folder"
        )
    return str(folder.absolute())


def _run(cluster: ClusterSection, job: TrainingJob, storage: str, progress: "ActorHandle") -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from flows.cluster.rendezvous import RayNetworkConfig

    least, most = cluster.worker_range
    scaling = ScalingConfig(
        num_workers=most if least == most else (least, most),
        use_gpu=cluster.gpus_per_worker > 0,
        resources_per_worker={"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker},
        **({} if least == most else {"elastic_resize_monitor_interval_s": RESIZE_SECONDS}),
    )
    run = RunConfig(name=job.name, storage_path=storage, failure_config=FailureConfig(max_failures=RETRIES))
    loop = {"job": ray.put(job), "progress": progress, "storage": storage}
    try:
        TorchTrainer(  # looks at the storage first, and makes the folder
            _work, train_loop_config=loop, torch_config=RayNetworkConfig(), scaling_config=scaling, run_config=run
        ).fit()
    except (ray.train.TrainingFailedError, OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(f"training on the cluster failed, checkpoints in {storage}: {reason}") from error


def _work(config: dict[str, Any]) -> None:
    """One worker: the same `fit` as in one process."""
    import ray
    from ray import train as ray_train
    from safetensors.torch import save

    from mmrl_core.data.sets import image_set
    from mmrl_core.distributed import Distributed
    from mmrl_core.training.fit import fit

    job: TrainingJob = ray.get(config["job"])
    progress, workers = config["progress"], Distributed()
    needed = _needed(job, config["storage"], progress, workers, ray_train.torch.get_device())
    if needed is None:
        return
    backbone, checkpoints = needed
    data, val = (image_set(of, job.labels, job.class_names, job.template) for of in (job.examples, job.val))

    def report(epoch: int, metrics: dict[str, float]) -> None:
        if workers.rank == 0:
            ray.get(progress.epoch.remote(epoch, metrics, workers.size))

    try:
        fitted = fit(backbone, job.adapter, job.train, data, val=val, report=report, checkpoints=checkpoints,
                     workers=workers)  # fmt: skip
    except UserError as error:  # every worker meets it: trying again would not help
        ray.get(progress.fail.remote(str(error)))
        return
    if workers.rank == 0:
        state = {name: tensor.cpu().contiguous() for name, tensor in fitted.adapter.state_dict().items()}
        ray.get(progress.finish.remote(Trained(save(state), fitted.history, fitted.precision)))


def _needed(
    job: TrainingJob, storage: str, progress: "ActorHandle", workers: "Workers", device: "torch.device"
) -> "tuple[Backbone, Local | Remote] | None":
    """Backbone and checkpoints; None, on every worker, where one of them lacks either: the others would wait for it."""
    import ray
    import torch

    from flows.project.resources import backbone_of

    needed, failed = None, 0.0
    try:
        needed = backbone_of(job.backbone), reached_storage(storage, job.name)
    except UserError as error:
        failed = 1.0
        ray.get(progress.fail.remote(f"{ray.util.get_node_ip_address()}: {error}"))
    return None if float(workers.sum(torch.tensor([failed], device=device))) else needed


@contextlib.contextmanager
def _reporting(progress: "ActorHandle", report: ReportEpoch) -> Iterator[None]:
    """Pass on what the workers report while the block waits for the training."""
    import ray

    done, known = threading.Event(), 0

    def pass_on() -> None:
        nonlocal known
        epochs, workers = ray.get(progress.news.remote(known))
        for metrics in epochs:
            report(known, metrics, workers)
            known += 1

    def watch() -> None:
        while not done.wait(0.5):
            pass_on()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    pass_on()
