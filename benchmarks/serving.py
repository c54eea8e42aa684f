"""Serving with the bundled backbone: `python -m benchmarks.serving batched|single|mlflow|swaps|malformed`.

The first three put a load from a second process on `mmrl serve`, with batches and without, and on `mlflow models serve`
with the same model; the others count what is lost, mixed up or failed.
"""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.support import serving
from tests.support.processes import TOKEN, command_of, end_all, processes_with, wait_until
from tests.support.serving import URI, in_base64, picture, promote, register
from tests.support.workspace import BIN, ROOT, environment, write_params

SECONDS, CLIENTS = 60, 16
MMRL, MLFLOW = "mmrl", "mlflow"


async def ask(address: str, bodies: list[tuple[str, str]], clients: int, seconds: float, most: int) -> list:
    """(seconds, status, answer) of every request of `clients` that each ask again as soon as they are answered."""
    import aiohttp

    found: list = []
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:
        end, asked = time.perf_counter() + seconds, iter(range(most))

        async def client() -> None:
            for number in asked:
                began = time.perf_counter()
                if began > end:
                    return
                path, body = bodies[number % len(bodies)]
                async with session.post(address + path, data=body) as response:
                    text = await response.text()
                found.append((time.perf_counter() - began, response.status, text))

        await asyncio.gather(*(client() for _ in range(clients)))
    return found


def body(kind: str, image: bytes) -> tuple[str, str]:
    """Path and JSON of one image, as the two servers take it."""
    if kind == MMRL:
        return "/predict", json.dumps({"image": in_base64(image)})
    return "/invocations", json.dumps({"dataframe_split": {"columns": ["image"], "data": [[in_base64(image)]]}})


def load(address: str, kind: str, clients: int, seconds: float) -> dict:
    """The second process: warms up for a tenth of the time, then measures."""
    bodies = [body(kind, picture(seed)) for seed in range(50)]
    asyncio.run(ask(address, bodies, clients, seconds / 10, sys.maxsize))
    began = time.perf_counter()
    found = asyncio.run(ask(address, bodies, clients, seconds, sys.maxsize))
    taken = sorted(one[0] for one in found)
    statuses = Counter(one[1] for one in found)
    rate = round(len(found) / (time.perf_counter() - began), 1)
    middle, late = (round(taken[len(taken) * share // 100] * 1e3, 1) for share in (50, 99))
    return {"per_second": rate, "statuses": dict(statuses), "p50_ms": middle, "p99_ms": late}


def in_a_second_process(*arguments: object) -> dict:
    command = [sys.executable, "-m", "benchmarks.serving", "load", *map(str, arguments)]
    done = subprocess.run(command, env=environment() | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """MLflow's own scoring server with one worker."""
    port = free_port()
    command = [str(BIN / "mlflow"), "models", "serve", "-m", URI, "--env-manager", "local", "-w", "1", "-p", str(port)]
    token = f"mmrl-{port}"
    variables = environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", TOKEN: token,
                                 "MLFLOW_DISABLE_TELEMETRY": "true"}  # fmt: skip
    with open(folder / "mlflow.err", "w") as log:
        subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/ping"), 120, lambda: "mlflow models serve")
        yield f"http://127.0.0.1:{port}"
    finally:
        end_all(token)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url).status_code == 200
    return False


def rate(folder: Path, what: str, seconds: float) -> None:
    """Requests a second and latencies of one server, at one client and at many."""
    options = ("--set", "serving.batch_size=1") if what == "single" else ()
    with mlflow_server(folder) if what == MLFLOW else serving.serve(folder, *options) as server:
        address, kind = (server, MLFLOW) if what == MLFLOW else (server.address, MMRL)
        for clients, duration in ((1, seconds / 6), (CLIENTS, seconds)):
            show(what, clients, in_a_second_process(address, kind, clients, duration))


def show(name: str, clients: int, found: dict) -> None:
    print(f"{name}, {clients} at a time: {json.dumps(found)}", flush=True)


def swaps(folder: Path, requests: int = 10_000, changes: int = 20) -> None:
    """Every answer belongs wholly to the version that it names, while the alias moves to and fro."""
    images = [picture(seed) for seed in range(20)]
    expected = {version: serving.predictor(version).predict(images) for version in (1, 2)}
    with serving.serve(folder, "--set", "serving.poll_seconds=0.5") as server:
        before = memory(server.token)
        found, moved = asyncio.run(moving(server.address, images, requests, changes, server))
        print(f"memory before {before} MB, after {memory(server.token)} MB", flush=True)
    statuses, versions, worst = Counter(), Counter(), 0.0
    for number, status, text in found:
        statuses[status] += 1
        answer = json.loads(text)
        version = answer["model"]["version"]
        versions[version] += 1
        wanted = expected[version][number].probabilities
        worst = max(worst, *(abs(wanted[name] - value) for name, value in answer["probabilities"].items()))
    apart = min(abs(a.probability - b.probabilities[a.label]) for a, b in zip(*expected.values(), strict=True))
    print(f"{len(found)} answers {dict(statuses)}, versions {dict(versions)}, {moved} changes seen; farthest from the "
          f"named version {worst:.1e}, versions at least {apart:.1e} apart", flush=True)  # fmt: skip


async def moving(address: str, images: list[bytes], requests: int, changes: int, server) -> tuple[list, int]:
    """Ask until both are done: `requests` answered and the alias moved `changes` times, each seen by the server."""
    import aiohttp

    bodies, found, moved = [body(MMRL, image) for image in images], [], 0
    headers = {"Content-Type": "application/json"}

    async def client(session, start: int) -> None:
        number = start
        while len(found) < requests or moved < changes:
            number = (number + 1) % len(images)
            async with session.post(address + bodies[number][0], data=bodies[number][1]) as response:
                found.append((number, response.status, await response.text()))

    async def mover() -> None:
        nonlocal moved
        for change in range(changes):
            version = (2, 1)[change % 2]
            await asyncio.to_thread(promote, version)
            while await asyncio.to_thread(server.version) != version:
                await asyncio.sleep(0.1)
            moved += 1
            while len(found) < requests * moved // changes:
                await asyncio.sleep(0.1)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:
        await asyncio.gather(mover(), *(client(session, start) for start in range(CLIENTS)))
    return found, moved


def malformed(folder: Path, questions: int = 2000) -> None:
    """Half against the OpenAPI description, half damaged otherwise: statuses, and the memory after each round."""
    import random

    draw, image = random.Random(0), picture(0)
    with serving.serve(folder) as server, httpx.Client(base_url=server.address, timeout=60) as client:
        for _ in range(20):
            server.predict(image)
        statuses: Counter = Counter()
        print(f"before: {memory(server.token)} MB", flush=True)
        for part in range(4):
            against_the_description(server.address, questions // 8, part, statuses)
            for _ in range(questions // 8):
                statuses[client.post("/predict", **bad_question(draw, image)).status_code] += 1
            print(f"after {statuses.total()}: {memory(server.token)} MB, {dict(statuses)}", flush=True)


def against_the_description(address: str, questions: int, seed: int, statuses: Counter) -> None:
    """Count the statuses of questions that Schemathesis makes to violate the description."""
    import hypothesis
    import schemathesis
    from schemathesis.generation import GenerationMode

    operation = schemathesis.openapi.from_url(f"{address}/openapi.json")["/predict"]["POST"]

    @hypothesis.seed(seed)
    @hypothesis.given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    @hypothesis.settings(max_examples=questions, deadline=None, database=None,
                         suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
    def one(case) -> None:
        statuses[case.call().status_code] += 1

    one()


def bad_question(draw, image: bytes) -> dict:
    """One of the ways in which a request is wrong."""
    noise, cut = draw.randbytes(draw.randrange(20_000)), image[: draw.randrange(1, len(image))]
    torn = bytearray(image)
    for _ in range(20):
        torn[draw.randrange(8, len(image))] = draw.randrange(256)
    name = "x" * draw.randrange(201, 5000)
    good = in_base64(image)
    return draw.choice([
        {"files": {"image": noise}}, {"files": {"image": cut}}, {"files": {"image": bytes(12_000_000)}},
        {"files": {"other": image}}, {"files": {"image": image}, "data": {"top_k": "x"}},
        {"json": {"image": in_base64(noise)}}, {"json": {"image": in_base64(bytes(torn))[:-5]}},
        {"json": {"image": good, "class_names": [name]}}, {"json": {"image": good, "class_names": [""]}},
        {"json": {"image": good, "unknown": name}}, {"json": {"image": 1}}, {"json": [name] * 100},
        {"content": noise, "headers": {"content-type": "application/json"}},
        {"content": noise, "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"content": b"--x\r\n" + noise, "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"content": noise, "headers": {"content-type": name}},
    ])  # fmt: skip


def memory(token: str) -> dict[str, int]:
    """Megabytes of the replica and the proxy."""
    found = {}
    for pid in processes_with(token):
        name = command_of(pid).split(":")[2:3]
        if name and name[0] in ("ServeReplica", "ProxyActor"):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            found[name[0]] = pages * os.sysconf("SC_PAGE_SIZE") // 2**20
    return found


def main(what: str, *arguments: str) -> None:
    if what == "load":
        address, kind, clients, seconds = arguments
        print(json.dumps(load(address, kind, int(clients), float(seconds))))
        return
    folder = Path(tempfile.mkdtemp(prefix="mmrl-serving-"))
    os.chdir(folder)
    try:
        write_params(folder)
        for seed in (1, 2):
            register(seed)
        promote(1)
        if what == "swaps":
            swaps(folder)
        elif what == "malformed":
            malformed(folder)
        else:
            rate(folder, what, float(arguments[0]) if arguments else SECONDS)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
