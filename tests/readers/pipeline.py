"""What flows reads."""

import base64
import contextlib
import hashlib
import hmac
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from mlflow.entities import Run, RunData, RunInfo, RunTag
from starlette.exceptions import HTTPException

from flows.cli.predict_images import find_images
from flows.cli.trials_table import trials_of
from flows.maintenance import archive, databases
from flows.orchestration.prefect_process import is_set_up_otherwise
from flows.orchestration.webhook import DELIVERY, SIGNATURE, TIMESTAMP, Deliveries, Unverified, moved_alias
from flows.project import paths
from flows.project.paths import RunKey
from flows.registry import decisions, promotion, versions
from flows.registry.model_files import check_model
from flows.report.material import gather
from flows.report.summary import named_runs, read_summary
from flows.report.tables import markdown, results_csv
from flows.serving.app import _one_line
from flows.serving.drift import drift
from flows.serving.image_urls import Fetcher
from flows.serving.request import read_request
from flows.settings.edit import edit_params
from flows.settings.params import Params, load_params
from flows.settings.sections import ServingSection
from flows.stages.ahead.ready import ReadyOutput
from flows.stages.train import read_search
from flows.tracking.places import settle
from flows.tuning import confirm
from flows.tuning import search as tuning
from flows.tuning.identity import Search, earlier, open_folder
from flows.tuning.ledger import Ledger, trial_key
from mmrl_core.errors import UserError
from mmrl_core.files import write_json
from mmrl_core.method.adapter_card import CARD
from mmrl_core.search.comparison import compared
from tests.readers.damage import Reader, damaged_bytes, damaged_json, damaged_lines, damaged_parquet
from tests.readers.library import ADAPTER, make_table, png
from tests.support.results import FACTS, SHA, write_model, write_run, write_search

PARAMS = Params(datasets=["digits"], methods=["mmrl"], shots=[16], seeds=[1, 2], search={"space": {}})
KEY, OTHER = RunKey("digits", "mmrl", 16, 1), RunKey("digits", "mmrl", 16, 2)
ROOT = Path(__file__).parents[2]


def inside(read: Callable[[], object]) -> Callable[[Path], object]:
    """With the folder as the working directory."""

    def run(folder: Path) -> None:
        with contextlib.chdir(folder):
            read()

    return run


# Results, as the report, the registry and the stages read them.


def make_results() -> None:
    for key, count in ((KEY, 3), (OTHER, 4)):
        write_run(key, {"base": count, "novel": 2})
        write_model(key, [2.0, 1.0])
        metrics = json.loads((key.results() / "metrics.json").read_text())
        more = {
            "adapter_sha256": SHA,
            "protocol": "base-to-novel",
            "data_digest": SHA,
            "validation": {"base": {**FACTS, "accuracy": 0.5}},
        }
        write_json(key.results() / "metrics.json", metrics | more)
    write_search(KEY, {"adapter.reg_weight": 0.5, "adapter.insertion_depth": 3}, 1)


def read_results() -> None:
    """The figures of the report, without its pictures."""
    runs = named_runs(PARAMS)
    summary = read_summary(PARAMS, runs)
    markdown(summary["rows"] + summary["averages"])
    results_csv(summary["rows"])
    with contextlib.suppress(UserError):  # no images are prepared here
        gather(PARAMS, runs)
    with contextlib.suppress(UserError):  # nor are these adapters whole
        key = versions.candidate(PARAMS, "digits")
        versions.facts(key, None)


def read_searches() -> None:
    path = paths.search("digits", "mmrl")
    trials_of(path)
    read_search(KEY, ["a {}."])


def make_confirmable() -> None:
    make_results()
    path = paths.search("digits", "mmrl")
    search = json.loads(path.read_text())
    write_json(path, {**search, "seeds": [1], "shots": 16, "templates": {"a {}.": 0.5}, "pareto_front": [1]})


def make_registrable() -> None:
    """The adapter of a run, and what its evaluation says."""
    shutil.copytree(ADAPTER, KEY.model)
    sha256 = json.loads((ADAPTER / CARD).read_text())["sha256"]
    scores = {"base": {"accuracy": 0.5, "ece": 0.1}}
    write_json(KEY.results() / "metrics.json", {
        "adapter_sha256": sha256, "protocol": "base-to-novel", "preset": "published", "data_digest": SHA,
        "parts": ["base"], **scores, "harmonic_mean": 0.5, "validation": {"base": {"accuracy": 0.5, "nll": 1.0}},
    })  # fmt: skip


def read_registrable() -> None:
    params = PARAMS.model_copy(update={"seeds": [1]})
    versions.facts(versions.candidate(params, "digits"), None)


# A search's state.

POINT = {"adapter.reg_weight": 0.5}
SCORES = {"log_likelihood": -0.5, "harmonic_mean": 0.9, "losses": [1.0, 0.5]}
TRIALS = Path(f"trials/{trial_key(POINT)}.json")


def make_ledger() -> None:
    ledger = Ledger("trials")
    ledger.open(POINT)
    ledger.add(POINT, 0, SCORES, 1.0)
    ledger.add(POINT, 1, SCORES, 1.0)
    ledger.end(POINT, "complete")


def read_ledger() -> None:
    ledger = Ledger("trials")
    for record in ledger.all():
        compared(record)
    ledger.unfinished([POINT])


def search_in_folder() -> Search:
    return Search(PARAMS, "digits", "mmrl", {}, {"dataset": "digits", "method": "mmrl"}, Path("search"))


def make_done() -> None:
    trial = {**SCORES, "log_likelihood_se": 0.1, "harmonic_mean_se": 0.1, "params": POINT, "state": "complete",
             "scores": [SCORES]}  # fmt: skip
    del trial["losses"]
    write_json("search/done.json", {"search": PARAMS.search.model_dump(), "templates": {"a {}.": 0.5}, "choice": POINT,
                                    "template": "a {}.", "trials": [trial], "chosen": 0})  # fmt: skip


def read_done() -> None:
    done = tuning._done(search_in_folder())
    if done and done["trials"]:
        done["trials"][done["chosen"]]["log_likelihood"]


def read_points() -> None:
    for point in tuning._first_points(search_in_folder(), {}):
        trial_key(point)


def make_facts() -> None:
    open_folder({"dataset": "digits", "method": "mmrl", "search": {"space": {"x": 1}}})
    shutil.copy(next(Path().glob(".mmrl/searches/*/*/*/search.json")), "facts.json")


def read_facts() -> None:
    [known] = Path().glob(".mmrl/searches/*/mmrl/*/search.json")
    shutil.copy("facts.json", known)
    facts = {"dataset": "digits", "method": "mmrl", "search": {"space": {"x": 2}}}
    folder, _ = open_folder(facts)
    earlier(facts)
    shutil.rmtree(folder)


READY = ReadyOutput(Path("models/x"), "identity")


def make_ready() -> None:
    Path("made").mkdir()
    Path("made/file").write_text("x")
    READY.keep(Path("made"), {"trainable": 1})
    shutil.copy(READY.folder / "ready.json", "ready.json")


def read_ready() -> None:
    READY.keep(Path("made"), {"trainable": 1})
    shutil.copy("ready.json", READY.folder / "ready.json")
    summary = READY.take(Path("out"))
    assert summary is None or dict(summary) == summary
    shutil.rmtree("out", ignore_errors=True)


# Registered versions, archives, databases.


def make_model(folder: Path) -> None:
    shutil.copytree(ADAPTER.parents[1], folder, dirs_exist_ok=True)


def read_model(folder: Path) -> None:
    check_model(folder, json.loads((ADAPTER / CARD).read_text())["sha256"], "pets/1")


def make_archive(folder: Path) -> None:
    content = folder / "content"
    (content / "artifacts/0").mkdir(parents=True)
    (content / "artifacts/0/MLmodel").write_text("x")
    (content / "database").write_bytes(b"x")
    one = databases.SavedVersion("default", "pets", 1, None, "file:///pets/1")
    archive.pack(content, folder / "backup.tar", "sqlite", "x", [one])
    shutil.copy(content / "manifest.json", folder / "manifest.json")


def read_archive(folder: Path) -> None:
    shutil.rmtree(folder / "unpacked", ignore_errors=True)
    (folder / "unpacked").mkdir()
    archive.unpack(folder / "backup.tar", folder / "unpacked")


def read_manifest_of_archive(folder: Path) -> None:
    """In an archive that is whole otherwise."""
    import tarfile

    (folder / "backup.tar").unlink(missing_ok=True)
    shutil.copy(folder / "manifest.json", folder / "content/manifest.json")
    with tarfile.open(folder / "backup.tar", "w") as tar:
        for path in sorted(path for path in (folder / "content").rglob("*") if path.is_file()):
            tar.add(path, str(path.relative_to(folder / "content")))
    read_archive(folder)


TABLES = """
CREATE TABLE alembic_version (version_num TEXT);
INSERT INTO alembic_version VALUES ('1');
CREATE TABLE experiments (experiment_id INTEGER, artifact_location TEXT);
INSERT INTO experiments VALUES (0, 'file:///elsewhere/mlartifacts/0');
CREATE TABLE runs (run_uuid TEXT, artifact_uri TEXT);
INSERT INTO runs VALUES ('x', 'file:///elsewhere/mlartifacts/0/x');
CREATE TABLE logged_models (model_id TEXT, artifact_location TEXT);
CREATE TABLE registered_models (name TEXT);
INSERT INTO registered_models VALUES ('pets');
CREATE TABLE model_versions (workspace TEXT, name TEXT, version INTEGER, current_stage TEXT, source TEXT,
                             storage_location TEXT);
INSERT INTO model_versions VALUES ('default', 'pets', 1, 'None', 'file:///elsewhere/mlartifacts/0/x', NULL);
CREATE TABLE model_version_tags (workspace TEXT, name TEXT, version INTEGER, key TEXT, value TEXT);
INSERT INTO model_version_tags VALUES ('default', 'pets', 1, 'adapter_sha256', 'x');
"""


def make_database(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        connection.execute("PRAGMA page_size = 512")
        connection.executescript(TABLES)


def read_database(folder: Path) -> None:
    for beside in ("-journal", "-wal", "-shm"):
        (folder / f"mlflow.db{beside}").unlink(missing_ok=True)
    databases.in_file("sqlite", folder / "mlflow.db")
    settle(folder / "mlflow.db")


DECISION = {
    "version": "2", "champion": "1", "verdict": "accepted", "reasons": '["better"]', "moved": "true",
    "intent": json.dumps({"alias": "champion", "before": 1, "aliases": {"champion": 2, "challenger": None},
                          "tags": {"2": {"gate": "x"}}, "adapters": {"2": "x"}}),
    "gate": json.dumps({"verdict": "refused", "reasons": ["worse"], "champion": None, "champion_sha256": None}),
}  # fmt: skip


def make_decision(folder: Path) -> None:
    (folder / "tags.json").write_text(json.dumps(DECISION))


def read_decision(folder: Path) -> None:
    """Tags are text, whatever they say."""
    try:
        tags = {str(key): str(value) for key, value in json.loads((folder / "tags.json").read_bytes()).items()}
    except (ValueError, AttributeError, RecursionError):
        return
    run = Run(
        RunInfo("0" * 32, "1", "x", "RUNNING", 0, None, "active"), RunData(tags=[RunTag(*tag) for tag in tags.items()])
    )
    with contextlib.suppress(UserError):
        decisions._past_decision(run)
    if tags.get("intent"):
        with contextlib.suppress(UserError):
            decisions._intent(run, tags["intent"])
    promotion._declined_before(tags, {"champion": None})


def make_intent(folder: Path) -> None:
    (folder / "intent.json").write_text(DECISION["intent"])


def read_intent(folder: Path) -> None:
    run = Run(RunInfo("0" * 32, "1", "x", "RUNNING", 0, None, "active"), RunData())
    text = (folder / "intent.json").read_bytes().decode(errors="replace")
    promotion._declined_before({"gate": text}, {"champion": None})
    intent = decisions._intent(run, text)
    assert all(isinstance(tag, str) for tags in intent["tags"].values() for tag in tags.values())


# Serving.


def asking() -> TestClient:
    app = FastAPI()
    app.exception_handler(HTTPException)(_one_line)
    limits = ServingSection(url_prefixes=["http://127.0.0.1:1/"])

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        return JSONResponse({"bytes": len((await read_request(request, limits, Fetcher(limits))).image)})

    return TestClient(app)


CLIENT = asking()
FORM = b"multipart/form-data; boundary=x"


def make_json_request(folder: Path) -> None:
    question = {"image": base64.b64encode(png(1)).decode(), "class_names": ["cat", "dog"], "top_k": 2, "abstain": True,
                "threshold": 0.5}  # fmt: skip
    (folder / "body").write_text(json.dumps(question))


def make_form_request(folder: Path) -> None:
    parts = [
        b'name="top_k"\r\n\r\n2',
        b'name="class_names"\r\n\r\ncat',
        b'name="abstain"\r\n\r\ntrue',
        b'name="image"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n' + png(1),
    ]
    body = b"".join(b"--x\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--x--\r\n"
    (folder / "body").write_bytes(body)


def asked(kind: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        answer = CLIENT.post("/predict", content=(folder / "body").read_bytes(), headers={"content-type": kind})
        assert answer.status_code == 200 or 400 <= answer.status_code < 500
        assert answer.status_code == 200 or "\n" not in answer.json()["error"]

    return read


def make_length(folder: Path) -> None:
    (folder / "length").write_bytes(b"4")


def read_length(folder: Path) -> None:
    """The announced length, as a header has it: any Latin-1 text."""
    headers = [(b"content-type", b"application/json"), (b"content-length", (folder / "length").read_bytes())]
    answer = _asgi(headers, b'{"image": ""}')
    assert 400 <= answer < 500


def _asgi(headers: list[tuple[bytes, bytes]], body: bytes) -> int:
    import asyncio

    statuses = []

    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b"",
             "headers": headers, "http_version": "1.1", "scheme": "http", "client": None, "server": None,
             "root_path": ""}  # fmt: skip
    asyncio.run(CLIENT.app(scope, receive, send))
    return statuses[0]


def make_log(folder: Path) -> None:
    row = {"time": "2999-01-01T00:00:00+00:00", "name": "pets", "version": 1, "adapter_sha256": "x", "label": "cat",
           "probability": 0.5, "confidence": 0.5, "trained_classes": True, "strange": False,
           "expected": 0.05}  # fmt: skip
    (folder / "0.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (row, row, row | {"strange": True})))


def read_log(folder: Path) -> None:
    for found in drift(folder, 24):
        assert "\n" not in found.line


SECRET = "secret"


def make_delivery(folder: Path) -> None:
    event = {"entity": "model_version_alias", "action": "created", "data": {"name": "pets", "alias": "champion"}}
    (folder / "body").write_text(json.dumps(event))


def read_delivery(folder: Path) -> None:
    """Signed with the secret, whatever it holds."""
    body = (folder / "body").read_bytes()
    _deliver(body, "1000")


def read_stamp(folder: Path) -> None:
    with contextlib.suppress(Unverified):
        _deliver(b"{}", (folder / "length").read_bytes().decode("latin-1"))


def _deliver(body: bytes, stamp: str) -> None:
    signed = hmac.new(SECRET.encode(), f"1.{stamp}.".encode() + body, hashlib.sha256).digest()
    headers = {DELIVERY: "1", TIMESTAMP: stamp, SIGNATURE: f"v1,{base64.b64encode(signed).decode()}"}
    with contextlib.suppress(ValueError, AttributeError):  # which the listener answers by 401 and 400
        moved_alias(Deliveries(SECRET, clock=lambda: 1000.0).accept(headers, body))


# Settings, and what is given on the command line.


def make_params(folder: Path) -> None:
    shutil.copy(ROOT / "params.yaml", folder)


def read_params(folder: Path) -> None:
    load_params(folder / "params.yaml")


def read_edited(folder: Path) -> None:
    edit_params(folder / "params.yaml", ["train.epochs=3"])


def found(name: str) -> Callable[[Path], object]:
    return lambda folder: list(find_images([folder / name]))


def make_prefect(folder: Path) -> None:
    (folder / "pyproject.toml").write_text('[project]\nname = "x"\n[tool.ruff]\nline-length = 120\n')
    (folder / ".env").write_text("TOKEN=x\n")


METRICS = f"{KEY.results()}/metrics.json"
SEARCH = str(paths.search("digits", "mmrl"))

READERS = [
    Reader("metrics.json in the report", inside(make_results), METRICS, damaged_json, inside(read_results)),
    Reader("metrics.json to be registered", inside(make_registrable), METRICS, damaged_json, inside(read_registrable)),
    Reader(
        "adapter.json to be registered",
        inside(make_registrable),
        f"{KEY.model}/adapter.json",
        damaged_json,
        inside(read_registrable),
    ),
    Reader(
        "adapter.json in the report",
        inside(make_results),
        f"{KEY.model}/adapter.json",
        damaged_json,
        inside(read_results),
    ),
    Reader(
        "predictions.parquet",
        inside(make_results),
        f"{KEY.results()}/predictions.parquet",
        damaged_parquet,
        inside(read_results),
    ),
    Reader("a search in the report", inside(make_results), SEARCH, damaged_json, inside(read_results)),
    Reader("a search to train by", inside(make_results), SEARCH, damaged_json, inside(read_searches)),
    Reader(
        "a search to confirm",
        inside(make_confirmable),
        SEARCH,
        damaged_json,
        inside(lambda: confirm._read_search("digits", "mmrl", [3])),
    ),
    Reader("a trial of a search", inside(make_ledger), str(TRIALS), damaged_json, inside(read_ledger)),
    Reader("a search that is through", inside(make_done), "search/done.json", damaged_json, inside(read_done)),
    Reader(
        "first points of a search",
        inside(lambda: write_json("search/points.json", {"points": [POINT]})),
        "search/points.json",
        damaged_json,
        inside(read_points),
    ),
    Reader("facts of a search", inside(make_facts), "facts.json", damaged_json, inside(read_facts)),
    Reader("an output made ahead", inside(make_ready), "ready.json", damaged_json, inside(read_ready)),
    Reader("MLmodel of a version", make_model, "MLmodel", damaged_bytes, read_model),
    Reader("adapter.json of a version", make_model, "artifacts/seed1/adapter.json", damaged_json, read_model),
    Reader("archive of a store", make_archive, "backup.tar", damaged_bytes, read_archive),
    Reader("manifest of an archive", make_archive, "manifest.json", damaged_json, read_manifest_of_archive),
    Reader("sqlite database of a store", make_database, "mlflow.db", damaged_bytes, read_database),
    Reader("tags of a decision", make_decision, "tags.json", damaged_json, read_decision),
    Reader("intent of a decision", make_intent, "intent.json", damaged_json, read_intent),
    Reader("request in JSON", make_json_request, "body", damaged_json, asked("application/json")),
    Reader("request as a form", make_form_request, "body", damaged_bytes, asked("multipart/form-data; boundary=x")),
    Reader("length of a request", make_length, "length", damaged_bytes, read_length),
    Reader("log of predictions", make_log, "0.jsonl", damaged_lines, read_log),
    Reader("delivery of a webhook", make_delivery, "body", damaged_json, read_delivery),
    Reader("time of a delivery", make_length, "length", damaged_bytes, read_stamp),
    Reader("params.yaml", make_params, "params.yaml", damaged_bytes, read_params, share=0.2),
    Reader("params.yaml to be edited", make_params, "params.yaml", damaged_bytes, read_edited, share=0.1),
    Reader("table to predict, CSV", make_table, "table.csv", damaged_bytes, found("table.csv")),
    Reader("table to predict, Parquet", make_table, "two.parquet", damaged_parquet, found("two.parquet")),
    Reader(
        "pyproject.toml that Prefect reads", make_prefect, "pyproject.toml", damaged_bytes, inside(is_set_up_otherwise)
    ),
    Reader(".env that Prefect reads", make_prefect, ".env", damaged_bytes, inside(is_set_up_otherwise)),
]
