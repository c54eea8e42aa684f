"""The `mmrl` command: parses options, locks outputs, prints; the work is in the rooms below.

A file holds the commands of one subject: stages.py what `dvc repro` runs, flow.py, registry.py and so on. Commands
import what they use when they are called, so that none waits for another's packages. This file lists them and has the
exit codes.
"""

import atexit
import gc
import os
import sys
import warnings

import typer
from typer.exceptions import TyperException

from flows.cli import compare, data, embed, export, flow, maintenance, predict, project, registry, serve, stages
from flows.project.extras import lacking
from mmrl_core.errors import Failed, UserError

INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(help="Adapt CLIP to your own few images, and keep it adapted.", add_completion=False,
                  no_args_is_help=True, pretty_exceptions_enable=False)  # fmt: skip
flow_app = typer.Typer(help="The whole pipeline as a Prefect flow.", no_args_is_help=True)
for command in (project.init, project.upgrade, data.datasets, data.check, data.clean, stages.fingerprint,
                stages.prepare, stages.tune, stages.train, stages.evaluate, stages.fit_baselines,
                stages.evaluate_baselines, stages.summarize, compare.compare, registry.register, registry.promote,
                registry.rollback, registry.history, registry.reproduce, predict.predict, embed.embed, export.export, serve.serve,
                serve.drift, maintenance.backup, maintenance.restore):  # fmt: skip
    app.command()(command)
app.command("import")(registry.import_)
app.command()(registry.pretrain)
for flow_command in (flow.adapt, flow.release, flow.serve):
    flow_app.command()(flow_command)
app.add_typer(flow_app, name="flow")


def main() -> None:
    """Exit 0 done, 2 the user's input is at fault (one line on stderr), 1 anything else."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall a shared machine
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of images that are refused, or read all the same
    atexit.register(_skip_the_last_collection)
    try:
        if code := app(standalone_mode=False):
            _fail("interrupted", 1) if code == INTERRUPTED else sys.exit(code)
        sys.exit(0)
    except UserError as error:
        _fail(str(error), 2)
    except Failed as error:
        _fail(str(error), 1)
    except ModuleNotFoundError as error:
        if not (advice := lacking(error)):
            raise
        _fail(advice, 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 1)
    except TyperException as error:
        _fail(" ".join(error.format_message().split()) or "name one of the commands above", 2)


def _skip_the_last_collection() -> None:
    """Or Python searches all that torch and Ray have made for garbage before it ends. triton, which torch's compiler
    brings, would say of every object of its own that is not collected that it is leaked."""
    if "triton" not in sys.modules:
        gc.freeze()


def _fail(message: str, code: int) -> None:
    print(f"mmrl: {message}", file=sys.stderr)
    sys.exit(code)
