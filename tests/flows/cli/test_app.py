"""The list of commands: help, version and completion, which import no command's module; and being stopped at once."""

import sys
import tomllib

import pytest
import typer

from flows.cli import app as commands
from tests.support.workspace import ROOT, run

COMMAND_LINE = [sys.executable, "-m", "flows.cli"]
# What every command has, or its settings and results need, and a list of commands does not.
UNWANTED = {"flows.cli.options", "flows.settings", "mmrl_core.config", "numpy", "torch", "yaml", "PIL"}
SAY = f"print(*({UNWANTED} & set(sys.modules)))"


def imported(folder, *arguments: str, variables: tuple[str, ...] = ()) -> set[str]:
    """Of UNWANTED, what the command imports."""
    script = f"import sys\nsys.argv = {['mmrl', *arguments]}\nfrom flows.cli import main\ntry: main()\nfinally: {SAY}"
    return set(run(folder, "env", *variables, sys.executable, "-c", script).stdout.splitlines()[-1].split())


def cursor_behind(line: str) -> tuple[str, ...]:
    """The environment in which bash asks what may come next."""
    return "_MMRL_COMPLETE=complete_bash", f"COMP_WORDS={line}", f"COMP_CWORD={line.count(' ')}"


def completed(folder, line: str) -> list[str]:
    """What the shell is told."""
    return run(folder, "env", *cursor_behind(line), *COMMAND_LINE).stdout.split()


@pytest.mark.parametrize("command", [["--help"], ["-h"], ["--version"], ["flow", "-h"], ["--show-completion", "bash"]])
def test_a_list_of_commands_imports_none_of_them(tmp_path, command):
    """For a named shell: in which one the tests run is another question."""
    asked = ("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1",)
    assert imported(tmp_path, *command, variables=asked) == set()


def test_completing_a_commands_name_imports_none_of_them(tmp_path):
    assert imported(tmp_path, variables=cursor_behind("mmrl pre")) == set()


@pytest.mark.parametrize("group", [commands.Lazy, commands.Flow])
def test_the_list_says_of_a_command_what_it_says_itself(group):
    context = typer.main.get_command(commands.app).make_context("mmrl", ["check"])
    lazy = group(name="group")
    for name in lazy.list_commands(context):
        _, whole, rest = lazy.resolve_command(context, [name, "more"])
        assert (whole.help, whole.name, rest) == (lazy.get_command(context, name).help, name, ["more"])
        assert whole.help


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", [[], ["train"], ["flow"], ["flow", "adapt"]])
def test_help_is_asked_for_in_two_ways_everywhere(tmp_path, command, option):
    said = run(tmp_path, *COMMAND_LINE, *command, option).stdout
    assert f"Usage: {' '.join(['mmrl', *command])} " in said and "-h" in said


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train', 'pretrain'?"),
        (["flow", "adpt"], "No such command 'adpt'. Did you mean 'adapt'?"),
        (["--versoin"], "No such option: --versoin"),
        (["flow"], "name one of the commands above"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_was_meant(tmp_path, command, message):
    done = run(tmp_path, *COMMAND_LINE, *command, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr


def test_the_version_is_the_packages_and_in_a_clone_the_projects(tmp_path, monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert run(tmp_path, *COMMAND_LINE, "--version").stdout.startswith(f"mmrl {project['version']}")
    monkeypatch.setattr(commands, "PACKAGE", "no-such-package")
    assert commands.version() == f"{project['version']} (not installed)"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("mmrl pre", ["prepare", "predict", "pretrain"]),
        ("mmrl flow ", ["adapt", "release", "serve"]),
        ("mmrl --v", ["--version"]),
        ("mmrl train --sh", ["--shots"]),
        ("mmrl flow adapt --re", ["--remote"]),
        ("mmrl train --dataset digits_i", ["digits_inverted"]),
        ("mmrl predict --dataset sign", ["signboards"]),
        ("mmrl train --method mmrlp", ["mmrlpp"]),
        ("mmrl train --method tip", ["tip_adapter", "tip_adapter_f"]),
        ("mmrl predict one.p", []),  # the shell completes files by itself then
    ],
)
def test_the_shell_completes_commands_options_datasets_and_methods(tmp_path, line, found):
    assert completed(tmp_path, line) == found


def test_ones_own_datasets_are_completed_where_the_settings_are(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    assert "\n  own: {} " in text
    (tmp_path / "params.yaml").write_text(text.replace("\n  own: {} ", "\n  own: {mine: {images: here}} "))
    assert completed(tmp_path, "mmrl train --dataset mi") == ["mine"]
    (tmp_path / "params.yaml").write_text("[")
    assert completed(tmp_path, "mmrl train --dataset lett") == ["letters"]


STOPPED = """
import sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}: raise KeyboardInterrupt
sys.meta_path.insert(0, Stop())
sys.argv = ['mmrl', *{command}]
from flows.cli import main
main()
"""


@pytest.mark.parametrize(
    ("name", "command"), [("typer", ["--help"]), ("flows.cli.app", ["--help"]), ("pydantic", ["check"])]
)
def test_ctrl_c_while_it_still_imports_is_answered_as_ever(tmp_path, name, command):
    done = run(tmp_path, sys.executable, "-c", STOPPED.format(name=name, command=command), check=False)
    assert (done.returncode, done.stderr) == (1, "mmrl: interrupted\n")


def test_the_entry_point_imports_nothing_but_pythons_own(tmp_path):
    script = "import sys; before = set(sys.modules); import flows.cli; print(*(set(sys.modules) - before))"
    found = run(tmp_path, "env", f"PYTHONPATH={ROOT}", sys.executable, "-S", "-c", script).stdout.split()
    assert set(found) == {"flows", "flows.cli"}
