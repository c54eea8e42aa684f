"""A project folder: settings, stages, git and DVC, all that the pipeline's commands work in."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flows.project.extras import require
from flows.project.paths import KNOWN, STATE
from flows.project.progress import progress
from flows.project.versions import VERSIONS, document
from flows.settings import own_data
from flows.settings.edit import edited
from flows.settings.params import checked
from flows.settings.template import DEFAULT_PARAMS, template
from mmrl_core.data.own.settings import OwnSection
from mmrl_core.errors import Failed, UserError
from mmrl_core.files import write_bytes
from mmrl_core.protocols import PROTOCOLS

DVC_CONFIG = "[core]\n    analytics = false\n    check_update = false\n    autostage = false\n"


class Found(NamedTuple):
    """What lies in the folder of images that a project is made for, and the settings that say so."""

    datasets: list[str]
    protocol: str
    images: int
    class_names: list[str]  # of one's own data; [] for benchmarks
    notes: list[str]
    overrides: list[str]  # of params.yaml, key.path=value


def make(folder: Path, images: Path | None) -> Found | None:
    """Make a project in `folder`, for the images that lie in a folder; what was found there.

    params.yaml comes last, so a call that was killed can be repeated. Raises UserError, with nothing written, where a
    project is there already, the images cannot be trained on, or git or DVC is missing.
    """
    _refuse_what_is_there(folder)
    images = _from(folder, images) if images else None
    with _inside(folder):
        found = _look(images) if images else None
        text = template("params.yaml").decode()
        settings = edited(text, DEFAULT_PARAMS, found.overrides) if found else text
        for name in ("gitignore", "dvcignore"):
            _add_lines(Path(f".{name}"), template(name).decode())
        _make_repositories()
        write_bytes("dvc.yaml", template("stages.yaml"))
        write_bytes(VERSIONS, document(template("stages.yaml")))
        write_bytes(DEFAULT_PARAMS, settings.encode())
    return found


def _from(folder: Path, images: Path) -> Path:
    """Where the images lie, seen from the project's folder: a project that has them in it can be moved."""
    images, folder = images.absolute(), folder.absolute()
    return images.relative_to(folder) if images.is_relative_to(folder) else images


def _refuse_what_is_there(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder for the project")
    if (folder / DEFAULT_PARAMS).exists():
        raise UserError(f"{folder / DEFAULT_PARAMS} is there, so this is a project already; `mmrl upgrade` renews it")
    stages = folder / "dvc.yaml"
    if stages.exists() and stages.read_bytes() != template("stages.yaml"):
        raise UserError(f"{stages} is there, of another DVC project; name another folder")
    if shutil.which("git") is None:
        raise UserError("git is not on the PATH, and a project is a git repository; install it first")
    require("pipeline", "dvc")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder, made if need be; one that was made and is still empty at an error is removed."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); name another folder") from None
    try:
        with contextlib.chdir(folder):
            yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError):  # something is in it
                folder.rmdir()
        raise


def _look(images: Path) -> Found:
    """What is there, and which protocol it is for: one's own classes are all wanted, benchmarks' figures are compared.

    Raises UserError where nothing there can be trained on.
    """
    if not images.is_dir():
        raise UserError(f"--images {images} is {'no folder' if images.exists() else 'not there'}; name one of images")
    named = own_data.named(images, {})
    return _own(images, *named) if named else _benchmarks(images)


def _own(images: Path, key: str, spec: OwnSection) -> Found:
    from mmrl_core.data.check import check_own

    protocol, shots = "few-shot", max(checked(template("params.yaml").decode(), DEFAULT_PARAMS).shots)
    with _kept_unless_refused(), progress(f"check {key}", unit="images") as report:
        row = check_own(key, {key: spec}, PROTOCOLS[protocol], None, shots, report, known=KNOWN)
        if problems := row["problems"]:
            more = f"; {len(problems) - 1} more are listed by `mmrl check {images}`" if len(problems) > 1 else ""
            raise UserError(f"{problems[0]}{more}")
    where = [
        f"data.own.{key}.{name}={json.dumps(value, ensure_ascii=False)}" for name, value in own_data.said(spec).items()
    ]
    overrides = [f"datasets={json.dumps([key])}", f"data.protocol={protocol}", *where]
    return Found([key], protocol, sum(row["found"].values()), row["class_names"], row["notes"], overrides)


@contextlib.contextmanager
def _kept_unless_refused() -> Iterator[None]:
    """What is found out of the images is there for the project's commands; it goes where no project is made."""
    made = not STATE.exists()
    try:
        yield
    except BaseException:
        if made:
            shutil.rmtree(STATE, ignore_errors=True)
        raise


def _benchmarks(root: Path) -> Found:
    from mmrl_core.data.check import check

    rows = [row for row in check(root) if row["state"] == "complete"]
    if not rows:
        raise UserError(
            f"--images {root} has neither folders of images, one a class, nor a complete benchmark dataset; "
            f"`mmrl check {root}` says what is there"
        )
    keys = [row["dataset"] for row in rows]
    images = sum(count for row in rows for count in row["found"].values())
    overrides = [f"datasets={json.dumps(keys)}", f"data.root={json.dumps(str(root), ensure_ascii=False)}"]
    return Found(keys, "base-to-novel", images, [], [], overrides)


def _add_lines(path: Path, wanted: str) -> None:
    """Have a file hold these lines; those that it has stay as they are."""
    text = path.read_text() if path.exists() else ""
    lacking = [line for line in wanted.splitlines() if line not in text.splitlines()]
    if lacking:
        start = text if not text or text.endswith("\n") else f"{text}\n"
        write_bytes(path, (start + "".join(f"{line}\n" for line in lacking)).encode())


def _make_repositories() -> None:
    """Git's, unless the folder lies in one, and DVC's."""
    if _ran("git", "rev-parse", "--is-inside-work-tree", check=False).returncode:
        _ran("git", "init", "--quiet")
    if not Path(".dvc").is_dir():
        top = _ran("git", "rev-parse", "--show-toplevel").stdout.strip()
        below = [] if Path(top).samefile(".") else ["--subdir"]
        _ran(sys.executable, "-m", "dvc", "init", "--quiet", *below)
        write_bytes(".dvc/config", DVC_CONFIG.encode())


def _ran(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, env=os.environ | {"DVC_NO_ANALYTICS": "1"}, capture_output=True, text=True)
    if check and done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it failed").splitlines()[-1]
        raise Failed(f"`{' '.join(command[-3:])}` in {Path.cwd()}: {said}")
    return done
