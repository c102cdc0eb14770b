"""Where a body ends: chunked coding, read strictly and written anew (RFC 9112, section 7.1). Pure.

Chunk extensions and trailers are read within bounds and dropped.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from edgewise.net.egress.heads import Malformed

LINE: Final = 256
"""Bytes of a chunk's size line; extensions are used by nobody."""
TRAILERS: Final = 8 << 10
"""Bytes of all trailers."""

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")


class Chunks:
    """Reads a chunked body piece by piece."""

    __slots__ = ("_left", "_line", "_state", "_trailers", "done")

    def __init__(self) -> None:
        self._state: Literal["size", "data", "end", "trailers"] = "size"
        self._left = 0
        self._line = b""
        self._trailers = 0
        self.done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """The payload in ``data``, and what follows the body once it is ``done``.

        Raises Malformed.
        """
        payload: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if self._state == "data":
                piece = data[at : at + self._left]
                payload.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left == 0:
                    self._state = "end"
                continue
            line, at = self._read_line(data, at)
            if line is not None:
                self._take(line)
        return b"".join(payload), data[at:]

    def _read_line(self, data: bytes, at: int) -> tuple[bytes | None, int]:
        end = data.find(b"\n", at)
        bound = TRAILERS if self._state == "trailers" else LINE
        piece = data[at:] if end < 0 else data[at : end + 1]
        self._line += piece
        if len(self._line) > bound:
            raise Malformed("a chunk's size or trailer is too long")
        if end < 0:
            return None, len(data)
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise Malformed("a bare CR or LF between chunks")
        return line[:-2], end + 1

    def _take(self, line: bytes) -> None:
        if self._state == "size":
            match = _SIZE.fullmatch(line)
            if match is None:
                raise Malformed(f"{line[:30]!r} is no chunk size")
            self._left = int(match[1], 16)
            self._state = "data" if self._left else "trailers"
        elif self._state == "end":
            if line:
                raise Malformed("a chunk is longer than its size")
            self._state = "size"
        elif not line:
            self.done = True
        else:
            self._trailers += len(line)
            if self._trailers > TRAILERS or _TRAILER.fullmatch(line) is None:
                raise Malformed("malformed or too many trailers")


class Exact:
    """A body of a length that is known."""

    __slots__ = ("done", "left")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """As ``Chunks.feed``."""
        size = len(data)
        if size <= self.left:
            self.left -= size
            self.done = self.left == 0
            return data, b""
        piece, rest = data[: self.left], data[self.left :]
        self.left = 0
        self.done = True
        return piece, rest


class ToEnd:
    """A body that ends with the connection."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """As ``Chunks.feed``."""
        return data, b""


Body = Chunks | Exact | ToEnd


def body_of(length: int) -> Body:
    """For a length of ``heads``: a number, CHUNKED or TO_END."""
    if length >= 0:
        return Exact(length)
    return Chunks() if length == -1 else ToEnd()


def chunk(payload: bytes, *, last: bool) -> bytes:
    """Payload as one chunk; with the end of the body when it is the last."""
    data = b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""
    return data + b"0\r\n\r\n" if last else data
