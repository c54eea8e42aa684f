#!/usr/bin/env bash
# openapi-python-client 0.29.1, httpx 0.28.1, FastAPI 0.150.0, Starlette 1.10.0, python-multipart 0.0.34, Python 3.11.
#
# Expected: the client that is generated from the description that FastAPI gives of an `UploadFile` uploads files.
# Seen: FastAPI describes it as OpenAPI 3.1 does (`contentMediaType: application/octet-stream`), and the generator knows
# files by the `format: binary` of OpenAPI 3.0 alone. It warns of nothing and makes a field of type `str`: what is given
# is sent as text without a file name, which the same server refuses.
#
# `Annotated[UploadFile, File(json_schema_extra={"format": "binary"})]` says it in both ways, and a file is a file.
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


@app.post("/plain", operation_id="plain")
async def plain(file: UploadFile) -> int:
    return len(await file.read())


@app.post("/both", operation_id="both")
async def both(file: Annotated[UploadFile, File(json_schema_extra={"format": "binary"})]) -> int:
    return len(await file.read())
EOF
venv/bin/python -c "import json, app; print(json.dumps(app.app.openapi()))" > openapi.json
export PATH=$PWD/venv/bin:$PATH
openapi-python-client generate --path openapi.json --meta none --output-path client &> log || { cat log; exit 1; }
echo "what the generator says: $(xargs < log)"

venv/bin/python - << 'EOF' 2> errors.txt || { cat errors.txt; exit 1; }
import asyncio
from io import BytesIO

import httpx
from app import app
from client import Client
from client.api.default import both, plain
from client.models import BodyBoth, BodyPlain
from client.types import File

client = Client("http://store", httpx_args={"transport": httpx.ASGITransport(app)})
BODIES = {plain: BodyPlain(file="text"), both: BodyBoth(file=File(payload=BytesIO(b"\x89PNG"), file_name="a.png"))}


async def statuses() -> list[int]:
    """What the server answers to the file of each body."""
    return [int((await way.asyncio_detailed(client=client, body=body)).status_code) for way, body in BODIES.items()]


kinds = [kind.__annotations__["file"] for kind in (BodyPlain, BodyBoth)]
names = [body.to_multipart()[0][1][0] for body in BODIES.values()]
answers = asyncio.run(statuses())
for case, kind, name, status in zip(("as FastAPI says it", "said in both ways"), kinds, names, answers, strict=True):
    print(f"{case}: a field of type {kind}, sent with the file name {name}, answered {status}")
assert kinds == ["str", "File"] and names == [None, "a.png"] and answers == [422, 200]
EOF

# Output seen:
#   what the generator says: Generating client
#   as FastAPI says it: a field of type str, sent with the file name None, answered 422
#   said in both ways: a field of type File, sent with the file name a.png, answered 200
