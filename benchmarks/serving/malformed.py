"""Questions that are wrong: what they are answered, and what they leave in memory."""

import random
from collections import Counter

import httpx

from benchmarks.serving.servers import Server, running
from tests.support.serving import in_base64, picture


def malformed(server: Server, questions: int = 2000) -> None:
    """Half against the OpenAPI description, half damaged otherwise: statuses, and the memory after each round."""
    draw, image = random.Random(0), picture(0)
    with running(server) as one, httpx.Client(base_url=one.address, timeout=60) as client:
        for _ in range(20):
            client.post("/predict", json=server.body(image))
        statuses = Counter[int]()
        print(f"\nbefore: {one.memory():.0f} MB", flush=True)
        for part in range(4):
            against_the_description(one.address, questions // 8, part, statuses)
            for _ in range(questions // 8):
                statuses[client.post("/predict", **bad_question(draw, image)).status_code] += 1
            print(f"after {statuses.total()}: {one.memory():.0f} MB, {dict(statuses)}", flush=True)


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
