#!/usr/bin/env bash
# mlflow 3.17.2, Python 3.11.
#
# Expected: `mlflow.pyfunc.save_model(artifacts={"file": PATH})` copies the file at that local path.
# Seen: a path that holds a percent sign and two digits, as a folder "50%20mix" does, is decoded like a URI: MLflow looks
# for "50 mix" and says that it failed to download. The same path as a `file:` URI, its percent escaped, is copied.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check mlflow==3.17.2 "fastapi<0.151" "sqlalchemy<2.1"

MLFLOW_DISABLE_TELEMETRY=true venv/bin/python - << 'EOF'
from pathlib import Path

import mlflow.pyfunc

Path("model.py").write_text(
    "import mlflow\n"
    "class Model(mlflow.pyfunc.PythonModel):\n"
    "    def predict(self, context, model_input, params=None):\n"
    "        return model_input\n"
    "mlflow.models.set_model(Model())\n"
)
folder = Path("50%20mix").absolute()
folder.mkdir()
(folder / "weights").write_text("seen")


def saved(artifact: str, name: str) -> str:
    try:
        mlflow.pyfunc.save_model(name, python_model="model.py", artifacts={"file": artifact}, pip_requirements=[])
    except Exception as error:
        return type(error).__name__
    return Path(name, "artifacts/weights").read_text()


path, uri = saved(str(folder / "weights"), "one"), saved((folder / "weights").as_uri(), "other")
print("as a path:", path)
print("as a URI:", uri)
assert path != "seen" and uri == "seen"
EOF

# Output seen:
#   as a path: MlflowException
#   as a URI: seen
