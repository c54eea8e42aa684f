import os
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flows.tracking.store import set_environment

set_environment()  # before a test's module imports MLflow
# Before torch is imported: a barrier of spinning threads stalls whenever another process has the core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# At Ray's own 15 its workers hardly run while the other test process is busy.
os.environ.setdefault("RAY_worker_niceness", "0")

# The only tests that may skip in CI: where MMRL_TEST_DATA names no folder of photographs, where there is no GPU, and
# where there is no Node.js, or no npm and browser.
# Elsewhere those that mount disks or make network namespaces skip too, for want of root; CI runs them.
NEED_GPU = {
    "tests/core/clip/test_precision.py::test_a_replayed_graph_takes_the_steps_that_launched_kernels_take",
    "tests/core/training/test_stack.py::test_on_a_gpu_the_runs_are_one_graph",
}
NEED_PHOTOGRAPHS = {
    "tests/core/data/test_catalog.py::test_caltech101_opens_with_the_counts_of_its_split",
    "tests/core/data/test_check.py::test_caltech101_is_complete",
    "tests/slow/test_end_to_end.py::test_real_photographs_run_whole_with_the_bundled_backbone",
    "tests/slow/test_end_to_end.py::test_a_randomly_initialised_vit_b_16_runs_whole_on_a_handful_of_classes",
}
NEED_NODE = {
    "tests/flows/registry/test_standing.py::test_the_page_shows_it_and_says_where_it_is_of_other_results",
    "tests/flows/serving/test_page.py::test_the_page_shows_the_likeliest_class_first_also_where_names_are_numbers",
    "tests/flows/serving/test_page.py::test_the_page_lists_the_classes_that_it_knows_before_an_image_comes",
    "tests/examples/test_web.py::test_a_browser_sees_pixel_by_pixel_what_the_library_sees",
}
NEED_BROWSER = {
    "tests/examples/test_web.py::test_the_page_gives_the_labels_of_predict_and_asks_nobody_else",
    "tests/examples/test_web.py::test_the_page_says_what_is_missing_and_what_is_no_image",
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
skipped: set[str] = set()
COUNTED = "killed and repeated"  # name of the property in which tests say how often

# The longest first, so that no process is left alone with one at the end; all others follow as they are found.
FIRST = ("test_installed", "test_end_to_end", "test_kills", "test_protocols", "test_distributed",
         "test_two_nodes_training", "test_faults", "test_pipeline", "test_deployments")  # fmt: skip
# They share a project that takes a minute to make, so one process runs them.
OF_ONE_PROJECT = ("test_end_to_end", "test_kills", "test_protocols")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """A file's tests run in one process, and so do those of files that share a project."""
    from xdist.scheduler import LoadFileScheduling

    class ByProject(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "of one project" if file.endswith(tuple(f"/{name}.py" for name in OF_ONE_PROJECT)) else file

    return ByProject(config, log)


@pytest.fixture
def without_heif(monkeypatch) -> Iterator[None]:
    """As where the extra `heif` is not installed."""
    from mmrl_core.data.foreign import reads_heif

    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    reads_heif.cache_clear()
    yield
    reads_heif.cache_clear()


@pytest.fixture(scope="session")
def ray_cluster():
    """Started once a test process, by the first test that asks for it; see tests/support/ray_cluster.py."""
    from tests.support.ray_cluster import started

    with started() as cluster:
        yield cluster


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped:
        skipped.add(report.nodeid.split("[")[0])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, a skip that is not expected fails the run."""
    from torch.cuda import is_available

    has = (
        (os.environ.get("MMRL_TEST_DATA"), NEED_PHOTOGRAPHS),
        (is_available(), NEED_GPU),
        (shutil.which("node"), NEED_NODE),
        (shutil.which("npm") and any(map(shutil.which, BROWSERS)), NEED_BROWSER),
    )
    expected = {test for there, tests in has if not there for test in tests}
    unexpected = skipped - expected
    if os.environ.get("CI") and unexpected:
        print(f"\nunexpectedly skipped: {sorted(unexpected)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter) -> None:
    """What tests counted that a log is to show."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    lines = [str(value) for report in reports for name, value in report.user_properties if name == COUNTED]
    if lines:
        terminalreporter.section(COUNTED)
        terminalreporter.write_line("\n".join(lines))


@pytest.fixture(scope="session")
def new_place(tmp_path_factory) -> Iterator[Callable[..., Any]]:
    """Makes places where commands are killed (tests/support/interruptions), all with one server."""
    from tests.support.interruptions.scenarios import Place
    from tests.support.interruptions.server import serving

    with serving() as server:
        yield lambda **options: Place(server, tmp_path_factory.mktemp("place"), **options)


@pytest.fixture(scope="session")
def place(new_place):
    """With sqlite stores."""
    return new_place()


@pytest.fixture
def counted(record_property) -> Callable[..., None]:
    """Has the log show how often a command was killed; fails where anything ended otherwise."""

    def count(name: str, swept) -> None:
        record_property(COUNTED, f"{name}: {swept.told}")
        assert swept.killed > 0 and swept.wrong == {}

    return count


@pytest.fixture(scope="session")
def postgres_port() -> Iterator[int]:
    """Where the one PostgreSQL server of this process's tests listens; each test makes databases of its own in it."""
    from tests.support.postgres import postgres

    with postgres() as port:
        yield port


@pytest.fixture(scope="session")
def mlflow_database(postgres_port) -> Callable[[], str]:
    """Makes databases with MLflow's tables and nothing in them, on that server; gives their URIs."""
    from flows.tracking import store
    from tests.support.postgres import copies

    return copies(postgres_port, lambda uri: store.connect(store.absolute(uri)))
