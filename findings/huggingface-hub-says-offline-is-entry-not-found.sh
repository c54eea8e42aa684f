#!/usr/bin/env bash
# huggingface_hub 2.4.0, Python 3.11. The Hub of this script is a server on this machine, which answers for each file
# as huggingface.co does for one that a repository has not: 404 with `X-Error-Code: EntryNotFound`.
#
# Expected: `except EntryNotFoundError` around `hf_hub_download` catches "the repository has no such file", so that a
# program may go on to another name, such as from model.safetensors to pytorch_model.bin. That there is no network is
# another kind of error.
# Seen: what is raised where the Hub is not reached, or not asked, is LocalEntryNotFoundError, and that is an
# EntryNotFoundError (and a FileNotFoundError) too: the same `except` takes "offline" for "absent".
#
# RemoteEntryNotFoundError is what says that the file is not there; or LocalEntryNotFoundError is caught first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check huggingface_hub==2.4.0

HF_HOME=$folder venv/bin/python - << 'EOF' 2> errors.txt || { cat errors.txt; exit 1; }
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()

    do_GET = do_HEAD


def raised(cache: str, **settings: bool) -> tuple[str, bool]:
    """The error, and whether `except EntryNotFoundError` catches it."""
    try:
        hf_hub_download("org/name", "model.safetensors", endpoint=endpoint, cache_dir=cache, **settings)
    except Exception as error:
        return type(error).__name__, isinstance(error, EntryNotFoundError)
    return "nothing", False


server = HTTPServer(("127.0.0.1", 0), Hub)
endpoint = f"http://127.0.0.1:{server.server_port}"
Thread(target=server.serve_forever, daemon=True).start()
seen = {"the repository has no such file": raised("one")}
server.shutdown()
server.server_close()
seen["the Hub is not reached"] = raised("two")
seen["the Hub is not asked (local_files_only)"] = raised("three", local_files_only=True)
for case, (name, caught) in seen.items():
    print(f"{case}: {name}, {'an' if caught else 'no'} EntryNotFoundError")
assert [name for name, _ in seen.values()] == ["RemoteEntryNotFoundError", *["LocalEntryNotFoundError"] * 2]
assert all(caught for _, caught in seen.values())
EOF

# Output seen:
#   the repository has no such file: RemoteEntryNotFoundError, an EntryNotFoundError
#   the Hub is not reached: LocalEntryNotFoundError, an EntryNotFoundError
#   the Hub is not asked (local_files_only): LocalEntryNotFoundError, an EntryNotFoundError
