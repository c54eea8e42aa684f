"""Prefect's settings of this project, and the server that a flow without one runs on."""

import logging
import os

from flows.orchestration.prefect_process import answers, begin_server, settle_prefect

settle_prefect()

from prefect.context import refresh_global_settings_context  # noqa: E402
from prefect.logging.handlers import PrefectConsoleHandler  # noqa: E402
from prefect.settings import PREFECT_API_URL  # noqa: E402

from mmrl_core.errors import UserError  # noqa: E402


def running_server() -> str | None:
    """What PREFECT_API_URL names, if anything. Raises UserError when it does not answer."""
    url = PREFECT_API_URL.value()
    if url and not answers(url):
        raise UserError(f"PREFECT_API_URL={url} does not answer; start that server, or unset it to run without one")
    return url


def ensure_server() -> None:
    """The server that PREFECT_API_URL names, or else one of this process's own; Prefect's lines leave the console."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.setLevel(logging.CRITICAL)
    if running_server():
        return
    server = begin_server()
    server.wait()
    os.environ["PREFECT_API_URL"] = server.url  # threads see the environment only
    refresh_global_settings_context()
