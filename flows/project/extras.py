"""Which extra of the package has what is not installed: the library alone needs none."""

import importlib.util

from mmrl_core.errors import UserError

EXTRAS = {
    "pipeline": {"alembic": "Alembic", "dvc": "DVC", "matplotlib": "Matplotlib", "mlflow": "MLflow", "optuna": "Optuna",
                 "pandas": "pandas", "prefect": "Prefect", "psutil": "psutil", "ray": "Ray",
                 "sqlalchemy": "SQLAlchemy"},
    "serve": {"fastapi": "FastAPI", "httptools": "httptools", "httpx": "HTTPX", "multipart": "python-multipart",
              "prometheus_client": "prometheus-client", "python_multipart": "python-multipart",
              "starlette": "Starlette", "uvicorn": "uvicorn", "uvloop": "uvloop"},
    "postgres": {"psycopg2": "psycopg2"},
    "s3": {"boto3": "boto3", "botocore": "botocore", "s3fs": "s3fs"},
}  # fmt: skip


def lacking(error: BaseException) -> str | None:
    """Of an import that failed, which package is missing and how to have it; None where no extra has it."""
    root = (getattr(error, "name", None) or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if isinstance(error, ModuleNotFoundError) and root in packages:
            return f"{packages[root]} is not installed; {_advice(extra)}"
    return None


def require(extra: str, *modules: str) -> None:
    """Raises UserError where one of these packages of an extra is missing: before anything is done."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            name = next(names[module] for names in EXTRAS.values() if module in names)
            raise UserError(f"{name} is not installed; {_advice(extra)}")


def _advice(extra: str) -> str:
    return f"run pip install 'mmrl-ops[{extra}]'"
