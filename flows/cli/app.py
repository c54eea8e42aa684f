"""The list of commands. A command's module is imported when the command is called, asked for its own help or completed:
`mmrl --help` and the shell's completion wait for none of them."""

import ast
from importlib import import_module
from importlib.util import find_spec
from inspect import cleandoc
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

HELP = {"help_option_names": ["--help", "-h"]}
PACKAGE = "mmrl-ops"
FLOW_HELP = "The whole pipeline as a Prefect flow."
COMMANDS = {  # the file in this folder, and the function therein
    "init": "project:init",
    "upgrade": "project:upgrade",
    "datasets": "data:datasets",
    "check": "data:check",
    "clean": "data:clean",
    "fingerprint": "stages:fingerprint",
    "prepare": "stages:prepare",
    "tune": "stages:tune",
    "train": "stages:train",
    "evaluate": "stages:evaluate",
    "fit-baselines": "stages:fit_baselines",
    "evaluate-baselines": "stages:evaluate_baselines",
    "summarize": "stages:summarize",
    "compare": "compare:compare",
    "register": "registry:register",
    "promote": "registry:promote",
    "rollback": "registry:rollback",
    "history": "registry:history",
    "reproduce": "registry:reproduce",
    "predict": "predict:predict",
    "embed": "embed:embed",
    "backbones": "clips.backbones:backbones",
    "estimate": "clips.estimate:estimate",
    "export": "export:export",
    "serve": "serve:serve",
    "drift": "serve:drift",
    "backup": "maintenance:backup",
    "restore": "maintenance:restore",
    "import": "registry:import_",
    "pretrain": "registry:pretrain",
    "flow": "app:flow_app",
}
FLOW_COMMANDS = {
    "adapt": "flow:adapt",
    "release": "flow:release",
    "serve": "flow:serve",
}


class Lazy(TyperGroup):
    """A group whose commands are their names, and what their functions say of themselves, until one is wanted."""

    table: ClassVar[dict[str, str]] = COMMANDS

    def __init__(self, **attributes: Any):
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name=name) for name in self.table}

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command with its name and help alone, for those that list commands."""
        if cmd_name not in self.table:
            return None
        return TyperCommand(name=cmd_name, help=FLOW_HELP if cmd_name == "flow" else _docstring(self.table[cmd_name]))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the arguments name, in whole. Raises as typer's for one that is not there."""
        if args[0] in self.table:
            return args[0], _command(args[0], self.table[args[0]]), args[1:]
        return super().resolve_command(ctx, args)


class Flow(Lazy):
    table = FLOW_COMMANDS


def _docstring(where: str) -> str:
    """What a command's function says of itself, without importing it and all that it needs."""
    module, _, function = where.partition(":")
    spec = find_spec(f"flows.cli.{module}")
    source = spec and spec.loader and getattr(spec.loader, "get_source", lambda name: None)(spec.name)
    for node in ast.parse(source or "").body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return cleandoc(ast.get_docstring(node) or "")
    return ""


def _command(name: str, where: str) -> Any:
    """The whole command, with its parameters."""
    module, _, attribute = where.partition(":")
    found = getattr(import_module(f"flows.cli.{module}"), attribute)
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name, context_settings=HELP)(found)
    return typer.main.get_command(alone)


def version() -> str:
    """Of the installed package; in a clone that is not installed, what its pyproject.toml says."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed(PACKAGE)
    except PackageNotFoundError:
        import tomllib
        from pathlib import Path

        clone = Path(__file__).parents[2] / "pyproject.toml"
        return f"{tomllib.loads(clone.read_text())['project']['version']} (not installed)" if clone.is_file() else "?"


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"mmrl {version()}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version and end.")
    ] = False,
) -> None:
    """Adapt CLIP to your own few images, and keep it adapted."""


def _group(commands: type[Lazy], **settings: Any) -> typer.Typer:
    return typer.Typer(cls=commands, no_args_is_help=True, pretty_exceptions_enable=False, context_settings=HELP,
                       **settings)  # fmt: skip


app = _group(Lazy, callback=_options)
flow_app = _group(Flow, name="flow", help=FLOW_HELP, callback=lambda: None, add_completion=False)
