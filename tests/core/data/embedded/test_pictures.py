"""Drawn datasets: which pictures they are is written down, and is not what else their code says."""

import io

import numpy as np
import pytest
from PIL import Image

from mmrl_core.data.catalog import fingerprint, open_source

# The digest when the code that draws was last hashed for it, and the mean grey level of each quarter of three images.
DRAWN = {
    "letters": ("86d1486f6d47cc95ab7de04dec6db1303ba2b8f285bdf8e7b584fd4a01b386f7",
                [[8.7, 91.6, 58.0, 84.7], [81.0, 70.9, 50.4, 92.2], [51.5, 67.7, 71.7, 46.9]]),
    "objects": ("2f70ff8dbd12b582536543268ceb22793ea3a8aea04dd77179e4492b0840428e",
                [[98.0, 98.7, 103.2, 105.4], [69.5, 68.8, 68.5, 66.2], [137.5, 135.3, 132.1, 130.3]]),
    "signboards": ("6cba7233ed933b3cfe1673dd98146589eeb20960c5dd46668141ccc9af22d895",
                   [[120.6, 113.8, 135.1, 140.2], [135.9, 133.9, 140.1, 139.7], [158.9, 161.8, 160.4, 159.7]]),
    "digits_inverted": ("7312501c3e0ece848404c270564bc1320445440964bb88d0b69637483e948d56",
                        [[173.7, 196.6, 178.2, 187.1], [168.8, 181.8, 207.1, 174.8], [155.1, 165.5, 204.3, 174.1]]),
    "digits_noisy": ("9313ee674ecc5cd971d2c45263d6b18024adc72e12bd6e1ea5e11f6d76616d6d",
                     [[88.6, 69.5, 82.2, 83.1], [93.3, 82.8, 60.1, 88.2], [105.7, 93.8, 72.3, 94.0]]),
    "digits_rotated": ("e89b9bc33bccf733db245eb780dbf3b698e23f25fea9fb7536f2f70cbfca916e",
                       [[93.0, 42.1, 64.9, 80.4], [73.2, 76.7, 64.4, 70.3], [59.1, 121.2, 65.2, 70.5]]),
    "digits_outlines": ("4bd8f12e752034f437966e898346fafb5a9917c37738776a58a842b398cc94f9",
                        [[163.8, 180.9, 168.8, 178.4], [162.7, 150.3, 189.0, 177.8], [171.4, 186.3, 182.5, 153.1]]),
}  # fmt: skip


@pytest.mark.parametrize("key", DRAWN)
def test_data_prepared_by_an_earlier_version_is_still_up_to_date(key):
    assert fingerprint(key, "")["digest"] == DRAWN[key][0]


@pytest.mark.parametrize("key", DRAWN)
def test_the_pictures_are_those_that_the_digest_stands_for(key):
    source = open_source(key, "")
    shown = [source.test[index] for index in (0, len(source.test) // 2, -1)]
    assert np.allclose([quarters(source.read(item)) for item in shown], DRAWN[key][1], atol=1)


def quarters(encoded: bytes) -> list[float]:
    grey = np.asarray(Image.open(io.BytesIO(encoded)).convert("L"), dtype=float)
    return grey.reshape(2, 16, 2, 16).mean((1, 3)).ravel().tolist()
