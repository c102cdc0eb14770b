"""How one new content comes cheapest from one old content: tried, in a process of its own.

What was found is kept in a cache folder by the pair of digests, so that many deltas which
share pairs (1.0 -> 1.2, 1.1 -> 1.2) share the search, which is most of the work.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

import zstandard

from edgewise.delivery.delta import AROUND
from edgewise.model.errors import NeedsPerson
from edgewise.protocol import limits

WINDOW: Final = 16 << 20
"""Bytes of a large file that are searched at once: the search takes 9 times as much memory."""
TINY: Final = 600
"""Bytes of a packed file below which no better way is looked for."""
_ELF: Final = b"\x7fELF"
_TRIAL_LEVEL = 3
_PER_COPY: Final = 3
"""What a copy's numbers take when packed, for the estimate."""
_RAW = zstandard.DICT_TYPE_RAWCONTENT
_HDIFF: Final = b"HDIFF13&\0"
_DULL: Final = 40
"""Times that a content packs by itself, from which on there is nothing to search for."""

Way = Literal["prefix", "bsdiff", "solid"]


class Pair(NamedTuple):
    """One question."""

    new: Path
    old: Path
    name: str
    """Of the pair in the cache: both digests, and whether they are expanded."""


class Copy(NamedTuple):
    """``difference`` is added to the old bytes from ``start`` on; ``insert`` follows."""

    start: int
    difference: bytes
    insert: bytes


def packed_with(new: bytes, prefix: bytes, level: int) -> bytes:
    """One zstd frame with ``prefix`` as raw content before it."""
    known = zstandard.ZstdCompressionDict(prefix, dict_type=_RAW) if len(prefix) >= 8 else None
    reach = max(10, min(24, (len(new) + len(prefix)).bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        window_log=reach,
        enable_ldm=reach > 21,
        source_size=len(new),
        dict_size=len(prefix),
    )
    return zstandard.ZstdCompressor(dict_data=known, compression_params=parameters).compress(new)


def tried(pair: Pair, cache: Path) -> Way:
    """The way, after leaving copies in the cache where it is bsdiff."""
    kept = cache / pair.name
    try:
        os.utime(kept)
    except FileNotFoundError:
        pass
    else:
        found: Way = "bsdiff" if kept.stat().st_size else "prefix"
        return found
    new, old = pair.new.read_bytes(), pair.old.read_bytes()
    way, copies = _try(new, old)
    if way != "solid":
        keep(kept, copies)
    return way


def _try(new: bytes, old: bytes) -> tuple[Way, list[Copy]]:
    fits = len(new) <= limits.PART_OUTPUT and len(old) <= limits.PART_BASE // 2
    if len(new) < TINY:
        return "prefix", []
    elf = new[:4] == _ELF == old[:4]
    if fits:
        by_prefix = len(packed_with(new, old, _TRIAL_LEVEL))
        if by_prefix < TINY and not elf:
            return "prefix", []
        alone = len(zstandard.compress(new, _TRIAL_LEVEL))
        if not elf and by_prefix > 0.97 * alone:
            return "solid", []
    else:
        by_prefix = len(new)
        alone = len(zstandard.compress(new, _TRIAL_LEVEL))
    if alone * _DULL < len(new):
        return ("prefix" if by_prefix < alone else "solid"), []
    copies = list(search(new, old))
    differences = b"".join(copy.difference for copy in copies)
    inserts = b"".join(copy.insert for copy in copies)
    by_copies = len(zstandard.compress(differences, _TRIAL_LEVEL)) + _PER_COPY * len(copies)
    by_copies += len(zstandard.compress(inserts, _TRIAL_LEVEL))
    if min(by_copies, by_prefix) > 0.97 * alone:
        return "solid", []
    # LZMA packs differences better than the estimate says, most so for programs.
    if fits and by_prefix <= by_copies * (0.9 if elf else 1.0):
        return "prefix", []
    return "bsdiff", copies


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
    if new == old:
        return bytes(len(new))
    size = len(new)
    high = int.from_bytes(b"\x80" * size, "little")
    low = int.from_bytes(b"\x7f" * size, "little")
    one, other = int.from_bytes(new, "little"), int.from_bytes(old, "little")
    same = (one ^ other ^ high) & high
    return (((one | high) - (other & low)) ^ same).to_bytes(size, "little")


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
