#!/usr/bin/env bash
# pyarrow 25.0.1, Python 3.11, Linux.
#
# Expected: an upload through S3FileSystem to a store that has taken it all and answers after 12 s ends well, after one
# request: `request_timeout` is for "socket read timeouts on Windows and macOS", and its documentation says: "This option
# is ignored on non-Windows, non-macOS systems."
# Seen: on Linux it counts, too. With its default of 3 s the client gives up some 9 s after the upload and sends all of
# it again; after three uploads, each of which the store has taken, it says that the operation was too slow. With
# request_timeout=60, which is to be ignored, there is one upload, and it ends well.
#
# Give request_timeout on Linux, too, for a store that may be slow.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check pyarrow==25.0.1

AWS_EC2_METADATA_DISABLED=true venv/bin/python - << 'EOF'
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from pyarrow.fs import S3FileSystem

ANSWERS_AFTER = 12  # seconds
taken = Counter()


class SlowStore(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        assert self.headers["Transfer-Encoding"] == "chunked"
        while size := int(self.rfile.readline().split(b";")[0], 16):
            self.rfile.read(size + 2)
        while self.rfile.readline().strip():
            pass
        taken[self.path] += 1
        time.sleep(ANSWERS_AFTER)
        try:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.send_header("ETag", '"tag"')
            self.end_headers()
        except OSError:
            pass  # The client has gone.

    def log_message(self, *_):
        pass


store = ThreadingHTTPServer(("127.0.0.1", 0), SlowStore)
store.daemon_threads = True
Thread(target=store.serve_forever, daemon=True).start()


def upload(name: str, **options) -> str:
    keys = {"access_key": "a", "secret_key": "b", "region": "us-east-1"}
    place = {"scheme": "http", "endpoint_override": f"127.0.0.1:{store.server_port}", "allow_delayed_open": True}
    try:
        with S3FileSystem(**keys, **place, **options).open_output_stream(f"bucket/{name}") as file:
            file.write(bytes(1000))
    except OSError as error:
        return f"failed: {str(error).split('Details: ')[-1]}"
    return "done"


print("documented:", *(line.strip() for line in S3FileSystem.__doc__.split("\n") if "option is ignored on" in line))
with ThreadPoolExecutor() as pool:
    ends = pool.submit(upload, "default"), pool.submit(upload, "patient", request_timeout=60)
    default, patient = (end.result() for end in ends)
print(f"by default: {taken['/bucket/default']} uploads taken by the store, {default}")
print(f"request_timeout=60: {taken['/bucket/patient']} upload taken by the store, {patient}")
assert "ignored on non-Windows" in S3FileSystem.__doc__
assert taken == {"/bucket/default": 3, "/bucket/patient": 1} and patient == "done" and "Operation too slow" in default
EOF

# Output seen:
#   documented: This option is ignored on non-Windows, non-macOS systems.
#   by default: 3 uploads taken by the store, failed: Operation too slow. Less than 1 bytes/sec transferred the last 3 seconds
#   request_timeout=60: 1 upload taken by the store, done
