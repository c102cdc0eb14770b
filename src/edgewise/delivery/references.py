"""Prediction of the references in a program: where old bytes point, moved to where that is now.

When code grows by a few bytes, every call and every table entry that reaches over the place
changes, though nobody wrote them anew. A delta says once what moved where (`Steps`) and where
references are (`Field groups`); then the old bytes are put right before the differences are
added to them. The idea is that of Courgette (Chromium, 2009) and Zucchini (2018); the form is
our own and knows no file format: what an ELF file is, only the producer has to know.

Pure, and the same on every machine: all arithmetic is modulo 2**64 in two's complement.
docs/internals/delta.md ("References") is the specification.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgewise.delivery.delta_numbers import NumberReader, zigzag
from edgewise.model.errors import Untrusted
from edgewise.protocol import limits

Integers: TypeAlias = NDArray[np.int64]
Octets: TypeAlias = NDArray[np.uint8]
ReadOld = Callable[[int, int], bytes]
"""(offset, length) to bytes of the old file."""

ABSOLUTE: Final = 0
"""Words that hold an address, or the distance from one place to it (which is the bias)."""
RELATIVE: Final = 1
"""Words that hold the distance from themselves to an address."""
TABLES: Final = 2
"""Runs of words that hold the distance from the run's start (jump tables)."""
FRAMES: Final = 3
"""DWARF frame descriptions that a sorted table of them (`.eh_frame_hdr`) points to."""
X86: Final = 4
"""Operands of four bytes in x86-64 code."""
ARM64: Final = 5
"""Branches and page addresses in AArch64 code."""

_SIZES: Final = {ABSOLUTE: 6, RELATIVE: 6, FRAMES: 5, X86: 4, ARM64: 4}
_BLOCK: Final = 256 << 10
"""Bytes of code that are looked at at once: bounds the memory of the search."""
_ROWS: Final = 1 << 15
"""Fields that are dealt with at once: a field takes about 100 bytes."""
_FAR: Final = 1 << 60
"""Distances up to it can be added and taken away without an overflow."""
_STRIDE: Final = 1 << 16
_LSDA: Final = 17
"""Where its language-specific pointer stands, when its augmentation is four bytes long."""


def _set_of(values: Sequence[int]) -> NDArray[np.bool_]:
    found = np.zeros(256, np.bool_)
    found[list(values)] = True
    return found


OPCODES: Final = _set_of(
    bytes.fromhex("01 03 10 11 28 29 2b 39 3b 58 59 5c 5e 63 6f")
    + bytes.fromhex("7f 80 81 83 85 88 89 8a 8b 8d b6 b7 c6 c7 ff")
)
"""Last opcode bytes before an operand that is addressed relative to the instruction."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What moved: an address from ``at[i]`` on, up to the next, is now ``shift[i]`` further.

    Addresses below the first step, and from ``end`` on, are not spoken of.
    """

    at: Integers
    """Ascending."""
    shift: Integers
    end: int

    def moved(self, address: Integers) -> tuple[Integers, NDArray[np.bool_]]:
        """New addresses, and which of them are spoken of."""
        if not len(self.at):
            return address, np.zeros(len(address), np.bool_)
        place = np.searchsorted(self.at, address, "right") - 1
        known = (place >= 0) & (address < self.end)
        return address + self.shift[np.maximum(place, 0)], known


class Group(NamedTuple):
    """Places that hold references, as numbers; what they are depends on the kind.

    Words: start, stride, count, width, old bias, new bias. FRAMES: start and count of the
    table, the offset that its distances are from, old bias, new bias. Code: start, length, old
    bias, new bias. TABLES: old bias, then start and count of each. Offsets are those of the
    old file; an offset plus the bias is an address.
    """

    kind: int
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class References:
    """All that a piece says about references."""

    steps: Steps
    groups: tuple[Group, ...]


NOTHING: Final = References(Steps(np.zeros(0, np.int64), np.zeros(0, np.int64), 0), ())
"""Of a piece that is no program, in a part with others."""


class Copies(NamedTuple):
    """Where the bytes that are looked at come from and go to; one row for each copy."""

    start: Integers
    """In the old file."""
    length: Integers
    target: Integers
    """In the new file."""

    @property
    def at(self) -> Integers:
        """In the bytes of all copies, one after the other; one more than there are copies."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.length)])


def copies(spans: Sequence[tuple[int, int]], inserts: Sequence[int], offset: int) -> Copies:
    """Copies from (start, end) in the old file, each with an insert behind it, that make a
    new file from ``offset`` on."""
    both = np.array(spans, np.int64).reshape(-1, 2)
    length = both[:, 1] - both[:, 0]
    whole = length + np.array(inserts, np.int64)
    return Copies(both[:, 0].copy(), length, offset + np.cumsum(whole) - whole)


class Places(NamedTuple):
    """Fields that lie wholly in a copy; all columns are of equal length."""

    old: Integers
    """Offset in the old file."""
    at: Integers
    """In the bytes of all copies."""
    new: Integers
    """Offset in the new file."""
    row: Integers
    """Which of the group's places: for columns of its own."""


class Fields(NamedTuple):
    """References that were found, and what they become."""

    places: Places
    width: int
    address: Integers
    """That they point to in the old file."""
    value: Integers
    """What is to stand there in the new one."""
    known: NDArray[np.bool_]
    """Whether the steps speak of that address; where not, the old bytes stay."""
    backward: bool = False
    """Whether the distance is counted from the target to the field."""


def parse(table: NumberReader) -> References:
    """What stands behind a piece's copies. Raises Untrusted."""
    count = table.number()
    if count > limits.PART_STEPS:
        raise Untrusted(f"a part of the delta with {count} steps is not accepted")
    gaps, shifts = table.numbers(count), table.numbers(count)
    first, end = (zigzag(one) for one in table.numbers(2))
    at = np.cumsum(np.array(gaps, np.uint64).astype(np.int64)) + np.int64(first)
    shift = np.cumsum(np.array([zigzag(one) for one in shifts], np.int64))
    groups = []
    number = table.number()
    if number > limits.PART_GROUPS:
        raise Untrusted(f"a part of the delta with {number} groups of fields is not accepted")
    for _ in range(number):
        kind = table.number()
        if kind == TABLES:
            groups.append(_tables(table))
        elif kind in _SIZES:
            groups.append(Group(kind, tuple(zigzag(one) for one in table.numbers(_SIZES[kind]))))
            _check(groups[-1])
        else:
            raise Untrusted(f"a part of the delta has fields of kind {kind}, not known here")
    return References(Steps(at, shift, end), tuple(groups))


def written(references: References) -> list[int]:
    """The numbers that ``parse`` reads."""
    steps = references.steps
    first = int(steps.at[0]) if len(steps.at) else 0
    found = [
        len(steps.at),
        *np.diff(steps.at, prepend=first).tolist(),
        *(_unsigned(one) for one in np.diff(steps.shift, prepend=0).tolist()),
        _unsigned(first),
        _unsigned(steps.end),
        len(references.groups),
    ]
    for group in references.groups:
        found.append(group.kind)
        if group.kind != TABLES:
            found += [_unsigned(one) for one in group.numbers]
            continue
        bias, *runs = group.numbers
        starts, counts = runs[::2], runs[1::2]
        ends = [0, *(s + 4 * c for s, c in zip(starts, counts, strict=True))]
        found += [_unsigned(bias), len(starts)]
        found += [start - end for start, end in zip(starts, ends, strict=False)]
        found += counts
    return found


def _unsigned(number: int) -> int:
    return (number << 1) ^ (number >> 63)


def _tables(table: NumberReader) -> Group:
    bias, count = table.numbers(2)
    gaps, counts = table.numbers(count), table.numbers(count)
    if sum(counts) > limits.PART_FIELDS:
        raise Untrusted("the tables of a part of the delta have more words than they may")
    numbers = [zigzag(bias)]
    end = 0
    for gap, words in zip(gaps, counts, strict=True):
        numbers += [end + gap, words]
        end += gap + 4 * words
    if end > limits.OBJECT or abs(zigzag(bias)) > _FAR:
        raise Untrusted("a table of the delta lies outside of every file")
    return Group(TABLES, tuple(numbers))


def _check(group: Group) -> None:
    start, count, *more = group.numbers
    if not 0 <= start <= limits.OBJECT or max(abs(one) for one in more) > _FAR:
        raise Untrusted("fields of the delta lie outside of every file")
    if group.kind in (X86, ARM64):
        sound = 0 <= count <= limits.OBJECT
    elif group.kind == FRAMES:
        sound = 0 <= 8 * count <= limits.PART_BASE
    else:
        stride = count
        count, width = more[:2]
        sound = width in (4, 8) and width <= stride <= _STRIDE
        sound = sound and 0 <= count and start + stride * count <= limits.OBJECT
    if not sound:
        raise Untrusted("fields of the delta have a form that cannot be")


def predicted(
    old: bytes | bytearray, copies: Copies, references: References, read: ReadOld
) -> bytearray:
    """The old bytes of all copies with what points elsewhere now; as many as were given."""
    found = bytearray(old)
    out = np.frombuffer(found, np.uint8)
    source = np.frombuffer(old, np.uint8)
    for group in references.groups:
        for fields in found_in(group, source, copies, references.steps, read):
            known = fields.known
            put(out, fields.places.at[known], fields.value[known], fields.width)
    return found


def add(old: bytearray, difference: bytes | memoryview) -> None:
    """``delta.add`` in place, in an eighth of the time."""
    out = np.frombuffer(old, np.uint8)
    np.add(out, np.frombuffer(difference, np.uint8), out=out)


def found_in(
    group: Group, source: Octets, copies: Copies, steps: Steps, read: ReadOld
) -> Iterator[Fields]:
    """The fields of one group, with what they become."""
    kind, numbers = group
    if kind == TABLES:
        yield from _in_tables(numbers, source, copies, steps)
    elif kind == FRAMES:
        yield from _in_frames(numbers, source, copies, steps, read)
    elif kind == X86:
        yield from _in_x86(numbers, source, copies, steps)
    elif kind == ARM64:
        yield from _in_arm64(numbers, source, copies, steps)
    else:
        yield from _in_words(kind, numbers, source, copies, steps)


# Words and tables


def _in_words(
    kind: int, numbers: tuple[int, ...], source: Octets, copies: Copies, steps: Steps
) -> Iterator[Fields]:
    start, stride, count, width, bias, new_bias = numbers
    for places in _placed_evenly((start, stride, count, width), copies):
        here, there = (places.old, places.new) if kind == RELATIVE else (0, 0)
        address = word(source, places.at, width) + (here + np.int64(bias))
        moved, known = steps.moved(address)
        yield Fields(places, width, address, moved - (there + np.int64(new_bias)), known)


def _in_tables(
    numbers: tuple[int, ...], source: Octets, copies: Copies, steps: Steps
) -> Iterator[Fields]:
    bias = numbers[0]
    starts = np.array(numbers[1::2], np.int64)
    counts = np.array(numbers[2::2], np.int64)
    origins = np.repeat(starts, counts)
    inside = np.arange(len(origins)) - np.repeat(np.cumsum(counts) - counts, counts)
    for places in _placed(origins + 4 * inside, 4, copies):
        origin = origins[places.row] + bias
        address = word(source, places.at, 4) + origin
        moved, known = steps.moved(address)
        yield Fields(places, 4, address, moved - steps.moved(origin)[0], known)


def _in_frames(
    numbers: tuple[int, ...], source: Octets, copies: Copies, steps: Steps, read: ReadOld
) -> Iterator[Fields]:
    start, count, origin, bias, new_bias = numbers
    data = read(start, 8 * count)
    table = np.frombuffer(data[: len(data) // 8 * 8], "<i4").astype(np.int64)
    # Apart from each other, as sound ones are: so there are no more than the copies hold.
    frames = np.unique(table[1::2] + origin)
    frames = frames[np.diff(frames, prepend=frames[:1] - 4) >= 4]
    for places in _placed(frames + 4, 4, copies):
        address = places.old + bias - word(source, places.at, 4)
        moved, known = steps.moved(address)
        yield Fields(places, 4, address, places.new + new_bias - moved, known, backward=True)
    for places in _placed(frames + 8, 4, copies):
        yield _relative(places, source, steps, (bias, new_bias))
    for places in _placed(frames + _LSDA, 4, copies):
        # Only where the byte before it, in the same copy, says "four bytes".
        first = copies.at[np.searchsorted(copies.at, places.at, "right") - 1]
        told = (places.at > first) & (source[np.maximum(places.at - 1, 0)] == 4)
        told &= word(source, places.at, 4) != 0
        found = Places(*(column[told] for column in places))
        yield _relative(found, source, steps, (bias, new_bias))


def _relative(places: Places, source: Octets, steps: Steps, biases: tuple[int, int]) -> Fields:
    address = word(source, places.at, 4) + places.old + biases[0]
    moved, known = steps.moved(address)
    return Fields(places, 4, address, moved - (places.new + biases[1]), known)


# Code


def _in_x86(
    numbers: tuple[int, ...], source: Octets, copies: Copies, steps: Steps
) -> Iterator[Fields]:
    start, length, bias, new_bias = numbers
    ends = copies.at
    before = -4
    for at, opcode in _operands(source):
        row = np.searchsorted(ends, at, "right") - 1
        old = copies.start[row] + (at - ends[row])
        fits = (at - opcode >= ends[row]) & (at + 4 <= ends[row + 1])
        fits &= (old - opcode >= start) & (old + 4 <= start + length)
        at, row, old = at[fits], row[fits], old[fits]
        if not len(at):
            continue
        apart = np.diff(at, prepend=before) >= 4
        before = int(at[-1])
        at, row, old = at[apart], row[apart], old[apart]
        new = copies.target[row] + (at - ends[row])
        address = word(source, at, 4) + (old + 4 + bias)
        moved, known = steps.moved(address)
        value = moved - (new + 4 + new_bias)
        yield Fields(Places(old, at, new, row), 4, address, value, known)


def _operands(source: Octets) -> Iterator[tuple[Integers, Integers]]:
    """Where operands of four bytes may start, ascending, and how many bytes of opcode that
    decide it are before each; block by block."""
    for low in range(0, len(source), _BLOCK):
        # A block knows the two bytes before it: an operand belongs to the block it starts in.
        first = max(0, low - 2)
        code = source[first : low + _BLOCK]
        if len(code) < 3:
            continue
        one = np.zeros(len(code), np.bool_)
        np.equal(code[:-1] | 1, 0xE9, out=one[1:])
        two = np.zeros(len(code), np.bool_)
        np.equal(code[:-2], 0x0F, out=two[2:])
        two[2:] &= (code[1:-1] & 0xF0) == 0x80
        relative = np.flatnonzero((code[1:-1] & 0xC7) == 0x05)
        two[relative[OPCODES[code[relative]]] + 2] = True
        found = np.flatnonzero(one | two)
        found = found[found >= low - first]
        yield found + first, np.where(two[found], 2, 1)


def _in_arm64(
    numbers: tuple[int, ...], source: Octets, copies: Copies, steps: Steps
) -> Iterator[Fields]:
    start, length, bias, new_bias = numbers
    for places in _placed_evenly((start, 4, length // 4, 4), copies, overlap=1):
        yield from _in_words_of_code(places, source, steps, (bias, new_bias))


def _in_words_of_code(
    places: Places, source: Octets, steps: Steps, biases: tuple[int, int]
) -> Iterator[Fields]:
    bias, new_bias = biases
    code = word(source, places.at, 4) & 0xFFFFFFFF
    here, there = places.old + bias, places.new + new_bias

    branch = (code & 0x7C000000) == 0x14000000
    step = _signed(code & 0x3FFFFFF, 26) << 2
    address = here + step
    moved, known = steps.moved(address)
    value = (code & 0xFC000000) | (((moved - there) >> 2) & 0x3FFFFFF)
    yield _those(branch, Fields(places, 4, address, value, known))

    # ADRP, and the instruction right behind it that adds the rest of the address.
    after = np.zeros(len(code), np.int64)
    beside = (np.diff(places.old) == 4) & (np.diff(places.new) == 4) & (np.diff(places.at) == 4)
    after[:-1] = np.where(beside, code[1:], 0)
    page = (code & 0x9F000000) == 0x90000000
    scale = np.full(len(code), -1, np.int64)
    for opcode, bits in ((0x91000000, 0), (0x39400000, 0), (0xB9400000, 2), (0xF9400000, 3)):
        scale[(after & 0xFFC00000) == opcode] = bits
    page &= (scale >= 0) & (((after >> 5) & 31) == (code & 31))
    shift = np.maximum(scale, 0)
    pages = _signed(((code >> 5) & 0x7FFFF) << 2 | (code >> 29) & 3, 21)
    address = ((here >> 12) + pages << 12) + (((after >> 10) & 0xFFF) << shift)
    moved, known = steps.moved(address)
    distance = (moved >> 12) - (there >> 12)
    value = (code & 0x9F00001F) | ((distance & 3) << 29) | (((distance >> 2) & 0x7FFFF) << 5)
    yield _those(page, Fields(places, 4, address, value, known))
    rest = (after & ~np.int64(0xFFF << 10)) | ((((moved & 0xFFF) >> shift) & 0xFFF) << 10)
    behind = Places(places.old + 4, places.at + 4, places.new + 4, places.row)
    yield _those(page, Fields(behind, 4, address, rest, known))


def _those(which: NDArray[np.bool_], fields: Fields) -> Fields:
    places = Places(*(column[which] for column in fields.places))
    return Fields(
        places, fields.width, fields.address[which], fields.value[which], fields.known[which]
    )


def _signed(value: Integers, bits: int) -> Integers:
    half = np.int64(1 << (bits - 1))
    return (value ^ half) - half


# Where fields are


def word(source: Octets, at: Integers, width: int) -> Integers:
    """Little-endian words of 4 or 8 bytes, signed."""
    return _words(source, width)[at].astype(np.int64)


def _words(data: Octets, width: int) -> NDArray[np.signedinteger]:
    """The word that begins at each byte; no copy."""
    kind = np.dtype("<i4" if width == 4 else "<i8")
    count = max(0, len(data) - width + 1)
    return np.ndarray((count,), kind, buffer=data, strides=(1,))


def put(target: Octets, at: Integers, value: Integers, width: int) -> None:
    """Write the low bytes of words, the lowest first."""
    words = _words(target, width)
    words[at] = value.astype(words.dtype)


def _placed_evenly(
    form: tuple[int, int, int, int], copies: Copies, overlap: int = 0
) -> Iterator[Places]:
    """Fields at even distances: (start, stride, count, width)."""
    start, stride, count, width = form
    low = np.clip(-((start - copies.start) // stride), 0, count)
    last = copies.start + copies.length - width - start
    high = np.clip(last // stride + 1, 0, count)
    number = np.maximum(high - low, 0)
    yield from _rows(number, low, copies, lambda row: start + stride * row, overlap)


def _placed(old: Integers, width: int, copies: Copies) -> Iterator[Places]:
    """Fields at these offsets of the old file, which ascend."""
    low = np.searchsorted(old, copies.start, "left")
    high = np.searchsorted(old, copies.start + copies.length - width, "right")
    yield from _rows(np.maximum(high - low, 0), low, copies, lambda row: old[row])


def _rows(
    number: Integers,
    low: Integers,
    copies: Copies,
    offset: Callable[[Integers], Integers],
    overlap: int = 0,
) -> Iterator[Places]:
    """``number[i]`` fields of copy ``i``, from row ``low[i]`` on; ``_ROWS`` at once, and with
    them the first ``overlap`` of those that come next."""
    ends = np.cumsum(number)
    begins = ends - number
    starts = copies.at
    total = int(ends[-1]) if len(ends) else 0
    for at in range(0, total, _ROWS):
        index = np.arange(at, min(at + _ROWS + overlap, total))
        copy = np.searchsorted(ends, index, "right")
        row = low[copy] + index - begins[copy]
        old = offset(row)
        within = old - copies.start[copy]
        yield Places(old, starts[copy] + within, copies.target[copy] + within, row)
