"""Which line of an old table belongs to which of a new one, in programs.

Lines of a relocation or unwinding table look alike, and all of them change when code moves: a
search for equal bytes cannot see that one line was added in the middle, and takes each line
behind it for its neighbour. Once it is known what moved, the old table can be rewritten as it
would be now; in that form equal lines are equal bytes, and the search finds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from edgewise.backends.files.copies import Copy, search, subtract
from edgewise.backends.files.program_references import (
    Program,
    Section,
    Slice,
    frames_of,
    moved,
    section_pairs,
    table_groups,
)
from edgewise.delivery import references
from edgewise.delivery.references import RELATIVE, Group, Octets, Steps

_ROUNDS: Final = 2
"""What moved is known better when tables lie right, and they then lie better still."""
_LEAST: Final = 1024
"""Bytes of a table below which nothing is to be gained."""


class _Cover(NamedTuple):
    """Bytes of the new file that are compared with old ones."""

    old: int
    new: int
    length: int

    @property
    def end(self) -> int:
        return self.new + self.length


def aligned(before: Program, after: Program, copies: list[Copy]) -> list[Copy]:
    """The copies between two programs, with those of their tables laid line to line."""
    for _ in range(_ROUNDS):
        covers = list(_covers(copies))
        if not covers:
            break
        steps = moved(before, after, slice_of(before, after, copies, 0))
        better = _realigned(before, after, covers, steps)
        if better == covers:
            break
        copies = list(_copies(before, after, better))
    return copies


def _realigned(before: Program, after: Program, covers: list[_Cover], steps: Steps) -> list[_Cover]:
    for old, new in section_pairs(before, after):
        if min(old.size, new.size) < _LEAST:
            continue
        groups = list(table_groups(before, after, old, new))
        if groups:
            was = _as_it_would_be(before, old, groups, steps)
            now = _absolute(after, old, new, groups)
        elif old.name == ".eh_frame":
            was, now = _frames(before, old, steps), _frames(after, new, None)
        else:
            continue
        found = [
            _Cover(old.offset + one.old, new.offset + one.new, one.length)
            for one in _covers(list(search(now, was)))
        ]
        mine = list(_between(covers, new.offset, new.offset + new.size))
        if _wrong(found, was, now, old, new) < _wrong(mine, was, now, old, new):
            rest = _outside(covers, new.offset, new.offset + new.size)
            covers = sorted([*rest, *found], key=lambda one: one.new)
    return covers


def slice_of(before: Program, after: Program, copies: list[Copy], offset: int) -> Slice:
    """What copies make from ``offset`` of the new program on."""
    spans = [(copy.start, copy.start + len(copy.difference)) for copy in copies]
    there = references.copies(spans, [len(copy.insert) for copy in copies], offset)
    new = [
        after.read(start, length)
        for start, length in zip(there.target.tolist(), there.length.tolist(), strict=True)
    ]
    old = [before.read(start, end - start) for start, end in spans]
    return Slice(b"".join(old), b"".join(new), there)


def _covers(copies: list[Copy]) -> Iterator[_Cover]:
    at = 0
    for copy in copies:
        if copy.difference:
            yield _Cover(copy.start, at, len(copy.difference))
        at += len(copy.difference) + len(copy.insert)


def _copies(before: Program, after: Program, covers: list[_Cover]) -> Iterator[Copy]:
    """Covers in the order of the new file, as copies with what lies between them."""
    size = len(after.data)
    first = covers[0].new if covers else size
    if first:
        yield Copy(0, b"", after.read(0, first))
    for n, cover in enumerate(covers):
        end = covers[n + 1].new if n + 1 < len(covers) else size
        new, old = after.read(cover.new, cover.length), before.read(cover.old, cover.length)
        yield Copy(cover.old, subtract(new, old), after.read(cover.end, end - cover.end))


def _between(covers: list[_Cover], low: int, high: int) -> Iterator[_Cover]:
    for old, new, length in covers:
        start, end = max(new, low), min(new + length, high)
        if start < end:
            yield _Cover(old + start - new, start, end - start)


def _outside(covers: list[_Cover], low: int, high: int) -> Iterator[_Cover]:
    yield from _between(covers, 0, low)
    yield from _between(covers, high, 1 << 62)


def _wrong(covers: list[_Cover], was: bytes, now: bytes, old: Section, new: Section) -> int:
    """Bytes of the new table that do not come out right, and a few for every cover."""
    before, after = np.frombuffer(was, np.uint8), np.frombuffer(now, np.uint8)
    right = 0
    for cover in covers:
        start, target = cover.old - old.offset, cover.new - new.offset
        if 0 <= start and start + cover.length <= len(before):
            there = after[target : target + cover.length]
            right += int((before[start : start + cover.length] == there).sum())
    return len(after) - right + 4 * len(covers)


def _as_it_would_be(program: Program, old: Section, groups: list[Group], steps: Steps) -> bytes:
    """An old table with every reference as its new target."""
    data: Octets = np.array(program.data[old.offset : old.offset + old.size])
    for group in groups:
        at, width = _fields(group, old)
        value = references.word(data, at, width)
        *_, bias, new_bias = group.numbers
        if group.kind == RELATIVE:
            value = value + at + old.offset
        there, known = steps.moved(value + bias)
        if group.kind != RELATIVE:
            there = there - new_bias
        references.put(data, at[known], there[known], width)
    return data.tobytes()


def _absolute(program: Program, old: Section, new: Section, groups: list[Group]) -> bytes:
    """A new table in the form of ``_as_it_would_be``."""
    data: Octets = np.array(program.data[new.offset : new.offset + new.size])
    for group in groups:
        if group.kind != RELATIVE:
            continue
        at, width = _fields(group, old)
        stride = group.numbers[1]
        at = int(at[0]) + stride * np.arange((new.size - int(at[0]) - width) // stride + 1)
        value = references.word(data, at, width) + at + new.offset + group.numbers[5]
        references.put(data, at, value, width)
    return data.tobytes()


def _frames(one: Program, section: Section, steps: Steps | None) -> bytes:
    """Frame descriptions with the functions they are for, as these are now; and without the
    distance to what they have in common, which counts what is before them."""
    data: Octets = np.array(one.data[section.offset : section.offset + section.size])
    at = frames_of(one) - section.offset
    at = at[(at >= 0) & (at + 12 <= len(data))]
    address = references.word(data, at + 8, 4) + at + 8 + section.address
    references.put(data, at + 8, steps.moved(address)[0] if steps else address, 4)
    references.put(data, at + 4, np.zeros(len(at), np.int64), 4)
    return data.tobytes()


def _fields(group: Group, old: Section) -> tuple[references.Integers, int]:
    start, stride, count, width = group.numbers[:4]
    first = start - old.offset
    number = min(count, (old.size - first - width) // stride + 1)
    return first + stride * np.arange(max(number, 1), dtype=np.int64), width
