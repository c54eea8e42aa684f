"""Values from text that may come from anywhere: JSON, whole numbers. What is wrong with it is said in one way only."""

import json
import re
from typing import Any

DEEPEST = 100  # levels of nesting: what goes deeper is no document, and what walks it would run out of stack
DIGITS = 18  # such a number has 64 bits
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(content: str | bytes) -> Any:
    """The value that a JSON text says; NaN and infinities pass, as Python writes them.

    Raises ValueError, and nothing else, for what is no JSON, nests deeper than DEEPEST levels, or holds text that is no
    Unicode (half a surrogate pair): such text could neither be printed nor written again.
    """
    text = content.decode(json.detect_encoding(content)) if isinstance(content, bytes) else content
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested without end") from None
    if _depth_exceeds(value, DEEPEST):
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    if SURROGATE.search(text) and not _is_unicode(json.dumps(value, ensure_ascii=False)):
        raise ValueError("it holds half a surrogate pair, which is no text")
    return value


def whole_number(text: str) -> int | None:
    """The number that a text of 1 to 18 digits says, 0 to 9 alone; None for any other text.

    `str.isdigit` is true of superscripts, which `int` does not take, and `int` ends at some thousand digits.
    """
    return int(text) if re.fullmatch(f"[0-9]{{1,{DIGITS}}}", text) else None


def _depth_exceeds(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return False
    return True


def _children(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
