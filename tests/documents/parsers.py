"""Whether a command is one that its program takes, by the program's own parser where there is one. Nothing is run."""

import ast
import contextlib
import importlib.util
import io
import itertools
import re
import tomllib
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from packaging.requirements import Requirement

from flows.cli.app import app
from flows.settings.params import load_params
from mmrl_core.errors import UserError
from tests.documents.commands import shell_commands
from tests.support.workspace import ROOT

# What stands in documents for something of the reader's.
PLACES = {
    "KEY": "digits", "M": "mmrl", "B": "linear_probe", "S": "16", "K": "1", "SEED": "4", "COMMAND": "train",
    "PATH...": "PATH", "NAME@ALIAS": "digits-base-to-novel@champion", "REASON": "wrong on night shots",
}  # fmt: skip
LEFT_OUT = {"MissingParameter", "BadOptionUsage", "NoArgsIsHelpError"}  # what a sentence may do
SYSTEM = {"bash", "cat", "cd", "cp", "curl", "export", "git", "ls", "mkdir", "pre-commit", "psql", "sed", "sh",
          "source", "tar", "tr", "uvx"}  # fmt: skip
OF_THE_READER = {"infra/.env", "findings/NAME.sh"}


class Refused(AssertionError):
    """The program would not take the command; or nothing here knows the program."""


def check(words: Sequence[str], whole: bool = True) -> None:
    """Raises Refused. What is not `whole` may leave out what is required, but may name nothing that is not there."""
    program, *rest = [PLACES.get(word, word) for word in words if word != "..."]
    _paths_exist(rest)
    if program in PARSERS:
        PARSERS[program](rest, whole)
    elif program not in SYSTEM and not (ROOT / program).is_file():
        raise Refused(f"nothing knows {program}: tests/documents/parsers.py has what is known")
    if program == "curl":
        _routes_exist(rest)


def _paths_exist(words: Sequence[str]) -> None:
    for word in words:
        if re.match(r"(infra|docs|tests|examples|findings|benchmarks)/", word) and word not in OF_THE_READER:
            _hold((ROOT / word).exists(), f"there is no {word}")


def _hold(is_so: bool, message: str) -> None:
    if not is_so:
        raise Refused(message)


def _taken(parse: Callable[..., Any], *arguments: Any) -> None:
    try:
        parse(*arguments)
    except (UserError, SyntaxError, ValueError) as error:
        raise Refused(str(error)) from error


def _mmrl(words: list[str], whole: bool) -> None:
    import typer

    command = typer.main.get_command(app)
    if words[:1] == ["--install-completion"]:  # which acts where it is read
        assert any(words[0] in option.opts for option in command.params) and not words[1:]
        return
    _click(command, words, whole)
    overrides = [after for word, after in itertools.pairwise(words) if word == "--set" and "=" in after]
    if not any("..." in one or one == "key.path=value" for one in overrides):
        _taken(load_params, ROOT / "params.yaml", overrides)


def _mlflow(words: list[str], whole: bool) -> None:
    from mlflow.cli import cli

    _click(cli, words, whole)


def _ray(words: list[str], whole: bool) -> None:
    from ray.scripts.scripts import cli

    _click(cli, words, whole)
    for word in words[1:]:  # what it runs on the cluster
        if " " in word:
            _each(word)


def _click(command: Any, words: list[str], whole: bool) -> None:
    """Of click, and of typer, which has a click of its own: contexts are made down to the last command, none is run."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where --help is asked for
            _to_the_last(command, words, whole)
    except Exception as error:
        kind = type(error).__name__
        if kind != "Exit" and (whole or kind not in LEFT_OUT):
            raise Refused(f"{kind}: {error}") from error


def _to_the_last(command: Any, words: list[str], whole: bool) -> None:
    name, context = str(command.name), None
    while words or context is None or whole:
        context = command.make_context(name, list(words), parent=context)
        if not hasattr(command, "resolve_command"):
            return
        rest = [*context._protected_args, *context.args]
        if not rest and not whole:
            return
        name, command, words = command.resolve_command(context, rest)


def _dvc(words: list[str], whole: bool) -> None:
    from dvc.cli.parser import DvcParserError, get_main_parser

    if not words:
        return
    try:
        get_main_parser().parse_args(words)
    except (DvcParserError, SystemExit) as error:
        raise Refused(f"dvc {words}: {error!r}") from error


def _prefect(words: list[str], whole: bool) -> None:
    import cyclopts
    from prefect.cli._app import _app

    if not words:
        return
    try:
        _app.parse_args(words, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        left_out = isinstance(error, cyclopts.MissingArgumentError) and not whole
        _hold(left_out, f"{type(error).__name__}: {error}")


def _python(words: list[str], whole: bool) -> None:
    if words[0] == "-c":
        _taken(ast.parse, words[1])
        return
    _hold(words[0] == "-m", f"python {words[0]}")
    _hold(importlib.util.find_spec(words[1]) is not None, f"there is no module {words[1]}")
    if words[1].split(".")[0] in ("benchmarks", "flows", "mmrl_core"):
        files = [
            ROOT.joinpath(*words[1].split(".")).with_suffix(".py"),
            ROOT.joinpath(*words[1].split("."), "__main__.py"),
        ]
        text = "".join(file.read_text() for file in files if file.exists())
        for option in [word for word in words[2:] if word.startswith("--")]:
            _hold(f'"{option}"' in text, f"{words[1]} knows no {option}")


def _make(words: list[str], whole: bool) -> None:
    targets = re.findall(r"^([\w-]+(?: [\w-]+)*):(?!=)", (ROOT / "Makefile").read_text(), re.M)
    known = {target for line in targets for target in line.split()}
    _hold(set(words) <= known, f"the Makefile has no {set(words) - known}")


def _pip(words: list[str], whole: bool) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in [word for word in words[1:] if re.match(r"\w", word)]:
        asked = Requirement(word)
        unknown = asked.extras - set(project["optional-dependencies"]) if asked.name == project["name"] else set()
        _hold(not unknown, f"{asked.name} has no extra {unknown}")


def _docker(words: list[str], whole: bool) -> None:
    """The services that it names, and what it runs in one of them."""
    if words[:1] == ["compose"] and "exec" in words:
        service, *inner = words[words.index("exec") + 1 :]
        services = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())["services"]
        _hold(service in services, f"infra/compose.yaml has no service {service}")
        check(inner)


def _kubectl(words: list[str], whole: bool) -> None:
    """The objects that it names, and what it runs in one of them."""
    manifests = (ROOT / "infra/kubernetes").glob("*.yaml")
    objects = [one for file in manifests for one in yaml.safe_load_all(file.read_text()) if one and "metadata" in one]
    known = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in objects}
    known |= {one.replace("deployment/", "deploy/") for one in known}
    for word in [word for word in words if re.fullmatch(r"(deploy|deployment|service)/[\w-]+", word)]:
        _hold(word in known, f"infra/kubernetes has no {word}")
    if "--" in words:
        inner = words[words.index("--") + 1 :]
        _each(inner[2]) if inner[:2] == ["sh", "-c"] else check(inner)


def _each(script: str) -> None:
    for words in shell_commands(script):
        if words[0] not in ("cd", "sh"):
            check(words)


def _routes_exist(words: Sequence[str]) -> None:
    served = (ROOT / "flows/serving/app.py").read_text()
    for route in re.findall(r"http://127\.0\.0\.1:8000(/\w+)", " ".join(words)):
        _hold(f'"{route}"' in served, f"mmrl serve has no {route}")


PARSERS: dict[str, Callable[[list[str], bool], None]] = {
    "mmrl": _mmrl, "mlflow": _mlflow, "ray": _ray, "dvc": _dvc, "prefect": _prefect, "python": _python, "make": _make,
    "pip": _pip, "docker": _docker, "kubectl": _kubectl,
}  # fmt: skip
