"""A store of the S3 protocol (moto's) in the test's own process, with a gate: it decides how far a training comes."""

import contextlib
import functools
import math
import re
import threading
from collections.abc import Iterator

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "runs"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class Store:
    """Checkpoints of more epochs than `let_in` wait at the gate, and the worker that writes them waits too."""

    def __init__(self):
        self.address, self.client = "", None
        self._app, self._moved = DomainDispatcherApplication(create_backend_app), threading.Condition()
        self._most: float = math.inf
        self._waiting: list[str] = []

    def __call__(self, environ, start_response):
        if environ["REQUEST_METHOD"] in ("PUT", "POST") and epochs_of(environ["PATH_INFO"]):
            self._pass_gate(environ["PATH_INFO"])
        return self._app(environ, start_response)

    def _pass_gate(self, path: str) -> None:
        with self._moved:
            self._waiting.append(path)
            self._moved.wait_for(lambda: epochs_of(path) <= self._most)
            self._waiting.remove(path)

    def let_in(self, epochs: float) -> None:
        """Checkpoints of so many epochs, and no more."""
        with self._moved:
            self._most = epochs
            self._moved.notify_all()

    def waits(self, epochs: int, trainings: int = 1) -> bool:
        """Whether those of so many epochs are at the gate; then all before them are written."""
        return len({path for path in [*self._waiting] if epochs_of(path) == epochs}) == trainings

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it by plain s3:// URIs."""
        return {**KEYS, "AWS_ENDPOINT_URL": f"http://{self.address}"}

    def uri(self, folder: str) -> str:
        return f"s3://{BUCKET}/{folder}?scheme=http&endpoint_override={self.address}"

    def checkpoints(self, folder: str) -> dict[int, str]:
        """Keys by epochs."""
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=folder).get("Contents", [])
        return {epochs_of(one["Key"]): one["Key"] for one in found if epochs_of(one["Key"])}

    def written(self, folder: str) -> dict[int, tuple[str, bytes]]:
        """Keys and contents by epochs, those that were removed since included."""
        found = self.client.list_object_versions(Bucket=BUCKET, Prefix=folder)["Versions"]
        kept = [(one["Key"], one["VersionId"]) for one in found if epochs_of(one["Key"])]
        get = functools.partial(self.client.get_object, Bucket=BUCKET)
        return {epochs_of(key): (key, get(Key=key, VersionId=version)["Body"].read()) for key, version in kept}

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)


def epochs_of(path: str) -> int:
    """Whole epochs behind a checkpoint; 0 for other files."""
    found = re.search(r"/checkpoint-(\d{8})-\d{8}\.pt$", path)
    return int(found[1]) if found else 0


class Silent(WSGIRequestHandler):
    def log(self, *args) -> None:
        pass


@contextlib.contextmanager
def s3_store(host: str = "127.0.0.1") -> Iterator[Store]:
    """A store that processes reach at this address; one of no interface yet may be given."""
    store = Store()
    server = make_server("0.0.0.0", 0, store, threaded=True, request_handler=Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    store.address = f"{host}:{server.port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        store.client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{server.port}")
        store.client.create_bucket(Bucket=BUCKET)
        store.client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        try:
            yield store
        finally:
            store.let_in(math.inf)
            server.shutdown()
            thread.join()
