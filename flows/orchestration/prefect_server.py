"""The Prefect server that a flow runs on: the one that PREFECT_API_URL names, or one of this process's own."""

import logging
import os

import flows.orchestration.prefect_settings  # noqa: F401 - before Prefect, which reads them on import

# isort: split
from prefect.context import refresh_global_settings_context
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.settings import PREFECT_API_URL

from flows.orchestration.prefect_process import answers, begin_server
from mmrl_core.errors import UserError


def running_server() -> str | None:
    """What PREFECT_API_URL names, if anything. Raises UserError when it does not answer."""
    url = PREFECT_API_URL.value()
    if url and not answers(url):
        raise UserError(f"PREFECT_API_URL={url} does not answer; start that server, or unset it to run without one")
    return url


def ensure_server() -> None:
    """Connect to the server that PREFECT_API_URL names, or else to one of this process's own; take Prefect's own lines
    off the console."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.setLevel(logging.CRITICAL)
    if running_server():
        return
    server = begin_server()
    server.wait()
    os.environ["PREFECT_API_URL"] = server.url  # threads see the environment only
    refresh_global_settings_context()
