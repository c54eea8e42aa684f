"""A store with one registered version, and what there is to see of it."""

from pathlib import Path
from tempfile import TemporaryDirectory

from flows.tracking import store


def fill(uri: str, artifacts: str | None = None) -> None:
    """Register version 1 of `digits` with a file of its own, and name it champion."""
    client = store.connect(uri)
    if artifacts:
        client.create_experiment("digits", artifact_location=artifacts)
    run = client.create_run(store.experiment_id(client, uri, "digits")).info
    with TemporaryDirectory() as folder:
        (Path(folder) / "model").mkdir()
        (Path(folder) / "model" / "adapter.json").write_text('{"of": "version 1"}')
        client.log_artifacts(run.run_id, folder)
    client.create_registered_model("digits")
    client.create_model_version("digits", f"{run.artifact_uri}/model", run_id=run.run_id)
    client.set_registered_model_alias("digits", "champion", "1")


def files_of(uri: str) -> dict[str, bytes]:
    """The files of `digits@champion`, by name."""
    from mlflow.artifacts import download_artifacts

    client = store.connect(uri, create=False)
    version = str(client.get_model_version_by_alias("digits", "champion").version)
    source = client.get_model_version_download_uri("digits", version)
    with TemporaryDirectory() as folder:
        got = Path(download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=uri))
        return {path.name: path.read_bytes() for path in got.rglob("*") if path.is_file()}
