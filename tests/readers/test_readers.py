import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from mmrl_core.errors import Failed, UserError
from tests.readers.damage import Reader
from tests.readers.library import READERS as OF_THE_LIBRARY
from tests.readers.pipeline import READERS as OF_THE_PIPELINE

READERS = [*OF_THE_LIBRARY, *OF_THE_PIPELINE]
EVERY = pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
FEW, MANY = 30, 1000


def reads_or_says_in_one_line(reader: Reader, folder: Path, inputs: int) -> None:
    reader.make(folder)
    reader.read(folder)  # what is whole is read
    whole = (folder / reader.file).read_bytes()

    @settings(max_examples=max(1, round(inputs * reader.share)), derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink])  # fmt: skip
    @given(st.deferred(lambda: reader.inputs(whole)))
    def check(content: bytes) -> None:
        note(f"{reader.file}: {content[:400]!r}")
        (folder / reader.file).write_bytes(content)
        with suppress(UserError, Failed):  # whose message is one line
            reader.read(folder)

    check()


@EVERY
def test_a_damaged_file_is_read_or_refused_in_one_line(reader, tmp_path):
    reads_or_says_in_one_line(reader, tmp_path, int(os.environ.get("MMRL_READER_INPUTS", FEW)))


@pytest.mark.slow
@pytest.mark.endurance
@EVERY
def test_of_many_damaged_files_none_gets_past_a_reader(reader, tmp_path):
    reads_or_says_in_one_line(reader, tmp_path, int(os.environ.get("MMRL_READER_INPUTS", MANY)))
