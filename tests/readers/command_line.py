"""Settings, files of other tools, and what the command line names."""

import shutil
from collections.abc import Callable
from pathlib import Path

from flows.cli.predict.images import find_images
from flows.orchestration.prefect_process import is_set_up_otherwise
from flows.settings.edit import edit_params
from flows.settings.params import load_params
from tests.readers.damage import Reader, damaged_bytes, damaged_parquet, inside
from tests.readers.data import make_table

ROOT = Path(__file__).parents[2]

# Settings, and what is given on the command line.


def make_params(folder: Path) -> None:
    shutil.copy(ROOT / "params.yaml", folder)


def read_params(folder: Path) -> None:
    load_params(folder / "params.yaml")


def read_edited(folder: Path) -> None:
    edit_params(folder / "params.yaml", ["train.epochs=3"])


def found(name: str) -> Callable[[Path], object]:
    return lambda folder: list(find_images([folder / name]))


def make_prefect(folder: Path) -> None:
    (folder / "pyproject.toml").write_text('[project]\nname = "x"\n[tool.ruff]\nline-length = 120\n')
    (folder / ".env").write_text("TOKEN=x\n")


READERS = [
    Reader("params.yaml", make_params, "params.yaml", damaged_bytes, read_params),
    Reader("params.yaml to be edited", make_params, "params.yaml", damaged_bytes, read_edited, share=0.3),
    Reader("table to predict, CSV", make_table, "table.csv", damaged_bytes, found("table.csv")),
    Reader("table to predict, Parquet", make_table, "two.parquet", damaged_parquet, found("two.parquet")),
    Reader(
        "pyproject.toml that Prefect reads", make_prefect, "pyproject.toml", damaged_bytes, inside(is_set_up_otherwise)
    ),
    Reader(".env that Prefect reads", make_prefect, ".env", damaged_bytes, inside(is_set_up_otherwise)),
]
