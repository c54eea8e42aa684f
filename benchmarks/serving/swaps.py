"""Every answer belongs wholly to the version that it names, while the alias moves to and fro."""

import asyncio
import json
from collections import Counter

from benchmarks.serving.rate import CLIENTS
from benchmarks.serving.servers import Running, Server, running
from tests.support import serving
from tests.support.clients.connection import Connection, request
from tests.support.serving import picture, promote


def swaps(server: Server, questions: int = 10_000, changes: int = 20) -> None:
    images = [picture(seed) for seed in range(20)]
    expected = {version: serving.predictor(version).predict(images) for version in (1, 2)}
    with running(server) as one:
        before = one.memory()
        found, moved = asyncio.run(moving(one, images, questions, changes))
        print(f"\nmemory before {before:.0f} MB, after {one.memory():.0f} MB", flush=True)
    statuses, versions, worst = Counter[int](), Counter[int](), 0.0
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


async def moving(server: Running, images: list[bytes], questions: int, changes: int) -> tuple[list, int]:
    """Ask until both are done: so many answered and the alias moved `changes` times, each seen by the server."""
    bodies, found, moved = [request("/predict", server.server.body(image)) for image in images], [], 0

    async def client(start: int) -> None:
        number, connection = start, Connection(server.port)
        while len(found) < questions or moved < changes:
            number = (number + 1) % len(images)
            answer = await connection.ask(bodies[number])
            found.append((number, answer.status, answer.body))
        connection.close()

    async def mover() -> None:
        nonlocal moved
        for change in range(changes):
            version = (2, 1)[change % 2]
            await asyncio.to_thread(promote, version)
            while await asyncio.to_thread(server.version) != version:
                await asyncio.sleep(0.1)
            moved += 1
            while len(found) < questions * moved // changes:
                await asyncio.sleep(0.1)

    await asyncio.gather(mover(), *(client(start) for start in range(CLIENTS)))
    return found, moved
