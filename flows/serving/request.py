"""What a request to /predict asks: read within limits and checked before anything is decoded.

Everything wrong with it is an HTTPException with a 4xx status and one line that says what, and what to do.
"""

import base64
import binascii
import io
import warnings
from typing import Annotated, Any, NamedTuple, TypeVar

from fastapi import HTTPException, Request
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from flows.serving.image_urls import Fetcher
from flows.settings.sections import ServingSection
from mmrl_core.data.images import formats
from mmrl_core.parsing import parse_json, whole_number

ENVELOPE = 1_000_000  # bytes of a request besides its image: class names, part headers, JSON
ClassName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class Options(BaseModel):
    """How an image is to be labelled."""

    model_config = ConfigDict(extra="forbid")

    class_names: Annotated[
        list[ClassName] | None, Field(min_length=1, description="Classes to choose among; by default the trained ones.")
    ] = None
    top_k: Annotated[int, Field(ge=1, le=1_000_000, description="How many names to give probabilities of.")] = 5
    abstain: Annotated[
        bool, Field(description="Say whether the confidence is below the threshold, so that none of the classes fits.")
    ] = False
    threshold: Annotated[
        float | None, Field(ge=-1, le=1, allow_inf_nan=False, description="By default the adapter's own.")
    ] = None


# The names of these three are the titles of the schemas in the OpenAPI description.
class JsonQuestion(Options):
    model_config = ConfigDict(extra="forbid", strict=True)

    image: Annotated[str, Field(min_length=1, description="The encoded image file in base64.",
                                json_schema_extra={"contentEncoding": "base64"})]  # fmt: skip


class UrlQuestion(Options):
    model_config = ConfigDict(extra="forbid", strict=True)

    url: Annotated[str, Field(min_length=1, max_length=2000, description="Where the encoded image file is.")]


class FormQuestion(Options):
    """As the OpenAPI description shows it."""

    image: Annotated[bytes, Field(description="The image file.")]


AnyOptions = TypeVar("AnyOptions", bound=Options)


class PredictRequest(NamedTuple):
    image: bytes  # encoded
    options: Options


async def read_request(request: Request, limits: ServingSection, fetcher: Fetcher) -> PredictRequest:
    """What the body asks, which is JSON or a multipart form; an image that it names by URL is fetched."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        raise HTTPException(415, f"the content type is {kind or 'not given'}; send multipart/form-data with a file "
                                 "`image`, or application/json with `image` in base64")  # fmt: skip
    body = await _read(request, limits.max_bytes * 4 // 3 + ENVELOPE)
    asked = await (_of_json(body, fetcher) if kind == "application/json" else _of_form(request, body))
    _check(asked, limits)
    return asked


async def _read(request: Request, limit: int) -> bytes:
    """The whole body; refused as soon as more of it is announced or comes."""
    announced = request.headers.get("content-length", "")
    if (length := whole_number(announced)) is not None and length > limit:
        raise _too_large(f"the request has {length} bytes", limit)
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise _too_large("the request is larger", limit)
    except ClientDisconnect:
        raise HTTPException(400, "the request ended early; send it again") from None
    return bytes(body)


def _too_large(what: str, limit: int) -> HTTPException:
    return HTTPException(413, f"{what}, the limit is {limit} bytes; send a smaller image")


async def _of_json(body: bytes, fetcher: Fetcher) -> PredictRequest:
    try:
        values = parse_json(body)
    except ValueError:
        raise HTTPException(400, "the body is not valid JSON; correct it") from None
    if isinstance(values, dict) and "url" in values:
        named = _validated(UrlQuestion, values)
        return PredictRequest(await fetcher.image(named.url), named)
    asked = _validated(JsonQuestion, values)
    try:
        return PredictRequest(base64.b64decode(asked.image, validate=True), asked)
    except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
        raise HTTPException(422, "image is not valid base64; encode the whole file, without a data: prefix") from None


async def _of_form(request: Request, body: bytes) -> PredictRequest:
    async def replay() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    whole = Request(request.scope, replay)
    try:
        async with whole.form(max_files=1, max_fields=100_000, max_part_size=ENVELOPE) as form:
            values = {name: form.getlist(name) for name in form}
            images = values.pop("image", [])
            if len(images) != 1 or isinstance(images[0], str):
                raise HTTPException(422, "the form has no file `image`; add one")
            return PredictRequest(await images[0].read(), _validated(Options, _single(values)))
    except StarletteHTTPException as error:
        if type(error) is HTTPException:
            raise
        raise HTTPException(400, f"the form cannot be read: {error.detail}; correct it") from None
    except (ValueError, KeyError, LookupError) as error:  # python-multipart on damaged headers and charsets
        raise HTTPException(400, f"the form cannot be read ({type(error).__name__}); correct it") from None


def _single(values: dict[str, list]) -> dict[str, Any]:
    """Fields of a form come as lists: all but class_names as the one value that they hold."""
    return {name: given if name == "class_names" or len(given) > 1 else given[0] for name, given in values.items()}


def _validated(model: type[AnyOptions], values: object) -> AnyOptions:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])[:100] or "the body"
        if problem["type"] == "extra_forbidden":
            known = ", ".join(model.model_fields)
            raise HTTPException(422, f"{where} is not known here; known: {known}") from None
        raise HTTPException(422, f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}") from None


def _check(asked: PredictRequest, limits: ServingSection) -> None:
    if len(asked.image) > limits.max_bytes:
        raise _too_large(f"the image has {len(asked.image)} bytes", limits.max_bytes)
    names = asked.options.class_names or []
    if len(names) > limits.max_classes:
        raise HTTPException(
            422, f"class_names has {len(names)} classes, the limit is {limits.max_classes}; ask of less"
        )
    _check_size(*_size(asked.image), limits.max_pixels)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise HTTPException(413, f"the image has {width} x {height} pixels, the limit is {max_pixels} in all; scale it "
                                 "down")  # fmt: skip


def _size(image: bytes) -> tuple[int, int]:
    """Width and height by the file's header, before anything is decoded; 0, 0 where decoding will say what is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(image), formats=formats(image)) as opened:
                return opened.size
        except Exception:  # whatever Pillow's plugins raise on damaged bytes
            return 0, 0
