"""What may be printed of a store's URI, and of what others say about it: no password and no token."""

import re
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "***"
SHORTEST = 3  # characters of a piece of a password that is hidden by itself: shorter ones are in every text
LONGEST = 300  # characters of an error's line

_NAMES = r"\b(?:ssl)?(?:password|passwd|pwd)|\b(?:access_)?token|\bsecret"
# `password=...` of a query or of libpq's text, where the value may be quoted.
_VALUE = re.compile(rf"({_NAMES})(\s*=\s*)('(?:[^'\\]|\\.)*'|\"[^\"]*\"|[^\s&]+)", re.IGNORECASE)
_OF_QUERY = re.compile(rf"[?&](?:{_NAMES})=([^&]*)", re.IGNORECASE)
_SCHEME = r"([A-Za-z][\w+.-]*://)(?!/)"
_USERINFO = re.compile(rf"{_SCHEME}(\S*)@")
# A password with a space; a port and what follows it is none.
_SPACED = re.compile(rf"{_SCHEME}([^\s:/@]*:(?!\d+(?:\W|$))\S[^@\n]*@(?:\S*@)?)")
_CUT = re.compile(r"[@:/?#\[\]\s]")


def redacted(text: str, uri: str = "") -> str:
    """The text with `***` for passwords and tokens: those of the URIs in it, and those of `uri` in whatever form a
    driver prints them, also piece by piece."""
    for secret in sorted(_secrets(uri), key=len, reverse=True):
        text = re.sub(_whole(secret), HIDDEN, text)
    text = _VALUE.sub(rf"\1\2{HIDDEN}", text)
    return _USERINFO.sub(_hidden, _SPACED.sub(_hidden, text))


def printable(uri: str) -> str:
    """A store's URI without its password or token."""
    return redacted(uri, uri)


def first_line(error: BaseException, uri: str = "") -> str:
    """The first line of an error's message, redacted, at most LONGEST characters; the error's class name where there
    is no message."""
    message = redacted(str(error).strip(), uri) or type(error).__name__
    line = message.splitlines()[0].rstrip(".")
    half = LONGEST // 2 - 5
    return line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}"


def _hidden(match: re.Match[str]) -> str:
    """A URI's scheme and userinfo: a database's user may be seen, on the web a token can stand in its place."""
    scheme, userinfo = match[1], match[2].removesuffix("@")
    user, colon, _ = userinfo.partition(":")
    if scheme.startswith("http"):
        return f"{scheme}{HIDDEN}@"
    return f"{scheme}{user}:{HIDDEN}@" if colon else match[0]


def _secrets(uri: str) -> set[str]:
    """The strings that must not be printed: each secret of a URI, encoded and not, and what is left of one that was cut
    where a raw @ : / ? # [ ] or space ends something else."""
    forms = {form for secret in (*_OF_QUERY.findall(uri), *_userinfo(_OF_QUERY.sub("", uri))) if secret
             for form in _forms(secret)}  # fmt: skip
    ends = {f"{form[match.end() :]}@" for form in forms for match in _CUT.finditer(form) if match.end() < len(form)}
    pieces = {piece for form in forms for piece in _CUT.split(form) if len(piece) >= SHORTEST}
    return forms | ends | pieces


def _userinfo(uri: str) -> list[str]:
    """The password that stands before the last @ of a URI; on the web the whole of what stands there as well."""
    match = re.match(rf"{_SCHEME}(.*)@", uri, re.DOTALL)
    if not match:
        return []
    password = match[2].partition(":")[2]
    return [match[2], password] if match[1].startswith("http") else [password]


def _forms(secret: str) -> set[str]:
    """A secret as it may be written: as it is, decoded, and encoded as this or that library does."""
    plain = unquote(secret)
    return {secret, plain, quote(plain, safe=""), quote_plus(plain), quote(plain, safe="!#$%&'()*+,/:;=?@[]~")}


def _whole(secret: str) -> str:
    """A pattern that does not find the secret within a longer word."""
    before, after = (r"(?<!\w)" if secret[0].isalnum() else "", r"(?!\w)" if secret[-1].isalnum() else "")
    return before + re.escape(secret) + after
