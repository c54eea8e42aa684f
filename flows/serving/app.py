"""The HTTP side: routes, the API key, errors in one form, the OpenAPI description, two pages."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response, params
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from flows.serving.image_urls import Fetcher
from flows.serving.metrics import CONTENT_TYPE
from flows.serving.request import FormQuestion, JsonQuestion, UrlQuestion, read_request
from flows.serving.service import Service

PAGES = Path(__file__).parent / "pages"
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


class Known(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    class_names: Annotated[list[str], Field(description="What an image is labelled as where a question names "
                                                        "no classes; each name once.")]  # fmt: skip
    model: Version


class Ready(BaseModel):
    ready: bool
    model: Version | None = None
    problem: Annotated[str | None, Field(description="Why a newer version is not served, or none at all.")] = None


class Problem(BaseModel):
    error: Annotated[str, Field(description="One line: what is wrong, and what to do.")]


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    texts = {400: "The body cannot be read", 401: "The API key is missing or wrong", 413: "The image is too large",
             415: "Neither JSON nor a form", 422: "Something in the question is wrong",
             503: "No model is loaded yet, or too many requests wait"}  # fmt: skip
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


def create_app(service: Service) -> FastAPI:
    """The application around a service; nothing in it knows of Ray."""
    app = FastAPI(title="MMRL Ops", version=_version(), docs_url=None, redoc_url=None,
                  description="Classes of images by the version that the registry's alias names.")  # fmt: skip
    app.add_middleware(service.metrics.middleware)
    app.exception_handler(StarletteHTTPException)(_one_line)
    app.exception_handler(Exception)(_unexpected)
    guard = [Depends(_key_check(service.key_sha256))] if service.key_sha256 else []
    _add_answers(app, service, guard)
    _add_states(app, service)
    _add_pages(app)
    return app


def _add_answers(app: FastAPI, service: Service, guard: list[params.Depends]) -> None:
    fetcher = Fetcher(service.settings)

    @app.post(
        "/predict",
        response_model=Answer,
        response_description="The answer",
        response_model_exclude_none=True,
        dependencies=guard,
        responses=_problems(400, 401, 413, 415, 422, 503),
        openapi_extra=_body(bool(service.settings.url_prefixes)),
    )
    async def predict(request: Request) -> JSONResponse:
        """Label an image: upload it in a form, or send it in base64 within JSON."""
        asked = await read_request(request, service.settings, fetcher)
        return JSONResponse(await service.answer(asked))  # it has the form of Answer; checking that costs 0.1 ms

    @app.get("/classes", dependencies=guard, response_model=Known, response_description="They are",
             responses=_problems(401, 503))  # fmt: skip
    async def classes() -> dict[str, Any]:
        """The classes that the version knows."""
        return service.known()

    @app.get("/metrics", dependencies=guard, responses=_problems(401) | TEXT, response_class=Response)
    async def prometheus() -> Response:
        """Requests, latencies, batches and versions of all replicas, as Prometheus reads them."""
        return Response(await service.metrics.text(), media_type=CONTENT_TYPE)


def _add_states(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", response_description="It does")
    async def healthz() -> dict[str, bool]:
        """The process lives."""
        return {"alive": True}

    @app.get("/readyz", response_model=Ready, response_description="One is", response_model_exclude_none=True,
             responses={503: {"model": Ready, "description": "No model is loaded yet"}})  # fmt: skip
    async def readyz() -> JSONResponse:
        """Whether a model is loaded; a problem beside it says why a newer version is not."""
        live, problem = service.follower.current, service.follower.problem
        state = {"ready": live is not None, "model": live and live.identity, "problem": problem}
        known = {name: value for name, value in state.items() if value is not None}
        return JSONResponse(known, 200 if live else 503)


def _add_pages(app: FastAPI) -> None:
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    for path, name in (("/", "index.html"), ("/docs", "docs.html")):
        text = (PAGES / name).read_text()
        app.get(path, include_in_schema=False)(_page(HTMLResponse(text, headers=headers)))


def _page(page: HTMLResponse) -> Callable[[], Awaitable[Response]]:
    async def show() -> Response:
        return page

    return show


def _key_check(key_sha256: str) -> Callable[[HTTPAuthorizationCredentials | None, str | None], None]:
    """A dependency that lets a request pass with the API key, as a bearer token or in X-API-Key."""
    bearer = HTTPBearer(auto_error=False, description="The value of MMRL_API_KEY where the server runs.")
    header = APIKeyHeader(name="X-API-Key", auto_error=False)

    def check(
        token: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
        key: Annotated[str | None, Depends(header)],
    ) -> None:
        given = token.credentials if token else key or ""
        if not hmac.compare_digest(hashlib.sha256(given.encode(errors="replace")).hexdigest(), key_sha256):
            raise HTTPException(
                401,
                "send the API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                {"WWW-Authenticate": "Bearer"},
            )

    return check


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
