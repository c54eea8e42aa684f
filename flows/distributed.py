"""Training on a Ray cluster: `fit` in Ray Train's workers, its checkpoints in storage that every node reaches.

Only the process that DVC started writes outputs: data, metrics and adapter travel through Ray's object store.
"""

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flows.cluster import Needs, connected, on_this_node
from mmrl_core.checkpoints import Folder
from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.data.shards import Example
from mmrl_core.errors import UserError
from mmrl_core.sections import BackboneSection, ClusterSection

RETRIES = 20  # of a training whose workers or nodes die; each goes on from the last checkpoint
PATIENCE = 5.0  # seconds that Ray may take to settle which checkpoints there are; then what it knows counts
RESIZE_SECONDS = 10.0  # between looks at whether an elastic training could grow
STATE = "state.pt"


class Job(NamedTuple):
    """A training, as it travels to the workers."""

    name: str  # settled by everything that its result depends on: a later job of this name resumes it
    backbone: BackboneSection
    adapter: AdapterConfig
    train: TrainConfig
    examples: list[Example]
    labels: list[int]
    class_names: list[str]
    template: str


class Inbox:
    """What the workers have said so far; an actor on the driver's node."""

    def __init__(self):
        self.epochs: list[dict[str, float]] = []
        self.trained, self.failure, self.workers = None, None, 0

    def epoch(self, epoch: int, metrics: dict[str, float], workers: int) -> None:
        self.workers = workers
        if epoch == len(self.epochs):
            self.epochs.append(metrics)

    def finish(self, trained: "Trained") -> None:
        self.trained = trained

    def fail(self, reason: str) -> None:
        self.failure = reason

    def news(self, known: int) -> tuple[list[dict[str, float]], int]:
        """Epochs beyond the known ones, and how many workers there are."""
        return self.epochs[known:], self.workers

    def result(self) -> tuple["Trained | None", str | None]:
        return self.trained, self.failure


class Trained(NamedTuple):
    """An adapter's tensors as safetensors bytes, the metrics of all epochs, the precision that the workers had."""

    adapter: bytes
    history: list[dict[str, float]]
    precision: str


def train_on_cluster(
    cluster: ClusterSection, job: Job, storage: Path, report: Callable[[int, dict, int], None]
) -> Trained:
    """Train on `cluster`; `report(epoch, metrics, workers)` is called as epochs end.

    Without `cluster.storage`, and on one node, checkpoints lie below the folder `storage`. A driver that is killed
    resumes when it is started again, on any number of workers. Raises UserError as `fit` does, and for a cluster of
    several nodes without storage.
    """
    with connected(cluster, Needs(cluster.cpus_per_worker, cluster.gpus_per_worker, cluster.worker_range[0])):
        import ray

        where = cluster.storage or _local_storage(storage)
        inbox = on_this_node(Inbox).remote()
        with _reporting(inbox, report):
            _run(cluster, job, where, inbox)
        trained, failure = ray.get(inbox.result.remote())
        if failure or trained is None:
            raise UserError(failure or "training ended without an adapter; see Ray's logs, and start it again")
        _remove(where, job.name)
        return trained


def _local_storage(folder: Path) -> str:
    import ray

    if sum(node["Alive"] for node in ray.nodes()) > 1:
        raise UserError(
            "cluster.storage is null, but the cluster has several nodes: name a path or URI that every node reaches, "
            "such as s3://bucket/folder"
        )
    return str(folder.absolute())


def _run(cluster: ClusterSection, job: Job, storage: str, inbox) -> None:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from flows.rendezvous import OverRaysNetwork

    least, most = cluster.worker_range
    scaling = ScalingConfig(
        num_workers=most if least == most else (least, most),
        use_gpu=cluster.gpus_per_worker > 0,
        resources_per_worker={"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker},
        **({} if least == most else {"elastic_resize_monitor_interval_s": RESIZE_SECONDS}),
    )
    run = RunConfig(
        name=job.name,
        storage_path=storage,
        checkpoint_config=CheckpointConfig(num_to_keep=2),
        failure_config=FailureConfig(max_failures=RETRIES),
    )
    here = str(Path(storage) / job.name) if Path(storage).is_absolute() else None
    loop = {"job": ray.put(job), "inbox": inbox, "folder": here}
    try:
        TorchTrainer(  # looks at the storage first
            _work, train_loop_config=loop, torch_config=OverRaysNetwork(), scaling_config=scaling, run_config=run
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
    from mmrl_core.training import fit
    from mmrl_core.workers import Distributed

    job: Job = ray.get(config["job"])
    inbox, workers = config["inbox"], Distributed()
    backbone = _loaded(job.backbone, inbox, workers, ray_train.torch.get_device())
    if backbone is None:
        return
    data = image_set(job.examples, job.labels, job.class_names, job.template)

    def report(epoch: int, metrics: dict[str, float]) -> None:
        if workers.rank == 0:
            ray.get(inbox.epoch.remote(epoch, metrics, workers.size))

    try:
        fitted = fit(
            backbone, job.adapter, job.train, data,
            report=report, checkpoints=RayCheckpoints(workers.rank, config["folder"]), workers=workers,
        )  # fmt: skip
    except UserError as error:  # every worker meets it: trying again would not help
        ray.get(inbox.fail.remote(str(error)))
        return
    if workers.rank == 0:
        state = {name: tensor.cpu().contiguous() for name, tensor in fitted.adapter.state_dict().items()}
        ray.get(inbox.finish.remote(Trained(save(state), fitted.history, fitted.precision)))


def _loaded(section: BackboneSection, inbox, workers, device):
    """The backbone; None, on every worker, where one of them cannot have it: the others would wait for it for ever."""
    import ray
    import torch

    from flows.backbones import backbone_of

    backbone, failed = None, 0.0
    try:
        backbone = backbone_of(section)
    except UserError as error:
        failed = 1.0
        ray.get(inbox.fail.remote(f"{ray.util.get_node_ip_address()}: {error}"))
    return None if float(workers.sum(torch.tensor([failed], device=device))) else backbone


class RayCheckpoints:
    """Checkpoints through Ray Train: the first worker's file, all workers report.

    Where Ray has none, those that a training in one process left in `folder` are gone on from.
    """

    def __init__(self, rank: int, folder: str | None):
        self.rank, self.folder = rank, folder

    def save(self, content: bytes, epoch: int, step: int) -> None:
        from ray import train as ray_train

        if self.rank:
            ray_train.report({"epoch": epoch, "step": step})
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / STATE).write_bytes(content)
            checkpoint = ray_train.Checkpoint.from_directory(folder)
            ray_train.report({"epoch": epoch, "step": step}, checkpoint=checkpoint)

    def load(self) -> Iterator[tuple[str, bytes]]:
        from ray import train as ray_train

        if ray_train.get_checkpoint():
            kept = [one.checkpoint for one in ray_train.get_all_reported_checkpoints(timeout_s=PATIENCE)]
            for checkpoint in sorted(kept, key=lambda one: one.path, reverse=True):  # they are named by time
                with checkpoint.as_directory() as folder:
                    yield checkpoint.path, (Path(folder) / STATE).read_bytes()
        elif self.folder:
            yield from Folder(self.folder).load()


@contextlib.contextmanager
def _reporting(inbox, report: Callable[[int, dict, int], None]) -> Iterator[None]:
    """Pass on what comes into the inbox while the block waits for the training."""
    import ray

    done, known = threading.Event(), 0

    def pass_on() -> None:
        nonlocal known
        epochs, workers = ray.get(inbox.news.remote(known))
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


def _remove(storage: str, name: str) -> None:
    """The checkpoints of a training that is through."""
    if Path(storage).is_absolute():
        shutil.rmtree(Path(storage) / name, ignore_errors=True)
        return
    import pyarrow.fs

    with contextlib.suppress(OSError, ValueError):
        system, path = pyarrow.fs.FileSystem.from_uri(storage)
        system.delete_dir(os.path.join(path, name))
