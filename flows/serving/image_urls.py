"""Images that a request names by URL: below the prefixes of `serving.url_prefixes` alone, so by default none.

Nothing is followed elsewhere: whoever asks could otherwise make the server read what only the server can reach.
"""

import asyncio

import httpx
from fastapi import HTTPException

from flows.settings.sections import ServingSection

SECONDS = 10  # that an image may take, all of it
HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity"}  # the limit holds for the bytes as they come


class Fetcher:
    """Gets images within the settings' prefixes and `max_bytes`."""

    def __init__(self, settings: ServingSection):
        self._prefixes = [httpx.URL(prefix) for prefix in settings.url_prefixes]
        self._limit = settings.max_bytes
        self._tls = httpx.create_ssl_context() if self._prefixes else True  # takes longer to make than a client

    async def image(self, url: str) -> bytes:
        """The encoded image. Raises HTTPException: 413 above `max_bytes`, 422 for a URL that is not below a prefix,
        or does not answer 200 in time."""
        address = self._address(url)
        client = httpx.AsyncClient(verify=self._tls, headers=HEADERS, follow_redirects=False, timeout=SECONDS)
        try:
            async with asyncio.timeout(SECONDS), client, client.stream("GET", address) as response:
                return await self._body(response)
        except (httpx.HTTPError, TimeoutError) as error:
            raise _unusable(f"the image at {address} cannot be fetched ({type(error).__name__})") from None

    def _address(self, url: str) -> httpx.URL:
        if not self._prefixes:
            raise _unusable("images are not fetched from a URL here")
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL:
            raise _unusable("url is not a URL") from None
        if not any(_is_below(address, prefix) for prefix in self._prefixes):
            raise _unusable(f"url is not below {' or '.join(map(str, self._prefixes))}")
        return address

    async def _body(self, response: httpx.Response) -> bytes:
        if response.status_code != 200:
            raise _unusable(f"{response.url} answers {response.status_code}")
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > self._limit:
                raise HTTPException(
                    413, f"the image at {response.url} is larger than {self._limit} bytes; send a smaller image"
                )
        return bytes(body)


def _is_below(address: httpx.URL, prefix: httpx.URL) -> bool:
    same = (address.scheme, address.netloc, address.userinfo) == (prefix.scheme, prefix.netloc, prefix.userinfo)
    return same and address.raw_path.startswith(prefix.raw_path) and ".." not in address.path.split("/")


def _unusable(what: str) -> HTTPException:
    return HTTPException(422, f"{what}; send the file itself as `image` in base64")
