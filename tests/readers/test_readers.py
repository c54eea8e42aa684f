import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from mmrl_core.errors import Failed, UserError
from tests.readers import command_line, data, registry, results, serving, weights
from tests.readers.damage import Reader

LISTS = (data, weights, results, registry, serving, command_line)
READERS = [reader for module in LISTS for reader in module.READERS]
FEW, MANY = 25, 1000


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


def each(readers: list[Reader]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("reader", readers, ids=lambda reader: reader.name)


@each([reader for reader in READERS if not reader.is_dear])
def test_a_damaged_file_is_read_or_refused_in_one_line(reader, tmp_path):
    reads_or_says_in_one_line(reader, tmp_path, int(os.environ.get("MMRL_READER_INPUTS", FEW)))


@pytest.mark.slow
@pytest.mark.endurance
@each(READERS)
def test_of_many_damaged_files_none_gets_past_a_reader(reader, tmp_path):
    reads_or_says_in_one_line(reader, tmp_path, int(os.environ.get("MMRL_READER_INPUTS", MANY)))
