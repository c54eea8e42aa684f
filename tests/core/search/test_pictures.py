"""The search decodes an image once, whatever number of partitions and trials train on it."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from itertools import product

from PIL import Image

from mmrl_core.config import AdapterConfig, Resolved, TrainConfig
from mmrl_core.data.images import decode
from mmrl_core.data.pictures import Decoded, Pictures
from mmrl_core.data.shards import Example
from mmrl_core.search.objective import partition_scores
from mmrl_core.search.partitions import Partition, SearchData
from tests.support.small import small_backbone

SIZE = 20 * 16 * 4  # bytes of a decoded image


def example(name: str, colour: tuple[int, int, int], label: int = 0) -> Example:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(buffer, "PNG")
    return Example(name, f"{name}.png", label, f"class {label}", buffer.getvalue())


def digest(one: Example) -> str:
    return sha256(one.image).hexdigest()


def test_an_image_is_decoded_once_for_all_that_ask():
    one, same = example("a", (9, 0, 0)), example("b", (9, 0, 0))  # of two seeds
    pictures = Pictures()
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda each: pictures.image(each, digest(each)), [one, same] * 20))
    assert len({id(image) for image in found}) == 1
    assert found[0].tobytes() == decode(one.image, one.path).tobytes()
    assert Decoded(pictures, [same], [digest(same)])[0] is found[0]
    assert Decoded(pictures, [one, same], [digest(one)] * 2)[0:2] == [found[0]] * 2


def test_what_is_beyond_the_budget_is_decoded_each_time():
    small, more = example("a", (9, 0, 0)), example("b", (0, 9, 0))
    pictures = Pictures(budget=SIZE + 1)
    assert pictures.image(small, digest(small)) is pictures.image(small, digest(small))
    first, second = (pictures.image(more, digest(more)) for _ in range(2))
    assert first is not second and first.tobytes() == second.tobytes()


def test_partitions_and_trials_train_on_images_that_are_decoded_already():
    train = [example(f"{label}{shot}", (80 * label, 9 * shot, 0), label) for label, shot in product(range(3), range(2))]
    val = [example(f"v{label}", (80 * label, 5, 0), label) for label in range(3)]
    digests = {one.path: digest(one) for one in [*train, *val]}
    data = SearchData(["ant", "bee", "cat"], "a {}.", [0, 1, 2], [1], [train], [val], False, digests)
    settings = Resolved(AdapterConfig(method="mmrl", insertion_depth=2, n_tokens=2, rep_dim=8),
                        TrainConfig(epochs=1, batch_size=2), {})  # fmt: skip
    piece, pictures, backbone = (settings, Partition(0, [0, 1, 2], [])), Pictures(), small_backbone()
    [(_, first)] = partition_scores(backbone, [piece], data, pictures=pictures)
    blank = data._replace(train=[[replace(one, image=b"") for one in train]])  # which nothing could decode
    [(_, again)] = partition_scores(backbone, [piece], blank, pictures=pictures)
    assert first["losses"] == again["losses"] and first["log_likelihood"] == again["log_likelihood"]
