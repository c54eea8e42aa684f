"""Twenty thousand questions of all kinds: statuses, and the memory before and after."""

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator

from benchmarks.serving.rate import CLIENTS
from benchmarks.serving.servers import Running, Server, running
from tests.support.clients.connection import Connection, request
from tests.support.serving import in_base64, picture

KINDS = {"good": 60, "other classes": 10, "malformed": 15, "slow": 5, "gone": 10}  # shares in %
STEPS, BOUND = 5, 500  # MB


def soak(server: Server, questions: int = 20_000) -> None:
    kinds, statuses = drawn(), Counter[str]()
    with running(server) as one:
        asyncio.run(asked(one, kinds, 200, Counter()))
        before = one.memory()
        print(f"\nsoak, before: {before:.0f} MB", flush=True)
        for step in range(1, STEPS + 1):
            asyncio.run(asked(one, kinds, questions // STEPS, statuses))
            print(f"after {step * questions // STEPS}: {one.memory():.0f} MB", flush=True)
        grown = one.memory() - before
        alive = one.get("/healthz").status_code == 200
    print(f"{grown:.0f} MB more (wanted: at most {BOUND}), {'alive' if alive else 'NOT ALIVE'}; statuses by kind:")
    for kind in KINDS:
        own = {name.partition(": ")[2]: count for name, count in sorted(statuses.items()) if name.startswith(kind)}
        print(f"  {kind}: {own}", flush=True)


def drawn() -> Iterator[tuple[str, bytes]]:
    """Kinds of questions in their shares, and their bytes."""
    draw, images, numbers = random.Random(0), [in_base64(picture(seed)) for seed in range(50)], itertools.count()
    while True:
        [kind], image = draw.choices(list(KINDS), list(KINDS.values())), draw.choice(images)
        if kind == "other classes":
            names = [f"thing {next(numbers) // 2}" for _ in range(5)]  # half of the lists are new
            yield kind, request("/predict", {"image": image, "class_names": sorted(set(names)) + ["a", "b"]})
        elif kind == "malformed":
            yield kind, request("/predict", damaged(draw, image))
        else:
            yield kind, request("/predict", {"image": image})


def damaged(draw: random.Random, image: str) -> bytes:
    whole = json.dumps({"image": image}).encode()
    place = draw.randrange(len(whole))
    return draw.choice([
        whole[:place], whole[:place] + draw.randbytes(1) + whole[place + 1 :], draw.randbytes(place), b"[" * 5000,
        json.dumps({"image": image, "top_k": -1}).encode(),
        json.dumps({"image": image, "class_names": [1] * 500}).encode(),
        json.dumps({"image": image[: place // 4 * 4]}).encode(), json.dumps({"image": "A" * 2_000_000}).encode(),
    ])  # fmt: skip


async def asked(server: Running, kinds: Iterator[tuple[str, bytes]], questions: int, statuses: Counter) -> None:
    """Ask so many of all clients together; the slow send in four pieces, the gone leave before the answer."""
    left = iter(range(questions))

    async def client() -> None:
        connection = Connection(server.port)
        for _ in left:
            kind, question = next(kinds)
            try:
                statuses[f"{kind}: {await one(connection, kind, question)}"] += 1
            except OSError:
                statuses[f"{kind}: closed"] += 1
        connection.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def one(connection: Connection, kind: str, question: bytes) -> str:
    """The status, or `left`."""
    if kind == "gone":
        await connection.leave(question[: random.choice((len(question), len(question) // 2))])
        return "left"
    if kind == "slow":
        return str((await connection.ask(*quarters(question), pause=0.05)).status)
    return str((await connection.ask(question)).status)


def quarters(question: bytes) -> list[bytes]:
    size = len(question) // 4 + 1
    return [question[start : start + size] for start in range(0, len(question), size)]
