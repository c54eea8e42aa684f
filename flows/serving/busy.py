"""The answer of a server that has too much to do."""

from fastapi import HTTPException

SOON = 1  # seconds after which to ask again


def busy(what: str, retry_after: int = SOON) -> HTTPException:
    """503, with what is too much and when to ask again."""
    return HTTPException(503, f"{what}; ask again in {retry_after} s", {"Retry-After": str(retry_after)})
