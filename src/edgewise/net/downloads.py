"""A download as it comes: its size, and whether it was read to its end."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from edgewise.net.http1 import Head

RANGE: Final = re.compile(r"bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/([0-9]{1,18}|\*)")
"""Content-Range (RFC 9110, section 14.4)."""


@dataclass(frozen=True, slots=True)
class Download:
    """An answer whose head has come."""

    size: int
    """Bytes of the whole file; -1 when the server does not say."""
    pieces: AsyncIterator[bytes]


@dataclass(slots=True)
class Watched:
    """Knows whether an answer was read to its end."""

    pieces: AsyncIterator[bytes]
    whole: bool = False

    async def run(self) -> AsyncIterator[bytes]:
        """The pieces; iterate it once."""
        async with aclosing(self.pieces) as inner:  # type: ignore[type-var]
            async for piece in inner:
                yield piece
        self.whole = True


def total(head: Head) -> int:
    """Bytes of the whole file, as the answer says."""
    if head.status == 200:
        length = head.headers.get("content-length", "")
        return int(length) if re.fullmatch("[0-9]{1,18}", length) else -1
    found = RANGE.fullmatch(head.headers.get("content-range", ""))
    return int(found[2]) if found is not None and found[2] != "*" else -1
