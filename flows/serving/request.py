"""What a request to /predict asks: read within limits, counted before it is parsed, checked before it is decoded.

Everything wrong with it is an HTTPException with a 4xx status and one line that says what, and what to do.
"""

import base64
import binascii
import logging
from typing import Annotated, Any, NamedTuple, TypeVar

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from python_multipart.multipart import FormParser, parse_options_header
from starlette.requests import ClientDisconnect

from flows.serving.busy import busy
from flows.serving.http.departure import Left
from flows.settings.sections import ServingSection
from mmrl_core.data.images import size_of
from mmrl_core.parsing import parse_json, whole_number

ENVELOPE = 1_000_000  # bytes of a request besides its image: class names, part headers, JSON
PARTS = 100  # of a form or of JSON, besides class names
LONGEST_NAME = 200
HELD = 256_000_000  # bytes of bodies at a time; at least four of the largest
ClassName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST_NAME)]


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


logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it would write down what is odd, megabytes of it

AnyOptions = TypeVar("AnyOptions", bound=Options)


class Body(NamedTuple):
    """A question as it came."""

    kind: str  # application/json or multipart/form-data
    content_type: str
    content: bytes


class Question(NamedTuple):
    image: bytes  # encoded; empty where `options` is a UrlQuestion that was not fetched yet
    options: Options


class Reader:
    """Reads bodies, of which it holds a bounded number of bytes at a time, wherever they wait."""

    def __init__(self, limits: ServingSection):
        self.limit = limits.max_bytes * 4 // 3 + ENVELOPE
        self._room = max(HELD, 4 * self.limit)

    async def read(self, request: Request) -> Body:
        """The body; `release` gives its room back. Raises HTTPException: 415 for what is neither JSON nor a form, 413
        as soon as more than the limit is announced or comes, 503 while others fill the room; Left where who asks hangs
        up before its end."""
        content_type = request.headers.get("content-type", "")
        kind = content_type.partition(";")[0].strip().lower()
        if kind not in ("application/json", "multipart/form-data"):
            raise HTTPException(415, f"the content type is {kind or 'not given'}; send multipart/form-data with a file "
                                     "`image`, or application/json with `image` in base64")  # fmt: skip
        announced = whole_number(request.headers.get("content-length", ""))
        if announced is not None and announced > self.limit:
            raise _too_large(f"the request has {announced} bytes", self.limit)
        return Body(kind, content_type, await self._content(request))

    async def _content(self, request: Request) -> bytes:
        content = bytearray()
        try:
            async for part in request.stream():
                content += part
                self._room -= len(part)
                if len(content) > self.limit:
                    raise _too_large("the request is larger", self.limit)
                if self._room < 0:
                    raise busy("too much is being sent at once")
        except ClientDisconnect:
            self._room += len(content)
            raise Left from None
        except BaseException:
            self._room += len(content)
            raise
        return bytes(content)

    def release(self, body: Body) -> None:
        self._room += len(body.content)


def _too_large(what: str, limit: int) -> HTTPException:
    return HTTPException(413, f"{what}, the limit is {limit} bytes; send a smaller image")


def parse(body: Body, limits: ServingSection) -> Question:
    """What a body asks; not on the event loop, since parsing and measuring may take a while."""
    asked = _of_json(body.content, limits) if body.kind == "application/json" else _of_form(body, limits)
    if not isinstance(asked.options, UrlQuestion):
        check_image(asked.image, limits)
    return asked


def _of_json(content: bytes, limits: ServingSection) -> Question:
    _refuse_many(content.count(b",") + content.count(b"[") + content.count(b"{"), limits)
    try:
        values = parse_json(content)
    except ValueError:
        raise HTTPException(400, "the body is not valid JSON; correct it") from None
    if isinstance(values, dict):
        _count_classes(values.get("class_names"), limits)
    if isinstance(values, dict) and "url" in values:
        return Question(b"", _validated(UrlQuestion, values))
    asked = _validated(JsonQuestion, values)
    try:
        return Question(base64.b64decode(asked.image, validate=True), asked)
    except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
        raise HTTPException(422, "image is not valid base64; encode the whole file, without a data: prefix") from None


def _refuse_many(parts: int, limits: ServingSection) -> None:
    """Before anything is parsed: a body of millions of parts would take seconds and gigabytes. Commas may stand in a
    name, so that there may be as many as the longest names have room for."""
    most = PARTS + limits.max_classes * LONGEST_NAME
    if parts > most:
        raise HTTPException(422, f"the body has more than {most} parts, class_names may have {limits.max_classes}; ask "
                                 "of less")  # fmt: skip


def _count_classes(names: object, limits: ServingSection) -> None:
    if isinstance(names, list) and len(names) > limits.max_classes:
        raise HTTPException(
            422, f"class_names has {len(names)} classes, the limit is {limits.max_classes}; ask of less"
        )


def _of_form(body: Body, limits: ServingSection) -> Question:
    values, images = _fields(body, limits)
    if len(images) != 1:
        raise HTTPException(422, f"the form has {len(images)} files `image`; send one"
                            if images else "the form has no file `image`; add one")  # fmt: skip
    _count_classes(values.get("class_names"), limits)
    return Question(images[0], _validated(Options, _single(values)))


def _fields(body: Body, limits: ServingSection) -> tuple[dict[str, list[str]], list[bytes]]:
    """The values of each field, and the files that are named `image`."""
    values: dict[str, list[str]] = {}
    images: list[bytes] = []

    def on_field(field: Any) -> None:
        values.setdefault(_text(field.field_name), []).append(_text(field.value))

    def on_file(file: Any) -> None:
        if _text(file.field_name) == "image":
            file.file_object.seek(0)
            images.append(file.file_object.read())

    try:
        boundary = parse_options_header(body.content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise HTTPException(400, "the form cannot be read: its content type names no boundary; correct it")
        _refuse_parts(body.content.count(b"--" + boundary), limits)
        limit = {"MAX_MEMORY_FILE_SIZE": len(body.content) + 1, "MAX_FIELD_SIZE": ENVELOPE}
        ends: list[bool] = []
        parser = FormParser(body.kind, on_field, on_file, lambda: ends.append(True), boundary, config=limit)
        parser.write(body.content)
        if not ends:
            raise ValueError("it does not end")
        return values, images
    except HTTPException:
        raise
    except (ValueError, LookupError, OSError, AssertionError) as error:  # of damaged headers and charsets
        raise HTTPException(400, f"the form cannot be read ({type(error).__name__}); correct it") from None


def _refuse_parts(parts: int, limits: ServingSection) -> None:
    if parts > limits.max_classes + PARTS:
        raise HTTPException(422, f"the form has {parts} parts, class_names may have {limits.max_classes}; ask of less")


def _text(value: bytes | None) -> str:
    return (value or b"").decode()


def _single(values: dict[str, list[str]]) -> dict[str, Any]:
    """Fields of a form come as lists: all but class_names as the one value that they hold."""
    return {name: given if name == "class_names" or len(given) > 1 else given[0] for name, given in values.items()}


def _validated(model: type[AnyOptions], values: object) -> AnyOptions:
    _refuse_unknown(model, values)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])[:100] or "the body"
        raise HTTPException(422, f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}") from None


def _refuse_unknown(model: type[Options], values: object) -> None:
    """Before pydantic does, which makes an error of each of 100,000 names while no other thread runs."""
    known = model.model_fields
    if isinstance(values, dict) and (name := next((name for name in values if name not in known), None)) is not None:
        raise HTTPException(422, f"{name[:100]} is not known here; known: {', '.join(known)}")


def check_image(image: bytes, limits: ServingSection) -> None:
    """Raises HTTPException, 413, for an image of too many bytes, or of too many pixels by its header."""
    if len(image) > limits.max_bytes:
        raise _too_large(f"the image has {len(image)} bytes", limits.max_bytes)
    width, height = size_of(image)
    if width * height > limits.max_pixels:
        raise HTTPException(413, f"the image has {width} x {height} pixels, the limit is {limits.max_pixels} in all; "
                                 "scale it down")  # fmt: skip
