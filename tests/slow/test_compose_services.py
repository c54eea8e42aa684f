"""The services of infra/compose.yaml started by hand on loopback: their own commands, variables and health checks.

Of the images, PostgreSQL is the one installed here, and Moto stands for the S3-compatible store.
"""

import ast
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from tests.support.compose import FILE, resolved, variables
from tests.support.postgres import INSTALLED, free_port, program, psql
from tests.support.processes import PATIENCE, TOKEN, end_all, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not INSTALLED, reason="needs PostgreSQL")]

PORTS = ("5432", "8333", "5000", "4200", "6379", "8265", "8080")
HOSTS = re.compile(r"(//|@|address=)(postgres|s3|mlflow|prefect|ray):(?=\d)")


class Stack:
    """Services as processes, each port of the file standing for a free one of this machine."""

    def __init__(self, folder: Path, postgres_port: int):
        self.folder, self.token = folder, uuid.uuid4().hex
        self.processes: dict[str, subprocess.Popen] = {}
        self.ports = {port: str(free_port()) for port in PORTS} | {"5432": str(postgres_port)}
        self.services = resolved({name: f"secret0{name.replace('_', '0')}" for name in variables()})["services"]

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.ports['5000']}"

    def start(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("w") as log:
            command = self.command(self.services[name]["command"])
            self.processes[name] = subprocess.Popen(
                command, env=self.environment(name), cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )

    def wait_for(self, name: str) -> None:
        log = self.folder / f"{name}.log"

        def well() -> bool:
            assert self.processes[name].poll() is None, f"{name} ended: {log.read_text()[-3000:]}"
            return self.listens(name) and self.is_well(name)

        wait_until(well, PATIENCE, lambda: f"{name}: {log.read_text()[-3000:]}")

    def listens(self, name: str) -> bool:
        """Whether something answers where the health check asks, which is a process of a second or more."""
        port = re.search(r"127\.0\.0\.1:(\d+)", self.here(" ".join(self.services[name]["healthcheck"]["test"])))[1]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(port))) == 0

    def is_well(self, name: str) -> bool:
        """By the health check in the file."""
        check = self.command(self.services[name]["healthcheck"]["test"][1:])
        return subprocess.run(check, env=self.environment(name), capture_output=True).returncode == 0

    def environment(self, name: str) -> dict[str, str]:
        own = {key: self.here(value) for key, value in self.services[name]["environment"].items()}
        here = {
            TOKEN: self.token,
            "PATH": f"{Path(sys.executable).parent}:{program('psql').parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "RAY_TMPDIR": str(self.folder),
            "PREFECT_UI_STATIC_DIRECTORY": str(self.folder / "prefect-ui"),
            "PREFECT_WORKER_WEBSERVER_PORT": self.ports["8080"],
            "PGPORT": self.ports["5432"],
        }
        return os.environ | IMAGE | own | here

    def command(self, words: list[str]) -> list[str]:
        return [self.here(word) for word in words]

    def here(self, text: str) -> str:
        text = HOSTS.sub(r"\g<1>127.0.0.1:", text).replace("0.0.0.0", "127.0.0.1")
        return re.sub(r"\b\d{4}\b", lambda match: self.ports.get(match[0], match[0]), text)


def image() -> dict[str, str]:
    """The variables of the image."""
    return dict(re.findall(r"(\w+)=(\S+)", (FILE.parent / "docker" / "Dockerfile").read_text().partition("\nENV ")[2]))


IMAGE = image()


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
            for name in ("mlflow", "prefect", "ray"):
                stack.start(name)
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


def ask(url: str, **headers: str) -> int:
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


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


def test_artifacts_pass_through_the_server_into_the_store(stack, tmp_path, monkeypatch):
    from flows.tracking.store import connect, experiment_id

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)  # the client knows no keys
    client = connect(stack.mlflow)
    run_id = client.create_run(experiment_id(client, stack.mlflow, "digits")).info.run_id
    (tmp_path / "adapter.json").write_text("{}")
    client.log_artifact(run_id, str(tmp_path / "adapter.json"))
    stored = bucket_store(stack).list_objects_v2(Bucket=bucket_of(stack))["Contents"]
    assert [one["Key"].endswith(f"{run_id}/artifacts/adapter.json") for one in stored] == [True]
    assert Path(client.download_artifacts(run_id, "adapter.json", str(tmp_path / ""))).read_text() == "{}"


def test_mlflow_answers_to_its_name_among_the_services_and_to_no_strangers(stack):
    page, port = f"{stack.mlflow}/api/2.0/mlflow/registered-models/search", stack.ports["5000"]
    assert ask(page, Host=f"mlflow:{port}") == ask(page, Host=f"localhost:{port}") == 200
    assert ask(page, Host="attacker.example") == 403


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
