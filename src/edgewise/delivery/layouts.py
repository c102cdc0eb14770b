"""Where the parts of a delta file lie: all that a relay has to know of it. Pure."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from edgewise.delivery import delta
from edgewise.model.errors import Untrusted

LEAD_IN = delta.LEAD_IN
"""Bytes that say how long the head is."""


class Span(NamedTuple):
    """One part: bytes ``start`` to ``start + length``, with their digest."""

    start: int
    length: int
    sha256: str

    @property
    def end(self) -> int:
        """Offset behind it."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Layout:
    """A delta file: its head, then its parts without gaps."""

    head: bytes
    spans: tuple[Span, ...]
    starts: tuple[int, ...]
    """Of the spans."""

    @classmethod
    def of(cls, head: bytes, sha256: str) -> Layout:
        """From the bytes of a head, once they match the file's name. Raises Untrusted."""
        spans = tuple(Span(*where) for where in delta.part_lines(delta.open_head(head, sha256)))
        return cls(head, spans, tuple(span.start for span in spans))

    @property
    def size(self) -> int:
        """Of the whole file, in bytes."""
        return self.spans[-1].end

    def at(self, offset: int) -> int:
        """Index of the part that has this byte, which is behind the head."""
        return bisect_right(self.starts, offset) - 1

    def within(self, start: int, end: int) -> range:
        """Indexes of the parts that have bytes in this range."""
        start, end = max(start, len(self.head)), min(end, self.size)
        return range(self.at(start), self.at(end - 1) + 1) if start < end else range(0)


def head_length(start: bytes) -> int:
    """Bytes of the head of a file that starts so. Raises Untrusted."""
    return delta.head_length(start)


def check(span: Span, data: bytes, name: str) -> None:
    """Raises Untrusted unless ``data`` is this part of the delta called ``name``."""
    if len(data) != span.length or hashlib.sha256(data).hexdigest() != span.sha256:
        raise Untrusted(f"a part of delta {name[:12]} (from byte {span.start}) is not what it says")
