"""The `mmrl` command: parses options, locks outputs, prints; the work is in the rooms below.

app.py lists the commands. A file holds those of one subject: stages.py what `dvc repro` runs, flow.py, registry.py and
so on. This file has the exit codes, and imports nothing but Python's own: whoever stops the command while it still
imports is answered as at any other time.
"""

import sys

INTERRUPTED = 130  # what typer makes of Ctrl-C


def main() -> None:
    """Exit 0 done, 2 the user's input is at fault (one line on stderr), 1 anything else."""
    try:
        _run()
    except KeyboardInterrupt:
        _fail("interrupted", 1)


def _run() -> None:
    import os
    import warnings

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall a shared machine
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of images that are refused, or read all the same
    import atexit

    import typer
    from typer.exceptions import TyperException

    from flows.cli.app import app
    from mmrl_core.errors import Failed, UserError

    atexit.register(_skip_the_last_collection)
    try:
        if code := app(prog_name="mmrl", standalone_mode=False):
            _fail("interrupted", 1) if code == INTERRUPTED else sys.exit(code)
        sys.exit(0)
    except UserError as error:
        _fail(str(error), 2)
    except Failed as error:
        _fail(str(error), 1)
    except ModuleNotFoundError as error:
        from flows.project.extras import lacking

        if not (advice := lacking(error)):
            raise
        _fail(advice, 2)
    except typer.Abort:
        _fail("interrupted", 1)
    except TyperException as error:
        _fail(" ".join(error.format_message().split()) or "name one of the commands above", 2)


def _skip_the_last_collection() -> None:
    """Or Python searches all that torch and Ray have made for garbage before it ends. triton, which torch's compiler
    brings, would say of every object of its own that is not collected that it is leaked."""
    import gc

    if "triton" not in sys.modules:
        gc.freeze()


def _fail(message: str, code: int) -> None:
    print(f"mmrl: {message}", file=sys.stderr)
    sys.exit(code)
