"""`mmrl backup` and `mmrl restore`: the registry in one file."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import DEFAULT_PARAMS, AsJson, Overrides, ParamsFile, show
from flows.settings.params import load_params


def backup(
    file: Annotated[Path, typer.Argument(help="The archive to write.")],
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Save the MLflow store's database and the files of every registered version in one archive."""
    from flows.maintenance import backup as archive
    from flows.tracking.store import store_uri

    show(archive.backup(store_uri(load_params(params, set_)), file), json_, str(file))


def restore(
    file: Annotated[Path, typer.Argument(help="An archive that `mmrl backup` wrote.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the store holds.")] = False,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Bring the MLflow store back as an archive has it; nothing is touched where the archive is damaged."""
    from flows.maintenance import backup as archive
    from flows.tracking.store import store_uri

    show(archive.restore(file, store_uri(load_params(params, set_)), overwrite=overwrite), json_, f"restored {file}")
