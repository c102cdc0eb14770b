"""Bodies of requests: bounded in size, and in how long they may take to come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestPayloadError

from edgewise.model.errors import BadUsage
from edgewise.net import problems

PIECE: Final = 256 << 10
"""Bytes of a streamed body handed on at once."""
PATIENCE: Final = timedelta(seconds=60)
"""Without a byte; a body that is read whole has this and its length at RATE."""
RATE: Final = 4 << 10
"""Bytes a second, over the worst modem that carries a fleet. Slower is somebody who only wants
to keep a place."""


async def read(request: web.BaseRequest, at_most: int) -> bytes:
    """All of it. Raises Refusal (too large, too slow), BadUsage."""
    if not request.body_exists:
        return b""
    length = request.content_length
    if length is not None and length > at_most:
        raise problems.Refusal(problems.too_large(at_most))
    longest = PATIENCE.total_seconds() + (at_most if length is None else length) / RATE
    try:
        # What came with its head, as nearly all do, needs no timer.
        async with asyncio.timeout(None if request.content.is_eof() else longest):
            if length is not None and hdrs.CONTENT_ENCODING not in request.headers:
                return await request.read()
            return b"".join([piece async for piece in stream(request, at_most)])
    except TimeoutError:
        raise problems.Refusal(problems.too_slow(longest)) from None
    except RequestPayloadError as error:
        raise _no_such_body() from error


async def stream(request: web.BaseRequest, at_most: int) -> AsyncIterator[bytes]:
    """Piece by piece. Raises Refusal (too large, too slow), BadUsage."""
    size = 0
    while piece := await _piece(request):
        size += len(piece)
        if size > at_most:
            raise problems.Refusal(problems.too_large(at_most))
        yield piece


async def _piece(request: web.BaseRequest) -> bytes:
    longest = PATIENCE.total_seconds()
    try:
        async with asyncio.timeout(None if request.content.is_eof() else longest):
            return await request.content.read(PIECE)
    except TimeoutError:
        raise problems.Refusal(problems.too_slow(longest)) from None
    except RequestPayloadError as error:
        raise _no_such_body() from error


def _no_such_body() -> BadUsage:
    return BadUsage(
        "the body is not what its headers say",
        hint="check Content-Encoding, and that the connection did not break off",
    )
