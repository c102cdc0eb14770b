"""How one new content comes cheapest from one old content: tried, in a process of its own.

What was found is kept in a cache folder by the pair of digests, so that many deltas which
share pairs (1.0 -> 1.2, 1.1 -> 1.2) share the search, which is most of the work.
"""

from __future__ import annotations

import os
import re
import struct
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

import zstandard

from edgewise.delivery.delta import AROUND
from edgewise.protocol import limits

WINDOW: Final = 16 << 20
"""Bytes of a large file that are searched at once: bsdiff takes 17 times as much memory."""
TINY: Final = 600
"""Bytes of a packed file below which no better way is looked for."""
_ELF: Final = b"\x7fELF"
_TRIAL_LEVEL = 3
_PER_COPY: Final = 3
"""What a copy's numbers take when packed, for the estimate."""
_RAW = zstandard.DICT_TYPE_RAWCONTENT
_CONTROL = struct.Struct("<3Q")
_SIGN: Final = 1 << 63
RUN: Final = 4096
"""Bytes of one value that are not searched for."""
_RUN: Final = re.compile(rb"(.)\1{%d,}" % (RUN - 1), re.DOTALL)
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
    """bsdiff's copies, ``WINDOW`` bytes of a large file at a time.

    Long runs of one byte are taken out of both first and come back as inserts: bsdiff's search
    is quadratic in them, and LZMA packs them to nothing.
    """
    if len(new) <= WINDOW and len(old) <= 2 * WINDOW:
        yield from _search(new, old, 0)
        return
    for at in range(0, len(new), WINDOW):
        low = max(0, at - 2 * AROUND)
        yield from _search(new[at : at + WINDOW], old[low : at + WINDOW + 2 * AROUND], low)


class _Dense(NamedTuple):
    """Bytes without their long runs, and where those were."""

    data: bytes
    cuts: tuple[int, ...]
    """Offsets in ``data`` where a run was."""
    runs: tuple[bytes, ...]
    shifts: tuple[int, ...]
    """Bytes of all runs up to and with each."""


def _dense(data: bytes) -> _Dense:
    kept_bytes, cuts, runs, shifts = [], list[int](), list[bytes](), list[int]()
    at = gone = 0
    for found in _RUN.finditer(data):
        kept_bytes.append(data[at : found.start()])
        cuts.append(found.start() - gone)
        runs.append(found[0])
        gone += len(found[0])
        shifts.append(gone)
        at = found.end()
    kept_bytes.append(data[at:])
    return _Dense(b"".join(kept_bytes), tuple(cuts), tuple(runs), tuple(shifts))


def _search(new: bytes, old: bytes, shift: int) -> Iterator[Copy]:
    ours, theirs = _dense(new), _dense(old)
    copies = _diff(ours.data, theirs.data)
    if theirs.cuts:
        copies = _past_runs(copies, theirs)
    if ours.cuts:
        copies = _with_runs(copies, ours)
    for start, difference, insert in copies:
        yield Copy(shift + start, difference, insert)


def _past_runs(copies: Iterator[Copy], old: _Dense) -> Iterator[Copy]:
    """Copies of dense old bytes as copies of the old bytes."""
    for start, difference, insert in copies:
        at, left = start, difference
        while True:
            number = bisect_right(old.cuts, at)
            until = old.cuts[number] if number < len(old.cuts) else at + len(left)
            one, left = left[: until - at], left[until - at :]
            gone = old.shifts[number - 1] if number else 0
            yield Copy(at + gone, one, b"" if left else insert)
            if not left:
                break
            at = until


def _with_runs(copies: Iterator[Copy], new: _Dense) -> Iterator[Copy]:
    """Copies that make the dense new bytes as copies that make the new bytes."""
    runs = iter(zip(new.cuts, new.runs, strict=True))
    cut_at, run = next(runs, (-1, b""))
    made = 0
    for start, difference, insert in copies:
        while run and cut_at - made <= len(difference) + len(insert):
            first = difference[: cut_at - made]
            then = insert[: max(0, cut_at - made - len(difference))]
            yield Copy(start, first, then + run)
            start, made = start + len(first), cut_at
            difference, insert = difference[len(first) :], insert[len(then) :]
            cut_at, run = next(runs, (-1, b""))
        if difference or insert:
            yield Copy(start, difference, insert)
        made += len(difference) + len(insert)
    if run:
        yield Copy(0, b"", run)
        for _, more in runs:
            yield Copy(0, b"", more)


def _diff(new: bytes, old: bytes) -> Iterator[Copy]:
    import bsdiff4.core

    if not old or not new:
        yield Copy(0, b"", new)
        return
    control, differences, inserts = bsdiff4.core.diff(old, new)
    start = at = behind = 0
    for copied, inserted, move in _CONTROL.iter_unpack(control):
        yield Copy(start, differences[at : at + copied], inserts[behind : behind + inserted])
        at += copied
        behind += inserted
        start += copied + (move if move < _SIGN else _SIGN - move)


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
