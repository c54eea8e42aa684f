"""The HTTP side: routes, the API key, errors in one form, the OpenAPI description, two pages."""

import asyncio
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, HTTPException, Request, Response, params
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from flows.serving.busy import busy
from flows.serving.http.departure import Departure, Left
from flows.serving.http.doors import Key, LoopbackHost, RateLimit
from flows.serving.http.protocol import DEPARTURE
from flows.serving.metrics import CONTENT_TYPE, Metrics
from flows.serving.request import Body, FormQuestion, JsonQuestion, Reader, UrlQuestion
from flows.settings.sections import ServingSection

PREDICT = "/predict"
PAGES = Path(__file__).parent / "pages"
LEFT = 499  # what nginx notes for who has hung up before there was an answer
# The pages contain their style and script; nothing is fetched from anywhere else.
POLICY = ("default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
          "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")  # fmt: skip


class Version(BaseModel):
    """The version that gave an answer, the whole of it."""

    name: str
    version: int
    adapter_sha256: str


class Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    label: Annotated[str, Field(description="The most probable name.")]
    probability: float
    probabilities: Annotated[dict[str, float], Field(description="Of the top_k most probable names, in order; "
                                                               "classes of one name are added up.")]  # fmt: skip
    confidence: Annotated[float, Field(description="Cosine of the image with the nearest class; what is compared with "
                                                   "the threshold.")]  # fmt: skip
    abstained: Annotated[bool | None, Field(description="Whether none of the classes fits; there if it was asked.")] = (
        None
    )
    model: Version


class Threshold(BaseModel):
    """Where the adapter abstains."""

    threshold: Annotated[float, Field(description="The confidence below which none of the classes fits.")]
    keep: Annotated[float, Field(description="The share of the validation images that reaches it.")]


class Known(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    class_names: Annotated[list[str], Field(description="What an image is labelled as where a question names "
                                                        "no classes; each name once.")]  # fmt: skip
    abstain: Annotated[Threshold | None, Field(description="Null where the adapter has no threshold.")] = None
    model: Version


class Ready(BaseModel):
    ready: bool
    model: Version | None = None
    problem: Annotated[str | None, Field(description="Why a newer version is not served, or none at all.")] = None


class Problem(BaseModel):
    error: Annotated[str, Field(description="One line: what is wrong, and what to do.")]


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    texts = {400: "The body cannot be read", 401: "The API key is missing or wrong", 413: "The image is too large",
             403: "The Host header is no name of this machine", 408: "The request did not come in time",
             415: "Neither JSON nor a form", 422: "Something in the question is wrong",
             429: "More questions a second than the key may ask", 431: "The head is too large",
             503: "No model is loaded yet, or it has too much to do; Retry-After says when to ask again"}  # fmt: skip
    return {code: {"model": Problem, "description": texts[code]} for code in codes}


TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "Lines of text", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


def _body(urls: bool) -> dict[str, Any]:
    """The two forms of a request's body in the OpenAPI description; with `urls`, JSON may name its image by URL."""
    by_json = [kind.model_json_schema() for kind in ((JsonQuestion, UrlQuestion) if urls else (JsonQuestion,))]
    content = {
        "multipart/form-data": {"schema": FormQuestion.model_json_schema()},
        "application/json": {"schema": {"oneOf": by_json} if urls else by_json[0]},
    }
    return {"requestBody": {"required": True, "content": content}}


class Model(Protocol):
    """What answers: a model in this process, or replicas elsewhere."""

    async def answer(self, asked: Body, departure: Departure) -> dict[str, Any]:
        """Label, probabilities and the version they are from. Raises HTTPException; Left, once who asked has gone."""

    async def known(self) -> dict[str, Any]:
        """The trained classes, and the version that knows them. Raises HTTPException, 503, while none is loaded."""

    async def ready(self) -> dict[str, Any]:
        """As `Ready`."""


def create_app(
    settings: ServingSection, model: Model, metrics: Metrics, key_sha256: str | None = None, *, loopback: bool = False
) -> FastAPI:
    """The application around a model; nothing in it knows of Ray. With `loopback` only who asks for a name of this
    machine is answered."""
    app = FastAPI(title="MMRL Ops", version=_version(), docs_url=None, redoc_url=None,
                  generate_unique_id_function=lambda route: route.name,  # what a client made of it calls the question
                  description="Classes of images by the version that the registry's alias names.")  # fmt: skip
    key = Key(key_sha256)
    predict = _add_predictions(app, settings, model, key)
    app.add_middleware(Shortcut, predict=predict, key=key)
    if loopback:
        app.add_middleware(LoopbackHost)
    app.add_middleware(metrics.middleware)
    app.exception_handler(StarletteHTTPException)(_one_line)
    app.exception_handler(Exception)(_unexpected)
    _add_answers(app, model, metrics, key.guard)
    _add_states(app, model)
    _add_pages(app)
    return app


class Shortcut:
    """ASGI around the application: a question goes straight to its function. FastAPI's way there, by routes and
    dependencies, takes as long as all else that the event loop does for it."""

    def __init__(self, app: ASGIApp, predict: Callable[[Request], Awaitable[Response]], key: Key):
        self._app, self._predict, self._key = app, predict, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PREDICT or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            self._key.check(request.headers)
            response = await self._predict(request)
        except HTTPException as error:
            response = await _one_line(request, error)
        await response(scope, receive, send)


def _add_predictions(
    app: FastAPI, settings: ServingSection, model: Model, key: Key
) -> Callable[[Request], Awaitable[Response]]:
    reader, rate = Reader(settings), RateLimit(settings.rate_limit)

    @app.post(
        PREDICT,
        response_model=Answer,
        response_description="The answer",
        response_model_exclude_none=True,
        dependencies=key.guard,
        responses=_problems(400, 401, 403, 408, 413, 415, 422, 429, 431, 503),
        openapi_extra=_body(bool(settings.url_prefixes)),
    )
    async def predict(request: Request) -> Response:
        """Label an image: upload it in a form, or send it in base64 within JSON."""
        rate.check()
        body, departure = None, getattr(request.state, DEPARTURE, None) or Departure()
        try:
            async with asyncio.timeout(settings.request_seconds):
                body = await reader.read(request)
                answer = await model.answer(body, departure)
        except TimeoutError:
            if body is None:
                raise HTTPException(408, f"the body did not come within {settings.request_seconds:g} s") from None
            raise busy(f"the answer took more than {settings.request_seconds:g} s") from None
        except Left:
            return Response(status_code=LEFT)
        finally:
            if body is not None:
                reader.release(body)
        return JSONResponse(answer)  # it has the form of Answer; checking that costs 0.1 ms

    return predict


def _add_answers(app: FastAPI, model: Model, metrics: Metrics, guard: list[params.Depends]) -> None:
    @app.get("/classes", dependencies=guard, response_model=Known, response_description="They are",
             responses=_problems(401, 403, 503))  # fmt: skip
    async def classes() -> dict[str, Any]:
        """The classes that the version knows."""
        return await model.known()

    @app.get("/metrics", dependencies=guard, responses=_problems(401, 403) | TEXT, response_class=Response)
    async def prometheus() -> Response:
        """Requests, latencies, batches and versions of all replicas, as Prometheus reads them."""
        return Response(await metrics.text(), media_type=CONTENT_TYPE)


def _add_states(app: FastAPI, model: Model) -> None:
    @app.get("/healthz", response_description="It does", responses=_problems(403))
    async def healthz() -> dict[str, bool]:
        """The process lives."""
        return {"alive": True}

    @app.get("/readyz", response_model=Ready, response_description="One is", response_model_exclude_none=True,
             responses=_problems(403) | {503: {"model": Ready, "description": "No model is loaded yet"}})  # fmt: skip
    async def readyz() -> JSONResponse:
        """Whether a model is loaded; a problem beside it says why a newer version is not."""
        state = await model.ready()
        return JSONResponse(state, 200 if state["ready"] else 503, {} if state["ready"] else {"Retry-After": "5"})


def _add_pages(app: FastAPI) -> None:
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    for path, name in (("/", "index.html"), ("/docs", "docs.html")):
        text = (PAGES / name).read_text()
        app.get(path, include_in_schema=False)(_page(HTMLResponse(text, headers=headers)))


def _page(page: HTMLResponse) -> Callable[[], Awaitable[Response]]:
    async def show() -> Response:
        return page

    return show


async def _one_line(request: Request, error: StarletteHTTPException) -> Response:
    text = " ".join(str(error.detail).encode(errors="backslashreplace").decode().split())
    return JSONResponse({"error": text}, error.status_code, headers=error.headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"the server failed ({type(error).__name__}); its log says more"}, 500)


def _version() -> str:
    try:
        return version("mmrl-ops")
    except PackageNotFoundError:
        return "0"
