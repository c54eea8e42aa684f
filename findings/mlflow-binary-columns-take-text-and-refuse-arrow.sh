#!/usr/bin/env bash
# mlflow 3.17.2, pandas 3.1.1, pyarrow 25.0.1, Python 3.11.
#
# Expected: where a model's signature declares a column `binary`, the model gets bytes: a column of bytes is taken,
# however pandas holds it, text is refused, and base64 in a JSON request is decoded, as MLflow's documentation says of
# binary columns, whichever of the four forms of request it is in.
# Seen: a column of text is let through to the model as text; a column of Arrow's binary type, as pandas reads it from
# Parquet with dtype_backend="pyarrow", is refused ("can not safely convert"). The scoring server decodes base64 in
# "dataframe_split" and "dataframe_records"; in "inputs" and "instances" the same base64 reaches the model as bytes, but
# not decoded, without an error.
#
# astype(object) makes of Arrow's column one that is taken. A model that must have bytes looks at what it got itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check mlflow==3.17.2 pandas==3.1.1 pyarrow==25.0.1 \
    "fastapi<0.151" "sqlalchemy<2.1"

MLFLOW_DISABLE_TELEMETRY=true venv/bin/python -W ignore - << 'EOF' 2> errors.txt || { cat errors.txt; exit 1; }
import base64
import json
import socket
import time
from pathlib import Path
from threading import Thread
from urllib.request import Request, urlopen

import mlflow.pyfunc
import pandas as pd
import pyarrow as pa
import uvicorn
from mlflow.models import ModelSignature
from mlflow.pyfunc import scoring_server
from mlflow.types import ColSpec, Schema

Path("model.py").write_text(
    "import mlflow\n"
    "class Model(mlflow.pyfunc.PythonModel):\n"
    "    def predict(self, context, model_input, params=None):\n"
    "        [value] = model_input['image']\n"
    "        return ['text ' + value if isinstance(value, str) else 'bytes ' + bytes(value).decode()]\n"
    "mlflow.models.set_model(Model())\n"
)
signature = ModelSignature(Schema([ColSpec("binary", "image")]), Schema([ColSpec("string")]))
mlflow.pyfunc.save_model("model", python_model="model.py", signature=signature, pip_requirements=[])
model = mlflow.pyfunc.load_model("model")


def predicted(column: pd.Series) -> str:
    try:
        return model.predict(pd.DataFrame({"image": column}))[0]
    except mlflow.MlflowException as error:
        return f"refused: {str(error).split('. ')[-1]}"


arrow = pd.Series([b"pixels"], dtype=pd.ArrowDtype(pa.binary()))
columns = {
    "bytes": pd.Series([b"pixels"]),
    "text": pd.Series(["pixels"]),
    "Arrow's binary": arrow,
    "Arrow's binary, astype(object)": arrow.astype(object),
}
seen = {name: predicted(column) for name, column in columns.items()}
for name, what in seen.items():
    print(f"{name}: {what}")

listener = socket.socket()
listener.bind(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(scoring_server.init(model), log_level="error"))
thread = Thread(target=server.run, kwargs={"sockets": [listener]})
thread.start()
while not server.started:
    time.sleep(0.05)
url = f"http://127.0.0.1:{listener.getsockname()[1]}/invocations"
encoded = base64.b64encode(b"pixels").decode()
for name, body in {
    "dataframe_split": {"columns": ["image"], "data": [[encoded]]},
    "dataframe_records": [{"image": encoded}],
    "inputs": {"image": [encoded]},
    "instances": [{"image": encoded}],
}.items():
    request = Request(url, json.dumps({name: body}).encode(), {"Content-Type": "application/json"})
    [seen[name]] = json.loads(urlopen(request).read())["predictions"]
    print(f"base64 in {name}: {seen[name]}")
server.should_exit = True
thread.join()

assert seen["bytes"] == seen["Arrow's binary, astype(object)"] == "bytes pixels"
assert seen["text"] == "text pixels" and seen["Arrow's binary"].startswith("refused: Can not safely convert")
assert seen["dataframe_split"] == seen["dataframe_records"] == "bytes pixels"
assert seen["inputs"] == seen["instances"] == f"bytes {encoded}"
EOF

# Output seen:
#   bytes: bytes pixels
#   text: text pixels
#   Arrow's binary: refused: Can not safely convert binary[pyarrow] to |S0.
#   Arrow's binary, astype(object): bytes pixels
#   base64 in dataframe_split: bytes pixels
#   base64 in dataframe_records: bytes pixels
#   base64 in inputs: bytes cGl4ZWxz
#   base64 in instances: bytes cGl4ZWxz
