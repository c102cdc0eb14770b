"""Where the references of a program are, and what moved: for the producer of a delta.

An ELF file says where its code, tables and relocations are; what is kept of that is decided by
trial: a group of fields stays when more of them come out right with it than without. What moved
is found from the references themselves: each votes for how far its target went, and steps are
laid through the votes at the least cost (Viterbi's algorithm with a price for each step).

Sources: ELF-64 (System V ABI, gABI 4.1), Linux Standard Base 5.0 for ``.eh_frame_hdr``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from edgewise.delivery import references
from edgewise.delivery.references import (
    ABSOLUTE,
    ARM64,
    FRAMES,
    RELATIVE,
    TABLES,
    X86,
    Copies,
    Fields,
    Group,
    Integers,
    Octets,
    References,
    Steps,
)
from edgewise.protocol import limits

SMALL: Final = 2048
"""Bytes of a program below which nothing is looked for."""
LARGE: Final = 128 << 20
"""Bytes above which nothing is looked for: the search takes six times as much memory."""
_X86_64: Final = 62
_AARCH64: Final = 183
_EXEC: Final = 4
_ALLOC: Final = 2
_PROGBITS, _SYMTAB, _RELA, _NOBITS, _DYNSYM = 1, 2, 4, 8, 11
_INIT_ARRAY, _FINI_ARRAY = 14, 15
_NAMES: Final = 1 << 40
"""Where offsets in the string table are counted from, far from every address."""
_SYMBOLS: Final = 1 << 41
"""Where numbers of symbols are counted from."""
_STEP_PRICE: Final = 2.5
"""Wrong fields that one step more is worth."""
_GROUP_PRICE: Final = 6
"""Fields that have to come right for a group to be worth its numbers."""
_NOWHERE: Final = 1 << 62
_FAR: Final = 1 << 31
"""A vote for a longer way is taken for chance."""
_LONG: Final = 64
"""Bytes of a copy that are taken to say where they went."""
_EMBEDDED: Final = 256 << 10
"""Bytes before the program in a kernel image (its loader)."""


class Section(NamedTuple):
    """One line of the section table; the offset is that in the file."""

    name: str
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    info: int

    @property
    def bias(self) -> int:
        """What added to an offset gives an address."""
        return self.address - self.offset


class Program(NamedTuple):
    """An ELF file, or one inside of another file."""

    data: Octets
    machine: int
    relocatable: bool
    """An object file (a kernel module): sections have no addresses yet."""
    sections: tuple[Section, ...]
    low: int
    high: int
    """The addresses of what is loaded."""
    table: int
    """Offset of the section table."""
    embedded: bool
    """In a kernel image."""

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file."""
        return bytes(self.data[offset : offset + length])

    def named(self) -> dict[str, Section]:
        """By name; the first of each."""
        found: dict[str, Section] = {}
        for section in self.sections:
            found.setdefault(section.name, section)
        return found


def programs(old: Path, new: Path) -> tuple[Program, Program] | None:
    """Both, where both are programs of the same machine."""
    before = program(old)
    after = program(new) if before is not None else None
    if before is None or after is None or before.machine != after.machine:
        return None
    return before, after


def program(path: Path) -> Program | None:
    """The program in a file; None where there is none of a machine that is known here."""
    if not SMALL <= path.stat().st_size <= LARGE:
        return None
    data: Octets = np.memmap(path, np.uint8, "r")
    start = bytes(data[:4])
    if start == b"\x7fELF":
        return _program(data, 0)
    if start[:2] == b"MZ":
        at = bytes(data[:_EMBEDDED]).find(b"\x7fELF\x02\x01\x01")
        return _program(data, at) if at > 0 else None
    return None


def _program(data: Octets, base: int) -> Program | None:
    head = bytes(data[base : base + 64])
    if len(head) < 64 or head[4:6] != b"\x02\x01":
        return None
    kind, machine = struct.unpack_from("<HH", head, 16)
    (table,) = struct.unpack_from("<Q", head, 40)
    entry, count, names = struct.unpack_from("<HHH", head, 58)
    if machine not in (_X86_64, _AARCH64) or entry != 64 or not 0 < names < count:
        return None
    lines = bytes(data[base + table : base + table + 64 * count])
    if len(lines) != 64 * count:
        return None
    found = [struct.unpack_from("<IIQQQQIIQQ", lines, 64 * n) for n in range(count)]
    at, size = base + found[names][4], found[names][5]
    strings = bytes(data[at : at + size])
    sections = []
    for name, what, flags, address, offset, length, _, info, _, _ in found:
        text = strings[name : strings.find(b"\0", name)].decode("latin-1")
        signed = address - (1 << 64) if address >= 1 << 63 else address
        if kind == 1:
            signed = base + offset
        if what != _NOBITS and base + offset + length > len(data):
            return None
        sections.append(Section(text, what, flags, signed, base + offset, length, info))
    loaded = [one for one in sections if one.flags & _ALLOC and one.size]
    if not loaded:
        return None
    low = min(one.address for one in loaded)
    high = max(one.address + one.size for one in loaded)
    return Program(data, machine, kind == 1, tuple(sections), low, high, base + table, base > 0)


class Slice(NamedTuple):
    """What one part makes of a program."""

    old: bytes
    """Of all copies, one after the other."""
    new: bytes
    """What they are to become."""
    copies: Copies


def moved(before: Program, after: Program, whole: Slice) -> Steps:
    """What moved in all of a program, as far as its code and the copies say.

    Not its tables: a table whose lines are taken for their neighbours says so consistently.
    """
    code = list(_code(before, section_pairs(before, after)))
    return _Trial(before, after, whole).steps(code, None, _copied(before, after, whole.copies))


def _copied(before: Program, after: Program, copies: Copies) -> tuple[Integers, Integers]:
    """Votes of long copies for their own bytes: (addresses, shifts)."""
    addresses, shifts = [], []
    for old, new in section_pairs(before, after):
        if not old.flags & _ALLOC:
            continue
        low = np.maximum(copies.start, old.offset)
        high = np.minimum(copies.start + copies.length, old.offset + old.size)
        target = copies.target + low - copies.start
        long = (high - low >= _LONG) & (target >= new.offset) & (target < new.offset + new.size)
        low, high, target = low[long], high[long], target[long]
        # A vote for each _LONG bytes, so that what is long weighs much.
        number = np.minimum((high - low) // _LONG, 64)
        place = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        addresses.append(np.repeat(low, number) + place * _LONG + old.bias)
        shifts.append(np.repeat(target - low + new.bias - old.bias, number))
    if not addresses:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(addresses), np.concatenate(shifts)


def found_references(
    before: Program, after: Program, part: Slice, steps: Steps
) -> References | None:
    """What is worth saying about the references of a slice; None for nothing."""
    if not len(part.copies.start) or not len(steps.at):
        return None
    trial = _Trial(before, after, part)
    trusted = [*_trusted(before, after), *_jump_tables(before, part)]
    kept = trial.chosen([[one] for one in trusted] + list(_guesses(before, after)), steps)
    if not kept:
        return None
    steps = trial.steps(kept, steps)
    kept = trial.chosen([[one] for one in kept], steps)
    return References(steps, tuple(kept)) if kept else None


class _Trial:
    """Groups of fields measured on one slice."""

    def __init__(self, before: Program, after: Program, part: Slice) -> None:
        self._before = before
        self._after = after
        self._part = part
        self._old = np.frombuffer(part.old, np.uint8)
        self._new = np.frombuffer(part.new, np.uint8)

    def _fields(self, group: Group, steps: Steps) -> Iterator[Fields]:
        return references.found_in(group, self._old, self._part.copies, steps, self._before.read)

    def chosen(self, questions: list[list[Group]], steps: Steps) -> list[Group]:
        """Of each question the answer that puts most right, on top of those before it."""
        now = self._old.copy()
        kept: list[Group] = []
        for answers in questions:
            found = [(self._tried(group, steps, now), group) for group in answers]
            gained, best = max(found, key=lambda one: one[0][0])
            if gained[0] <= _GROUP_PRICE or len(kept) == limits.PART_GROUPS:
                continue
            kept.append(best)
            for at, width, value in gained[1]:
                references.put(now, at, value, width)
        return kept

    def _tried(
        self, group: Group, steps: Steps, now: Octets
    ) -> tuple[int, list[tuple[Integers, int, Integers]]]:
        """How many more fields are right with the group than without, and what it writes."""
        gained = 0
        writes = []
        for fields in self._fields(group, steps):
            known = fields.known
            at, width, value = fields.places.at[known], fields.width, fields.value[known]
            truth = references.word(self._new, at, width)
            gained += int(((value if width == 8 else _wrapped(value)) == truth).sum())
            gained -= int((references.word(now, at, width) == truth).sum())
            writes.append((at, width, value))
        return gained, writes

    def steps(
        self,
        groups: list[Group],
        known: Steps | None,
        seen: tuple[Integers, Integers] | None = None,
    ) -> Steps:
        """The steps that these groups' fields vote for, with votes that were ``seen``."""
        addresses, shifts = ([seen[0]], [seen[1]]) if seen else ([], [])
        nothing = known or Steps(np.zeros(0, np.int64), np.zeros(0, np.int64), 0)
        for group in groups:
            for fields in self._fields(group, nothing):
                shift = self._votes(group, fields, nothing)
                if shift is None:
                    continue
                address = fields.address
                sound = self._spoken_of(address) & (np.abs(shift) < _FAR)
                addresses.append(address[sound])
                shifts.append(shift[sound])
        if not addresses:
            return nothing
        return _laid(np.concatenate(addresses), np.concatenate(shifts), self._end())

    def _spoken_of(self, address: Integers) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        inside = (address >= self._before.low) & (address < self._before.high)
        if self._before.relocatable:
            inside |= address >= _NAMES
        return inside

    def _end(self) -> int:
        return 2 * _SYMBOLS if self._before.relocatable else self._before.high

    def _votes(self, group: Group, fields: Fields, steps: Steps) -> Integers | None:
        """How far the target of each field went; None where that cannot be told yet."""
        places, width = fields.places, fields.width
        value = references.word(self._new, places.at, width)
        if group.kind == X86:
            return value + (places.new + 4 + group.numbers[3]) - fields.address
        if group.kind == ARM64:
            code = value & 0xFFFFFFFF
            branch = (code & 0x7C000000) == 0x14000000
            if not branch.all() or not len(branch):
                return None
            step = ((code & 0x3FFFFFF) ^ (1 << 25)) - (1 << 25) << 2
            return step + (places.new + group.numbers[3]) - fields.address
        if group.kind == ABSOLUTE:
            return value + group.numbers[5] - fields.address
        if group.kind == RELATIVE:
            return value + places.new + group.numbers[5] - fields.address
        if fields.backward:
            return places.new + group.numbers[4] - value - fields.address
        if group.kind == FRAMES:
            return value + places.new + group.numbers[4] - fields.address
        if not len(steps.at):
            return None
        origin = fields.address - references.word(self._old, places.at, 4)
        return value + steps.moved(origin)[0] - fields.address


def _wrapped(value: Integers) -> Integers:
    """As four signed bytes hold it."""
    return ((value & 0xFFFFFFFF) ^ (1 << 31)) - (1 << 31)


class _Run(NamedTuple):
    """A shift that holds from an address on, and the one before it."""

    begun: int
    shift: int
    before: _Run | None


def _laid(address: Integers, shift: Integers, end: int) -> Steps:
    """Steps through the votes: the least of wrong votes and ``_STEP_PRICE`` for each step.

    Viterbi's algorithm; only the state that is voted for changes, so a vote costs one look.
    """
    order = np.lexsort((shift, address))
    address, shift = address[order], shift[order]
    first = np.ones(len(address), np.bool_)
    first[1:] = (np.diff(address) != 0) | (np.diff(shift) != 0)
    starts = np.flatnonzero(first)
    weights = np.diff(starts, append=len(address))
    address, shift = address[starts], shift[starts]
    # Of votes for one address the most frequent: a step cannot lie within an address.
    order = np.lexsort((weights, address))
    last = np.diff(address[order], append=np.int64(_NOWHERE)) != 0
    order = order[last]
    at, wanted, counted = address[order].tolist(), shift[order].tolist(), weights[order].tolist()
    kept: dict[int, float] = {}
    entered: dict[int, _Run] = {}
    best = 0.0
    trail: _Run | None = None
    for n, (want, weight) in enumerate(zip(wanted, counted, strict=True)):
        fresh = best + _STEP_PRICE
        have = kept.get(want, fresh)
        if have >= fresh:
            have = fresh
            entered[want] = _Run(at[n], want, trail)
        have -= weight
        kept[want] = have
        if have <= best:
            best, trail = have, entered[want]
    runs = []
    while trail is not None:
        runs.append((trail.begun, trail.shift))
        trail = trail.before
    runs.reverse()
    found: list[tuple[int, int]] = []
    for begun, want in runs:
        if not found or found[-1][1] != want:
            found.append((begun, want))
    found = found[: limits.PART_STEPS]
    return Steps(
        np.array([one for one, _ in found], np.int64),
        np.array([one for _, one in found], np.int64),
        end,
    )


# Which groups there may be


def section_pairs(before: Program, after: Program) -> list[tuple[Section, Section]]:
    """Sections of the same name that have bytes in both files."""
    later = after.named()
    return [
        (one, later[one.name])
        for one in before.sections
        if one.size and one.name in later and one.kind != _NOBITS
    ]


def _trusted(before: Program, after: Program) -> Iterator[Group]:
    """What an ELF file says of its references."""
    pairs = section_pairs(before, after)
    yield from _code(before, pairs)
    for old, new in pairs:
        yield from table_groups(before, after, old, new)
        if old.name == ".eh_frame_hdr":
            yield from _frames(before, after, old)
    yield Group(ABSOLUTE, (before.table + 24, 64, len(before.sections), 8, 0, 0))
    end = before.table + 64 * len(before.sections)
    if before.embedded:
        # The kernel's relocations for another place in memory: Linux, arch/x86/tools/relocs.c.
        yield Group(ABSOLUTE, (end, 4, (len(before.data) - end) // 4, 4, 0, 0))


def _guesses(before: Program, after: Program) -> Iterator[list[Group]]:
    """For each section of data: pointers and distances of every form."""
    for old, new in section_pairs(before, after):
        if old.flags & _EXEC or not old.flags & _ALLOC or old.kind not in _DATA:
            continue
        if old.name == ".eh_frame" or list(table_groups(before, after, old, new)):
            continue
        yield from _data(old, new, kernel=before.embedded)


_DATA: Final = (_PROGBITS, _INIT_ARRAY, _FINI_ARRAY)


def _code(before: Program, pairs: list[tuple[Section, Section]]) -> Iterator[Group]:
    """Sections of code with the same biases are one range."""
    kind = X86 if before.machine == _X86_64 else ARM64
    runs: list[list[int]] = []
    for old, new in pairs:
        if not old.flags & _EXEC or old.kind == _NOBITS or not old.size:
            continue
        end = old.offset + old.size
        if runs and runs[-1][2:] == [old.bias, new.bias] and not before.relocatable:
            runs[-1][1] = end
        else:
            runs.append([old.offset, end, old.bias, new.bias])
    for start, end, bias, new_bias in runs:
        yield Group(kind, (start, end - start, bias, new_bias))


def _data(old: Section, new: Section, *, kernel: bool) -> Iterator[list[Group]]:
    start, words = old.offset, old.size // 4
    yield [
        Group(ABSOLUTE, (start, 8, old.size // 8, 8, 0, 0)),
        Group(RELATIVE, (start, 4, words, 4, old.bias, new.bias)),
        Group(ABSOLUTE, (start, 4, words, 4, old.address, new.address)),
    ]
    if not kernel:
        return
    # Tables of lines with a distance in each column, as __ex_table and __bug_table are.
    for stride in (8, 12):
        for first in range(0, stride, 4):
            count = (old.size - first) // stride
            form = (start + first, stride, count, 4)
            yield [
                Group(RELATIVE, (*form, old.bias, new.bias)),
                Group(ABSOLUTE, (*form, 0, 0)),
            ]


def table_groups(before: Program, after: Program, old: Section, new: Section) -> Iterator[Group]:
    """The references of a section whose form is known: relocations, symbols, unwinding."""
    if old.kind == _RELA:
        yield from _relocations(before, after, old)
    elif old.kind in (_SYMTAB, _DYNSYM):
        yield from _symbols(before, after, old)
    elif old.name == ".eh_frame_hdr" and _frame_count(before, old):
        words = 2 * _frame_count(before, old)
        yield Group(ABSOLUTE, (old.offset + 12, 4, words, 4, old.address, new.address))
    elif old.name in _POINTERS and not before.relocatable:
        yield Group(ABSOLUTE, (old.offset, 8, old.size // 8, 8, 0, 0))
    elif old.name in _RELATIVE_TABLES and not before.relocatable:
        yield Group(RELATIVE, (old.offset, 4, old.size // 4, 4, old.bias, new.bias))


_POINTERS: Final = (".data.rel.ro", ".init_array", ".got", ".data", ".data.rel.ro.local")
_RELATIVE_TABLES: Final = (".orc_unwind_ip", ".return_sites", ".retpoline_sites", ".smp_locks")


def _frame_count(one: Program, section: Section) -> int:
    """Entries of the binary search table; 0 where it has another form."""
    head = one.read(section.offset, 12)
    count = int.from_bytes(head[8:12], "little")
    if head[:4] != b"\x01\x1b\x03\x3b" or 12 + 8 * count > section.size:
        return 0
    return count if 8 * count <= limits.PART_BASE else 0


def frames_of(one: Program) -> Integers:
    """Offsets of the frame descriptions that ``.eh_frame_hdr`` points to, ascending."""
    header, frames = one.named().get(".eh_frame_hdr"), one.named().get(".eh_frame")
    count = _frame_count(one, header) if header is not None else 0
    if header is None or frames is None or not count:
        return np.zeros(0, np.int64)
    table = np.frombuffer(one.read(header.offset + 12, 8 * count), "<i4").astype(np.int64)
    return np.unique(table[1::2] + header.address - frames.bias)


def _frames(before: Program, after: Program, header: Section) -> Iterator[Group]:
    count = _frame_count(before, header)
    old, new = before.named().get(".eh_frame"), after.named().get(".eh_frame")
    if count and old is not None and new is not None:
        origin = header.address - old.bias
        yield Group(FRAMES, (header.offset + 12, count, origin, old.bias, new.bias))


def _relocations(before: Program, after: Program, old: Section) -> Iterator[Group]:
    count, start = old.size // 24, old.offset
    if not before.relocatable:
        yield Group(ABSOLUTE, (start, 24, count, 8, 0, 0))
        yield Group(ABSOLUTE, (start + 16, 24, count, 8, 0, 0))
        return
    later = after.named()
    target = before.sections[old.info] if old.info < len(before.sections) else None
    if target is not None and target.name in later:
        biases = target.offset, later[target.name].offset
        yield Group(ABSOLUTE, (start, 24, count, 8, *biases))
    yield Group(ABSOLUTE, (start + 12, 24, count, 4, _SYMBOLS, _SYMBOLS))
    for name in (".text", ".rodata.str1.1", ".rodata.str1.8", ".rodata", ".data", ".init.text"):
        there = before.named().get(name)
        if there is not None and name in later:
            biases = there.offset, later[name].offset
            yield Group(ABSOLUTE, (start + 16, 24, count, 8, *biases))


def _symbols(before: Program, after: Program, old: Section) -> Iterator[Group]:
    count, start = old.size // 24, old.offset
    if before.relocatable:
        yield Group(ABSOLUTE, (start, 24, count, 4, _NAMES, _NAMES))
        return
    yield Group(ABSOLUTE, (start + 8, 24, count, 8, 0, 0))
    names, later = before.named().get(".dynstr"), after.named().get(".dynstr")
    if names is not None and later is not None:
        yield Group(ABSOLUTE, (start, 24, count, 4, names.address, later.address))


def _jump_tables(before: Program, part: Slice) -> list[Group]:
    """Runs of distances in read-only data, which begin where code takes an address."""
    if before.machine != _X86_64 or before.relocatable:
        return []
    named = before.named()
    data, text = named.get(".rodata"), named.get(".text")
    if data is None or text is None or not _touches(part.copies, data):
        return []
    low, high = text.address, text.address + text.size
    start, end = data.offset, data.offset + data.size
    taken = _addresses_taken(before, text) - data.bias
    taken = np.unique(taken[(taken >= start) & (taken + 4 <= end) & (taken % 4 == 0)])
    runs: list[int] = []
    words = np.frombuffer(bytes(before.data[start : end - (end - start) % 4]), "<i4")
    bounds = [*taken.tolist(), end]
    for begin, stop in pairwise(bounds):
        here = words[(begin - start) // 4 : (stop - start) // 4].astype(np.int64)
        inside = (here + (begin + data.bias) >= low) & (here + (begin + data.bias) < high)
        count = int(np.argmin(inside)) if not inside.all() else len(inside)
        if count > 2:
            runs += [begin, count]
    return [Group(TABLES, (data.bias, *_near(runs, part.copies)))] if runs else []


def _near(runs: list[int], copies: Copies) -> list[int]:
    """The tables of which something is copied."""
    low, high = int(copies.start.min()), int((copies.start + copies.length).max())
    found: list[int] = []
    left = limits.PART_FIELDS
    for begin, count in zip(runs[::2], runs[1::2], strict=True):
        if begin < high and begin + 4 * count > low and count <= left:
            found += [begin, count]
            left -= count
    return found


def _touches(copies: Copies, section: Section) -> bool:
    end = section.offset + section.size
    return bool(((copies.start < end) & (copies.start + copies.length > section.offset)).any())


def _addresses_taken(before: Program, text: Section) -> Integers:
    """What ``lea`` with an address relative to the instruction points to."""
    found = []
    for at in range(text.offset, text.offset + text.size, 4 << 20):
        code = before.data[at : min(at + (4 << 20), text.offset + text.size)]
        lea = np.flatnonzero((code[:-6] == 0x8D) & ((code[1:-5] & 0xC7) == 0x05)) + 2
        found.append(references.word(code, lea, 4) + lea + (at + 4 + text.bias))
    return np.concatenate([np.zeros(0, np.int64), *found])
