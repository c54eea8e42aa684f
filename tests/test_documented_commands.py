"""Every command that a document shows is one: its program's own parser takes it, and `mmrl` is run with it.

tests/documents/story.py lists what is run here, in a small project, and which other test runs what takes long or needs
servers. What needs a cluster, an engine of containers or the network is parsed and no more. A new command that nobody
runs fails here.
"""

import ast
import functools
import re
import shlex

import pytest

from tests.documents import story
from tests.documents.commands import Command, documented, shell_commands
from tests.documents.parsers import Refused, check
from tests.flows.conftest import Shell
from tests.support.workspace import ROOT

COMMANDS = documented()
WRONG = (
    "mmrl nothing", "mmrl train --datset digits", "mmrl train --dataset digits", "mmrl flow", "mmrl serve --port many",
    "mmrl flow adapt --set data.protocl=joint", "mmrl flow adapt --set data.protocol=other", "dvc repo",
    "dvc repro --al", "prefect deploy --al", "prefect server begin", "mlflow server --prt 1",
    "mlflow serve", "ray upp", "make nothing",
    "python -m benchmarks.nothing", "python -m benchmarks --onyl gains", "docker compose exec nobody mmrl serve",
    "docker compose exec worker mmrl serv", "kubectl exec deploy/nobody -- mmrl serve", "frobnicate --all",
    "kubectl exec deploy/worker -- mmrl serv", "ray exec infra/ray/cluster.yaml 'cd /project && dvc repo'",
    "curl http://127.0.0.1:8000/predit", "prefect deploy --all --prefect-file infra/prefect/nothing.yaml",
    "pip install 'mmrl-ops[nothing]'", "python -c 'print('",
)  # fmt: skip


@pytest.mark.parametrize("document", sorted({command.document for command in COMMANDS}))
def test_every_command_of_a_document_is_one_that_its_program_takes(document):
    for command in COMMANDS:
        if command.document == document:
            try:
                check(command.words, command.whole)
            except Refused as refused:
                pytest.fail(f"{document}: {command}: {refused}")


@pytest.mark.parametrize("wrong", WRONG)
def test_what_a_program_does_not_take_is_told(wrong):
    [words] = shell_commands(wrong)
    with pytest.raises(Refused):
        check(words)


@pytest.mark.parametrize(
    "wrong", ["mmrl nothing", "mmrl clean --yonger-than 3d", "mmrl train --shots many", "dvc repo"]
)
def test_a_sentence_may_leave_words_out_and_may_not_make_them_up(wrong):
    check(shlex.split("mmrl train"), whole=False)
    check(shlex.split("mmrl clean --older-than"), whole=False)
    with pytest.raises(Refused):
        check(shlex.split(wrong), whole=False)


def test_a_block_is_read_as_a_shell_reads_it():
    block = "A=1 mmrl check x \\\n  --json  # why\nmlflow ui &\ncd y && python -c 'a\nb'\nexport B=2\n"
    assert list(shell_commands(block)) == [
        ("mmrl", "check", "x", "--json"), ("mlflow", "ui"), ("cd", "y"), ("python", "-c", "a\nb"), ("export", "B=2"),
    ]  # fmt: skip


@functools.cache
def whole_commands() -> set[str]:
    """Of `mmrl`: those of blocks, and those of sentences that leave nothing out but what has a place in the story."""
    found = set()
    for command in COMMANDS:
        if command.words[0] == "mmrl" and (command.whole or _is_whole(command)):
            found.add(str(command))
    return found


def _is_whole(command: Command) -> bool:
    try:
        check(command.words)
    except Refused:
        return False
    return "..." not in command.words


def real(command: str) -> list[str]:
    """Its words after `mmrl`, with what the reader would put in."""
    words = []
    for word in shlex.split(command)[1:]:
        before, equals, after = word.rpartition("=")
        words.append(f"{before}{equals}{story.REAL.get(after, after)}")
    return words


def test_every_command_of_mmrl_is_run_by_a_test():
    run_here = {tuple(real(command)) for command in story.STORY}
    nobody = [
        command
        for command in whole_commands()
        if tuple(real(command)) not in run_here and not {command} & {*story.LIKE, *story.ELSEWHERE, *story.READ_ONLY}
    ]
    assert nobody == [], "put them into tests/documents/story.py"


def test_what_stands_for_a_command_is_still_documented_and_run():
    whole, run_here = whole_commands(), {*story.STORY}
    assert {*story.LIKE, *story.ELSEWHERE, *story.READ_ONLY} - whole == set()
    assert {*story.LIKE.values()} <= run_here
    documented_words = {tuple(real(command)) for command in {*whole, *story.NOT_DOCUMENTED, *story.LIKE.values()}}
    assert [command for command in story.STORY if tuple(real(command)) not in documented_words] == []


@pytest.mark.parametrize("command", story.ELSEWHERE)
def test_the_test_that_runs_what_takes_long_is_there_and_runs_it(command):
    where, *words = story.ELSEWHERE[command]
    path, _, name = where.partition("::")
    text = (ROOT / path).read_text()
    [function] = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef) and node.name == name]
    source = ast.get_source_segment(text, function)
    assert [word for word in words if word not in source] == []


def test_the_commands_of_the_documents_run(tmp_path, monkeypatch, capsys):
    folder = story.make_place(tmp_path / "project")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mmrl = Shell(capsys, monkeypatch)
    for command in story.STORY:
        story.make_room(folder, words := real(command))
        mmrl(*words, code=story.EXIT.get(command, 0))
        assert mmrl.out, command
    assert len((folder / "labels.csv").read_text().splitlines()) == 1 + len(list((folder / "pictures").iterdir()))
    assert re.search("rolled back", mmrl("history"))
    assert all((folder / made).exists() for made in ("other.csv", "again/adapter.json", "file"))
