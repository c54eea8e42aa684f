"""The services of infra/compose.yaml started by hand on loopback: their own commands, variables and health checks.

Of the images, PostgreSQL is the one installed here, and Moto stands for the S3-compatible store.
"""

import ast
import base64
import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from moto.server import ThreadedMotoServer

from flows.tracking.store import connect, experiment_id
from tests.support.compose import FILE, IMAGE, Stack
from tests.support.postgres import INSTALLED, psql
from tests.support.processes import end_all

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not INSTALLED, reason="needs PostgreSQL")]


BEFORE = "the0one0before"  # the password of `serving` at an earlier start


def accounts(stack: Stack, password: str) -> subprocess.CompletedProcess:
    """What the server's command does first, with this password for `serving`."""
    environment = stack.environment("mlflow") | {"MMRL_MLFLOW_READER_PASSWORD": password}
    command = [sys.executable, FILE.parent / "mlflow" / "accounts.py"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def stack(postgres_port):
    with tempfile.TemporaryDirectory(prefix="mmrl-", dir="/tmp") as folder:  # Ray wants a short path
        stack = Stack(Path(folder), postgres_port)
        done = psql(postgres_port, FILE.parent / "postgres" / "databases.sql", **stack.environment("postgres"))
        assert done.returncode == 0, done.stderr
        store = ThreadedMotoServer(ip_address="127.0.0.1", port=int(stack.ports["8333"]), verbose=False)
        store.start()
        try:
            bucket_store(stack).create_bucket(Bucket=bucket_of(stack))
            stack.start("prefect")
            stack.start("ray")
            assert accounts(stack, BEFORE).returncode == 0
            stack.start("mlflow")
            for name in ("mlflow", "prefect", "ray"):
                stack.wait_for(name)
            stack.start("worker")
            stack.wait_for("worker")
            yield stack
        finally:
            end_all(stack.token)
            store.stop()


def bucket_store(stack: Stack):
    import boto3

    mlflow = stack.environment("mlflow")
    keys = {name.lower(): mlflow[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    endpoint, region = mlflow["MLFLOW_S3_ENDPOINT_URL"], mlflow["AWS_DEFAULT_REGION"]
    return boto3.client("s3", endpoint_url=endpoint, region_name=region, **keys)


def bucket_of(stack: Stack) -> str:
    """The one that SeaweedFS makes when it starts."""
    (found,) = [word.removeprefix("-bucket=") for word in stack.services["s3"]["command"] if "-bucket=" in word]
    return found


def ask(url: str, method: str = "GET", account: tuple[str, str] | None = None, **headers: str) -> int:
    if account:
        headers["Authorization"] = f"Basic {base64.b64encode(':'.join(account).encode()).decode()}"
    asked = urllib.request.Request(url, b"{}" if method != "GET" else None, headers, method=method)
    try:
        return urllib.request.urlopen(asked, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def account(stack: Stack, service: str) -> tuple[str, str]:
    """The name and the password that a service has at MLflow."""
    environment = stack.environment(service)
    return environment["MLFLOW_TRACKING_USERNAME"], environment["MLFLOW_TRACKING_PASSWORD"]


@pytest.fixture
def become(stack, monkeypatch):
    """Become a service, as far as MLflow knows."""

    def become(service: str) -> MlflowClient:
        name, password = account(stack, service)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        return connect(stack.mlflow)

    return become


def sql(stack: Stack, role: str, database: str, query: str) -> list[tuple]:
    import psycopg2

    password = stack.environment("postgres")[f"{role.upper()}_DB_PASSWORD"]
    where = {"host": "127.0.0.1", "port": stack.ports["5432"]}
    with psycopg2.connect(user=role, password=password, dbname=database, **where) as connection:
        cursor = connection.cursor()
        cursor.execute(query)
        return cursor.fetchall()


def test_each_server_has_a_database_that_the_other_cannot_open(stack):
    import psycopg2

    count = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public' AND table_name = '{}'"
    assert sql(stack, "mlflow", "mlflow", count.format("registered_models")) == [(1,)]
    assert sql(stack, "prefect", "prefect", count.format("flow_run")) == [(1,)]
    with pytest.raises(psycopg2.OperationalError, match="permission denied"):
        sql(stack, "mlflow", "prefect", "SELECT 1")
    assert stack.is_well("postgres")


def test_artifacts_pass_through_the_server_into_the_store(stack, become, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)  # the client knows no keys
    client = become("worker")
    run_id = client.create_run(experiment_id(client, stack.mlflow, "digits")).info.run_id
    (tmp_path / "adapter.json").write_text("{}")
    client.log_artifact(run_id, str(tmp_path / "adapter.json"))
    stored = bucket_store(stack).list_objects_v2(Bucket=bucket_of(stack))["Contents"]
    assert [one["Key"].endswith(f"{run_id}/artifacts/adapter.json") for one in stored] == [True]
    assert Path(become("serving").download_artifacts(run_id, "adapter.json", str(tmp_path / ""))).read_text() == "{}"


def test_predictions_find_a_version_and_its_files_and_can_change_nothing(stack, become, tmp_path):
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    (tmp_path / "adapter.json").write_text("{}")
    writer = become("worker")
    experiment = experiment_id(writer, stack.mlflow, "served")
    model = writer.create_logged_model(experiment)
    writer.log_model_artifact(model.model_id, str(tmp_path / "adapter.json"))
    writer.finalize_logged_model(model.model_id, "READY")
    writer.create_registered_model("served")
    writer.create_model_version("served", model.artifact_location, model_id=model.model_id)
    writer.set_registered_model_alias("served", "released", "1")

    reader = become("serving")
    assert reader.get_model_version_by_alias("served", "released").version == "1"
    assert [one.name for one in reader.search_registered_models()] == ["served"]
    source = reader.get_model_version_download_uri("served", "1")
    got = mlflow.artifacts.download_artifacts(source, dst_path=str(tmp_path / "got"), tracking_uri=stack.mlflow)
    assert (Path(got) / "adapter.json").read_text() == "{}"
    for change in (
        lambda: reader.set_registered_model_alias("served", "released", "1"),
        lambda: reader.delete_registered_model_alias("served", "released"),
        lambda: reader.set_model_version_tag("served", "1", "adapter_sha256", "another"),
        lambda: reader.create_model_version("served", "s3://elsewhere"),
        lambda: reader.delete_model_version("served", "1"),
        lambda: reader.create_registered_model("another"),
        lambda: reader.create_experiment("another"),
        lambda: reader.create_run(experiment),
        lambda: reader.log_model_artifact(model.model_id, str(tmp_path / "adapter.json")),
    ):
        with pytest.raises((MlflowException, HTTPError), match="403"):
            change()
    path = source.removeprefix("mlflow-artifacts:/")
    for where in (f"{path}/adapter.json", "anywhere/adapter.json"):
        place = f"{stack.mlflow}/api/2.0/mlflow-artifacts/artifacts/{where}"
        assert [ask(place, method, account(stack, "serving")) for method in ("PUT", "DELETE")] == [403, 403]


def test_mlflow_answers_to_its_name_among_the_services_and_to_no_strangers(stack):
    page, port = f"{stack.mlflow}/api/2.0/mlflow/registered-models/search", stack.ports["5000"]
    known = account(stack, "serving")
    assert ask(page, account=known, Host=f"mlflow:{port}") == ask(page, account=known, Host=f"localhost:{port}") == 200
    assert ask(page, account=known, Host="attacker.example") == 403
    assert ask(page) == ask(page, account=("mmrl", known[1])) == 401


def test_the_passwords_are_those_of_the_last_start_and_a_short_one_is_refused(stack):
    page = f"{stack.mlflow}/api/2.0/mlflow/registered-models/search"
    assert [ask(page, account=("serving", one)) for one in (BEFORE, account(stack, "serving")[1])] == [401, 200]
    refused = accounts(stack, "short")
    assert refused.returncode != 0 and refused.stderr.startswith(
        "MMRL_MLFLOW_READER_PASSWORD: MLflow takes no password"
    )


def test_prefect_shows_its_page_from_a_folder_that_an_unprivileged_user_may_write_to(stack):
    page = f"http://127.0.0.1:{stack.ports['4200']}/"
    assert ask(page, Accept="text/html") == 200, (stack.folder / "prefect.log").read_text()
    assert [path.name for path in (stack.folder / "prefect-ui").rglob("index.html")]
    assert IMAGE["PREFECT_UI_STATIC_DIRECTORY"].startswith("/home/mmrl/")


def test_the_worker_waits_for_flows_and_is_a_node_without_cores(stack):
    code = "import ray; ray.init(address='auto', logging_level=40); print([n['Resources'] for n in ray.nodes()])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=stack.environment("worker"), cwd=stack.folder, capture_output=True, text=True
    )
    nodes = ast.literal_eval(done.stdout.splitlines()[-1])
    assert sorted("CPU" in node for node in nodes) == [False, True], done.stderr
    pool = f"http://127.0.0.1:{stack.ports['4200']}/api/work_pools/local"
    assert json.load(urllib.request.urlopen(pool))["status"] == "READY"


def test_ray_answers_nobody_without_the_token(stack):
    environment = stack.environment("ray") | {"RAY_AUTH_TOKEN": "another"}
    check = stack.command(stack.services["ray"]["healthcheck"]["test"][1:])
    assert subprocess.run(check, env=environment, capture_output=True).returncode != 0
