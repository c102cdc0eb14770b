"""Copies that make a new content from an old one (Percival 2003): found, kept and cut."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import zstandard

from edgewise.delivery.delta import AROUND
from edgewise.model.errors import NeedsPerson

WINDOW: Final = 16 << 20
"""Bytes of a large file that are searched at once: the search takes 9 times as much memory."""
_HDIFF: Final = b"HDIFF13&\0"


class Copy(NamedTuple):
    """``difference`` is added to the old bytes from ``start`` on; ``insert`` follows."""

    start: int
    difference: bytes
    insert: bytes


def search(new: bytes, old: bytes) -> Iterator[Copy]:
    """Copies that make ``new``, ``WINDOW`` bytes of a large file at a time."""
    if len(new) <= WINDOW and len(old) <= 2 * WINDOW:
        yield from _search(new, old, 0)
        return
    for at in range(0, len(new), WINDOW):
        low = max(0, at - 2 * AROUND)
        yield from _search(new[at : at + WINDOW], old[low : at + WINDOW + 2 * AROUND], low)


def _search(new: bytes, old: bytes, shift: int) -> Iterator[Copy]:
    start = before = at = 0
    difference = b""
    for old_at, new_at, length in _covers(new, old):
        if difference or new_at > at:
            yield Copy(shift + start, difference, new[before:new_at])
        start, at, before = old_at, new_at, new_at + length
        difference = subtract(new[at:before], old[start : start + length])
    if difference or before < len(new):
        yield Copy(shift + start, difference, new[before:])


def _covers(new: bytes, old: bytes) -> Iterator[tuple[int, int, int]]:
    """(old offset, new offset, length) of what is alike, by HDiffPatch: it finds the same as
    bsdiff in a third of the time, and long runs of one byte cost it nothing.

    Read from its uncompressed form: ``HDIFF13&`` NUL, eleven numbers, of which the third is
    how many covers there are, and the covers.
    """
    import hdiffpatch

    if not old or not new:
        return
    data = hdiffpatch.diff(old, new, validate=False)
    if not data.startswith(_HDIFF):
        raise NeedsPerson(
            f"hdiffpatch wrote {data[:12]!r}, which is not the form that is read here",
            hint="install the version of hdiffpatch that constraints.txt names",
        )
    numbers = _BigEndian(data, len(_HDIFF))
    count = [numbers.next() for _ in range(11)][2]
    old_at = new_at = 0
    for _ in range(count):
        back, move = numbers.signed()
        old_at += -move if back else move
        new_at += numbers.next()
        length = numbers.next()
        yield old_at, new_at, length
        old_at += length
        new_at += length


class _BigEndian:
    """Numbers of seven bits a byte, the highest first."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def next(self) -> int:
        byte = self._data[self._at]
        self._at += 1
        return self._more(byte & 127, byte & 128)

    def signed(self) -> tuple[bool, int]:
        """Whether it is negative, and the number."""
        byte = self._data[self._at]
        self._at += 1
        return bool(byte & 128), self._more(byte & 63, byte & 64)

    def _more(self, value: int, goes_on: int) -> int:
        while goes_on:
            byte = self._data[self._at]
            self._at += 1
            value, goes_on = value << 7 | byte & 127, byte & 128
        return value


def subtract(new: bytes, old: bytes) -> bytes:
    """Bytewise difference modulo 256; the counterpart of ``delta.add``."""
    one, other = np.frombuffer(new, np.uint8), np.frombuffer(old, np.uint8)
    return (one - other).tobytes()


_KEPT = struct.Struct("<QII")


def keep(file: Path, copies: list[Copy]) -> None:
    """Write copies to a file, which has them completely or is not there."""
    waiting = file.with_name(f".{file.name}.{os.getpid()}")
    data = b"".join(
        _KEPT.pack(copy.start, len(copy.difference), len(copy.insert))
        + copy.difference
        + copy.insert
        for copy in copies
    )
    waiting.write_bytes(zstandard.compress(data, 1) if copies else b"")
    waiting.rename(file)


def kept(file: Path) -> Iterator[Copy]:
    """Copies from a file that ``keep`` wrote."""
    unpacker = zstandard.ZstdDecompressor()
    data = unpacker.decompress(file.read_bytes(), max_output_size=1 << 31)
    at = 0
    while at < len(data):
        start, copied, inserted = _KEPT.unpack_from(data, at)
        at += _KEPT.size
        yield Copy(start, data[at : at + copied], data[at + copied : at + copied + inserted])
        at += copied + inserted


def cut(copies: Iterator[Copy], size: int) -> Iterator[list[Copy]]:
    """Copies in runs of ``size`` bytes of output each; the last run is shorter."""
    run: list[Copy] = []
    room = size
    for start, difference, insert in copies:
        while difference or insert:
            one = difference[:room]
            other = insert[: room - len(one)] if len(one) == len(difference) else b""
            run.append(Copy(start, one, other))
            room -= len(one) + len(other)
            start += len(one)
            difference, insert = difference[len(one) :], insert[len(other) :]
            if not room:
                yield run
                run, room = [], size
    if run:
        yield run
