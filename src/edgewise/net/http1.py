"""HTTP/1.1 answers, read strictly and within bounds (RFC 9112).

The other end may be broken or hostile: whatever it sends ends in an answer, in Untrusted
(it broke the rules) or in TryLater (it stopped). Nothing is read beyond what was agreed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from edgewise.model.errors import TryLater, Untrusted

HEAD: Final = 32 << 10
"""Bytes of a status line with its headers."""
LINE: Final = 256
"""Bytes of a chunk's size line; extensions are not used by anybody."""
TRAILERS: Final = 32
INTERIM: Final = 4
"""1xx answers before the real one."""
PIECE: Final = 64 << 10
"""What is handed on at a time, and the reader's own bound."""

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n\0]*)?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_HEX = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")
_NUMBER = re.compile(r"[0-9]{1,18}")


class ClosedEarly(TryLater):
    """The connection ended before the first byte of an answer: a kept one that was too old."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers (names in lower case)."""

    status: int
    headers: dict[str, str]

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another request afterwards."""
        return "close" not in self.headers.get("connection", "").lower()


async def read_head(reader: asyncio.StreamReader) -> Head:
    """The next final answer's head; interim ones are skipped."""
    for count in range(INTERIM + 1):
        try:
            data = await _until(reader, b"\r\n\r\n", HEAD, "the answer's head")
        except TryLater as error:
            cut = error.__cause__
            if count == 0 and isinstance(cut, asyncio.IncompleteReadError) and not cut.partial:
                raise ClosedEarly("the connection was closed before an answer") from error
            raise
        head = _parse_head(data)
        if head.status >= 200:
            return head
    raise Untrusted(f"the server sent more than {INTERIM} interim answers")


def _parse_head(data: bytes) -> Head:
    lines = data[:-4].split(b"\r\n")
    status = _STATUS.fullmatch(lines[0])
    if status is None:
        raise Untrusted(f"the server does not speak HTTP/1.1: {lines[0][:60]!r}")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise Untrusted(f"malformed header from the server: {line[:60]!r}")
        name = match[1].decode("ascii").lower()
        value = match[2].decode("latin-1")
        if name in headers:
            if name in ("content-length", "transfer-encoding", "content-range"):
                raise Untrusted(f"the server sent {name} twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return Head(int(status[1]), headers)


async def body_of(
    reader: asyncio.StreamReader, head: Head, *, at_most: int
) -> AsyncIterator[bytes]:
    """The body in pieces of at most 64 KiB.

    Raises Untrusted for more than ``at_most`` bytes, before reading them where the server
    says so itself, and for any framing that is not plainly right.
    """
    if head.headers.get("content-encoding", "identity").lower() != "identity":
        raise Untrusted("the server compressed an answer without being asked to")
    coding = head.headers.get("transfer-encoding")
    length = head.headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or length is not None:
            raise Untrusted(f"unclear framing: transfer-encoding {coding[:40]!r}")
        async for piece in _chunked(reader, at_most):
            yield piece
        return
    if head.status in (204, 304):
        return
    if length is None or not _NUMBER.fullmatch(length):
        raise Untrusted("the server's answer has no usable length")
    if int(length) > at_most:
        raise Untrusted(f"the answer has {length} bytes, at most {at_most} are accepted")
    async for piece in _exactly(reader, int(length)):
        yield piece


async def _chunked(reader: asyncio.StreamReader, at_most: int) -> AsyncIterator[bytes]:
    total = 0
    while True:
        line = await _until(reader, b"\r\n", LINE, "a chunk's size")
        match = _HEX.fullmatch(line[:-2])
        if match is None:
            raise Untrusted(f"malformed chunk size from the server: {line[:30]!r}")
        size = int(match[1], 16)
        total += size
        if total > at_most:
            raise Untrusted(f"the answer exceeds {at_most} bytes")
        if size == 0:
            break
        async for piece in _exactly(reader, size):
            yield piece
        if await _until(reader, b"\r\n", 2, "a chunk's end") != b"\r\n":
            raise Untrusted("a chunk is longer than its size")
    for _ in range(TRAILERS):
        if await _until(reader, b"\r\n", HEAD, "a trailer") == b"\r\n":
            return
    raise Untrusted(f"the server sent more than {TRAILERS} trailers")


async def _exactly(reader: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    left = size
    while left:
        piece = await reader.read(min(left, PIECE))
        if not piece:
            raise TryLater(f"the connection broke off {left} bytes before the end")
        left -= len(piece)
        yield piece


async def _until(reader: asyncio.StreamReader, end: bytes, at_most: int, what: str) -> bytes:
    try:
        data = await reader.readuntil(end)
    except asyncio.IncompleteReadError as error:
        raise TryLater(f"the connection broke off in {what}") from error
    except asyncio.LimitOverrunError as error:
        raise Untrusted(f"{what} is longer than {at_most} bytes") from error
    if len(data) > at_most:
        raise Untrusted(f"{what} is longer than {at_most} bytes")
    return data
