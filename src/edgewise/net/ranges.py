"""Which bytes of a file a GET or HEAD asks for (RFC 9110, sections 13 and 14). Pure.

One range is honoured. Several at once, other units and anything malformed are answered with
the whole file, as the RFC allows: nobody who fetches content asks for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_RANGE: Final = re.compile(r"bytes=[ \t]*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))[ \t]*")
_TAG: Final = re.compile(r'(?:W/)?"[!#-~]*"')


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to answer: status, and the bytes from ``start`` up to ``end``."""

    status: int
    start: int
    end: int

    def headers(self, size: int) -> dict[str, str]:
        """``Content-Range`` where there has to be one."""
        if self.status == 206:
            return {"Content-Range": f"bytes {self.start}-{self.end - 1}/{size}"}
        return {"Content-Range": f"bytes */{size}"} if self.status == 416 else {}


def asked(headers: Mapping[str, str]) -> tuple[int, int | None]:
    """The range as the request words it, before the file's size is known: a hint, no more.

    (0, None) where there is none, or it counts from the end.
    """
    found = _RANGE.fullmatch(headers.get("Range", ""))
    if found is None or found[3] is not None:
        return 0, None
    return int(found[1]), int(found[2]) + 1 if found[2] else None


def wanted(headers: Mapping[str, str], size: int, etag: str) -> Wanted:
    """200, 206, 304 or 416, for a file of ``size`` bytes whose entity tag is ``etag`` (as it
    stands in the header, with its quotes)."""
    if (known := headers.get("If-None-Match")) is not None and _names(known, etag, weak=True):
        return Wanted(304, 0, 0)
    found = _RANGE.fullmatch(headers.get("Range", ""))
    # A date in If-Range never matches: we send none.
    if found is None or not _names(headers.get("If-Range", etag), etag, weak=False):
        return Wanted(200, 0, size)
    if found[3] is not None:
        length = min(int(found[3]), size)
        return Wanted(206, size - length, size) if length else Wanted(416, 0, 0)
    start = int(found[1])
    end = min(int(found[2]) + 1, size) if found[2] else size
    if found[2] and int(found[2]) < start:
        return Wanted(200, 0, size)
    return Wanted(206, start, end) if start < size else Wanted(416, 0, 0)


def _names(header: str, etag: str, *, weak: bool) -> bool:
    if header.strip() == "*":
        return weak
    tags = _TAG.findall(header)
    if weak:
        return etag.removeprefix("W/") in {tag.removeprefix("W/") for tag in tags}
    return not etag.startswith("W/") and etag in tags
