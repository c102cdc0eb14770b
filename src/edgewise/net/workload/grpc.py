"""gRPC on top of a stream: messages, deadlines, and errors as status codes.

Source: "gRPC over HTTP2" (grpc/doc/PROTOCOL-HTTP2.md) and statuscodes.md. Compression is not
offered: an answer is a few kilobytes on a local socket.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final
from urllib.parse import quote

from edgewise.model.errors import (
    BadUsage,
    EdgewiseError,
    Forbidden,
    NotFound,
    TryLater,
    Untrusted,
)
from edgewise.net.workload.http2 import Stream

MESSAGE: Final = 64 << 10
"""Bytes of one request message: the largest holds a token and an audience."""

OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED, PERMISSION_DENIED = 0, 3, 4, 7
FAILED_PRECONDITION, UNIMPLEMENTED, UNAVAILABLE, INTERNAL = 9, 12, 14, 13

_PLAIN: Final = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}~"
"""Printable ASCII without the percent sign, which goes as it is."""
_TIMEOUT: Final = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Call:
    """One call of a method."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._pending = bytearray()

    async def messages(self) -> AsyncIterator[bytes]:
        """The caller's messages. Raises BadUsage for what is none."""
        while True:
            while (message := self._next()) is not None:
                yield message
            data = await self.stream.receive()
            if not data:
                if self._pending:
                    raise BadUsage("the request ends within a message")
                return
            self._pending += data

    def _next(self) -> bytes | None:
        if len(self._pending) < 5:
            return None
        size = int.from_bytes(self._pending[1:5], "big")
        if self._pending[0]:
            raise _Unsupported("messages cannot be compressed here")
        if size > MESSAGE:
            raise BadUsage(f"a message of {size:,} bytes is too large, at most {MESSAGE:,}")
        if len(self._pending) < 5 + size:
            return None
        message = bytes(self._pending[5 : 5 + size])
        del self._pending[: 5 + size]
        return message

    async def message(self) -> bytes:
        """The only message of a call that has one. Raises BadUsage when there is none."""
        async for message in self.messages():
            return message
        raise BadUsage("the call has no request message")

    async def send(self, message: bytes) -> None:
        """One message of the answer. Raises Closed when the caller has gone."""
        if not self.stream.answered:
            self.stream.head([(":status", "200"), ("content-type", "application/grpc")])
        await self.stream.send(b"\0" + len(message).to_bytes(4, "big") + message)


class _Unsupported(BadUsage):
    """The caller uses a part of gRPC that we do without."""


Method = Callable[[Call], Awaitable[None]]


async def answer(method: Method | None, stream: Stream) -> None:
    """Serve one call: every end has a status. Raises Closed when the caller has gone."""
    status, said = OK, ""
    try:
        if method is None:
            raise _Unsupported(f"there is no method {stream.headers.get(':path', '')[:100]!r} here")
        async with asyncio.timeout(_deadline(stream.headers.get("grpc-timeout", ""))):
            await method(Call(stream))
    except TimeoutError:
        status, said = DEADLINE_EXCEEDED, "the time that the caller gave is over"
    except EdgewiseError as error:
        status, said = _status(error), f"{error} {error.hint}".strip()
    trailers = [("grpc-status", str(status))]
    if said:
        # RFC 3986 percent-encoding of everything but printable ASCII.
        trailers.append(
            ("grpc-message", quote(said[:1000], safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~"))
        )
    if stream.answered:
        stream.trailers(trailers)
    else:
        head = [(":status", "200"), ("content-type", "application/grpc")]
        stream.head(head + trailers, end=True)


def _status(error: EdgewiseError) -> int:
    match error:
        case _Unsupported() | NotFound():
            return UNIMPLEMENTED
        case TryLater():
            return UNAVAILABLE
        case Forbidden():
            return PERMISSION_DENIED
        case BadUsage() | Untrusted():
            return INVALID_ARGUMENT
        case _:
            return FAILED_PRECONDITION


def _deadline(text: str) -> float | None:
    found = _TIMEOUT.fullmatch(text)
    return int(found[1]) * _UNITS[found[2]] if found else None
