#!/usr/bin/env bash
# openapi-python-client 0.29.1, httpx 0.28.1, FastAPI 0.150.0, Starlette 1.10.0, python-multipart 0.0.34, Python 3.11.
#
# Expected: a generated client uploads a file (`format: binary` in a multipart body) of any bytes. The line that parts a
# form's fields must not occur in what is sent, which is why httpx, which the client is made of, draws one by chance.
# Seen: the client names the same one in every request, `boundary=+++`, and httpx takes it. A file that holds a line
# `--+++`, such as a log of another form that such a client sent, ends there for the server: it refuses the form, or,
# where the line is the last of that other form (`--+++--`), gets a shorter file and answers as if all were well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check openapi-python-client==0.29.1 httpx==0.28.1 \
    fastapi==0.150.0 starlette==1.10.0 python-multipart==0.0.34

cat > app.py << 'EOF'
from typing import Annotated

from fastapi import FastAPI, File, UploadFile

app = FastAPI(title="Store", version="1")


@app.post("/size", operation_id="size")
async def size(file: Annotated[UploadFile, File(json_schema_extra={"format": "binary"})]) -> int:
    return len(await file.read())
EOF
venv/bin/python -c "import json, app; print(json.dumps(app.app.openapi()))" > openapi.json
export PATH=$PWD/venv/bin:$PATH
openapi-python-client generate --path openapi.json --meta none --output-path client &> log || { cat log; exit 1; }

venv/bin/python - << 'EOF' 2> errors.txt || { cat errors.txt; exit 1; }
import asyncio
from io import BytesIO

import httpx
from app import app
from client import Client
from client.api.default import size
from client.models import BodySize
from client.types import File

server = httpx.ASGITransport(app)


async def generated(data: bytes) -> str:
    """What the server has of a file of these bytes."""
    body = BodySize(file=File(payload=BytesIO(data), file_name="file.log"))
    client = Client("http://store", httpx_args={"transport": server})
    return said(await size.asyncio_detailed(client=client, body=body))


async def by_httpx(data: bytes) -> str:
    async with httpx.AsyncClient(transport=server, base_url="http://store") as client:
        return said(await client.post("/size", files={"file": ("file.log", data)}))


def said(answer) -> str:
    return f"{answer.content.decode()} bytes" if answer.status_code == 200 else f"refused ({int(answer.status_code)})"


seen = {}
for line in ("--***", "--+++", "--+++--"):
    data = f"one\r\n{line}\r\ntwo\r\n".encode()
    seen[line] = [asyncio.run(send(data)) for send in (generated, by_httpx)]
    print(f"{len(data)} bytes with a line {line}: the generated client {seen[line][0]}, httpx {seen[line][1]}")
assert seen["--***"] == ["17 bytes"] * 2
assert seen["--+++"] == ["refused (400)", "17 bytes"]
assert seen["--+++--"] == ["3 bytes", "19 bytes"]
EOF

# Output seen:
#   17 bytes with a line --***: the generated client 17 bytes, httpx 17 bytes
#   17 bytes with a line --+++: the generated client refused (400), httpx 17 bytes
#   19 bytes with a line --+++--: the generated client 3 bytes, httpx 19 bytes
