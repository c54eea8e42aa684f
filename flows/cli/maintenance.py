"""`mmrl backup` and `mmrl restore`: the registry in one file."""

from os.path import expanduser
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import DEFAULT_PARAMS, PATH, AsJson, Overrides, ParamsFile, show
from flows.settings.params import load_params


def backup(
    file: Annotated[Path, typer.Argument(help="The archive to write.", **PATH)],
    upgrade_store: Annotated[
        bool, typer.Option("--upgrade-store", help="Then upgrade the store to the installed MLflow's schema.")
    ] = False,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Save the MLflow store's database and the files of every registered version in one archive; exit 1 where a version
    is damaged."""
    from flows.maintenance.backup import backup as save
    from flows.tracking.store import store_uri

    uri = store_uri(load_params(params, set_))
    result = save(uri, file)
    if upgrade_store:
        from flows.tracking.schema import upgrade

        upgrade(uri)
    show(result, json_, str(file))


def restore(
    file: Annotated[Path, typer.Argument(help="An archive that `mmrl backup` wrote.", **PATH)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the store holds.")] = False,
    artifacts: Annotated[
        list[str], typer.Option("--artifacts", metavar="LOCATION", help="Files may be written below it. Repeatable.")
    ] = [],
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Bring the MLflow store back as an archive has it; nothing is touched where the archive is damaged."""
    from flows.maintenance.restore import restore as bring_back
    from flows.tracking.store import store_uri

    uri, places = store_uri(load_params(params, set_)), [expanduser(each) for each in artifacts]
    show(bring_back(file, uri, overwrite=overwrite, artifacts=places), json_, f"restored {file}")
