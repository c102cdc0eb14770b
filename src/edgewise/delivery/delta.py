"""Reading ``.ewd``: what a delta or pack holds, and one part's bytes. Pure.

docs/internals/delta.md is the specification. Laws:
- a head is parsed only after its digest matched its name, a part only after its digest matched
  the head, a manifest is used only after it matched the tree's digest;
- memory is bounded by ``limits.PART_OUTPUT`` and ``PART_BASE``, whatever the files' sizes;
- whatever the bytes, nothing but Untrusted is raised.
"""

from __future__ import annotations

import hashlib
import lzma
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple, TypeAlias

import zstandard

from edgewise.delivery.delta_numbers import NumberReader, zigzag
from edgewise.model.errors import Untrusted
from edgewise.protocol import limits
from edgewise.protocol.codec import decode as decode_document
from edgewise.protocol.content import Tree

MAGIC: Final = b"EWD1"
MANIFEST: Final = 0
"""Part 0: the new tree's manifest, zstd with the old one as prefix."""
PREFIX: Final = 1
"""zstd with the old contents as prefix."""
BSDIFF: Final = 2
"""Copies with differences and insertions (bsdiff), LZMA."""
SOLID: Final = 3
"""New contents without a base, LZMA."""
SOLID_X86: Final = 4
"""The same after liblzma's x86 filter."""
PREDICTED: Final = 5
"""As BSDIFF, and references in the old bytes are put right before differences are added."""
AROUND: Final = 1 << 20
"""Bytes of a large base before and behind a piece's own range that its prefix holds too."""
DICTIONARY: Final = 8 << 20
"""LZMA's dictionary: what its decoder holds in memory."""
EXPANSION_DETAIL: Final = 64 << 10
"""A gzip header with a file name and comment."""
_WINDOW: Final = 16 << 20
_STEP: Final = 256 << 10
"""Bytes unpacked at once."""
_ZEROS: Final = bytes(32)
_HEAD: Final = struct.Struct("<4sI")
LEAD_IN: Final = _HEAD.size
"""Bytes before the table."""
ADD_BLOCK: Final = 64 << 10
_LOW: Final = int.from_bytes(b"\x7f" * ADD_BLOCK, "little")
_HIGH: Final = int.from_bytes(b"\x80" * ADD_BLOCK, "little")
_NOTHING: Final = bytes(ADD_BLOCK)

Numbers: TypeAlias = "array[int]"
Read = Callable[[str, int, int], bytes]
"""(object, offset, length) to old content; expanded content for pieces with an expansion."""


class Expansion(NamedTuple):
    """An object that travels as what it expands to, and is compressed again on the node."""

    kind: int
    """1: zlib; 2: GNU gzip."""
    size: int
    """Bytes expanded."""
    detail: bytes
    """Of the kind: level, and the gzip header."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes ``offset`` to ``offset + length`` of an object, or of its expanded form."""

    sha256: str
    size: int
    """Of the whole object (expanded: of its expanded form), in bytes."""
    offset: int
    length: int
    base: str = ""
    """Old object that it is made from; empty for none."""
    base_size: int = 0
    """Of the base as it is kept, in bytes."""
    expansion: Expansion | None = None
    """Given: base and result are the expanded forms of gzip files."""

    @property
    def whole(self) -> bool:
        """Whether this is all of the object."""
        return self.length == self.size


@dataclass(frozen=True, slots=True)
class Part:
    """One independent range of the file; it yields its pieces in order."""

    kind: int
    sha256: str
    start: int
    """Offset in the ``.ewd`` file."""
    length: int
    """Bytes in the ``.ewd`` file."""
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """All of a delta, in terms of objects."""

    base: str
    """Tree; empty for a pack."""
    tree: str
    parts: tuple[Part, ...]
    """Without the manifest's."""


class _Line(NamedTuple):
    kind: int
    sha256: str
    length: int
    pieces: int


@dataclass(frozen=True, slots=True)
class Head:
    """A delta's head: enough to fetch the manifest, which then gives the objects their names."""

    base: str
    tree: str
    manifest_size: int
    manifest_part: Part
    _lines: tuple[_Line, ...]
    _columns: tuple[Numbers, Numbers, Numbers, Numbers]
    """Of all pieces: object, offset, length, base; as they stand in the table."""
    _expansions: tuple[tuple[int, Expansion], ...]

    def manifest(self, packed: bytes, old: bytes) -> bytes:
        """The new tree's manifest, from part 0 and the old tree's manifest (b"" for a pack).

        Raises Untrusted when it is not that of ``tree``.
        """
        _check(self.manifest_part, packed)
        data = _unzstd(packed, old, self.manifest_size)
        if hashlib.sha256(data).hexdigest() != self.tree:
            raise Untrusted(f"the delta's manifest is not that of tree {self.tree[:12]}")
        return data

    def resolve(self, old: Tree | None, new: Tree) -> Delta:
        """The parts in terms of objects. ``old`` is the tree ``base``, None for a pack.

        Raises Untrusted for a table that does not fit these trees.
        """
        before = contents(old) if old is not None else {}
        news = [(one, size) for one, size in contents(new).items() if one not in before]
        return Delta(self.base, self.tree, tuple(self._parts(list(before.items()), news)))

    def _parts(
        self, olds: Sequence[tuple[str, int]], news: Sequence[tuple[str, int]]
    ) -> Iterator[Part]:
        expansions = dict(self._expansions)
        if len(expansions) != len(self._expansions):
            raise Untrusted("the delta expands an object twice")
        index = base = -1
        start = self.manifest_part.start + self.manifest_part.length
        columns: Iterator[tuple[int, ...]] = zip(*self._columns, strict=True)
        for line in self._lines:
            pieces = []
            for step, offset, length, reach in islice(columns, line.pieces):
                index += 1 + zigzag(step)
                if not 0 <= index < len(news):
                    raise Untrusted("the delta speaks of an object that the tree does not have")
                sha256, size = news[index]
                expansion = expansions.get(index)
                if expansion is not None:
                    size = expansion.size
                name, base_size = "", 0
                if reach:
                    base += 1 + zigzag(reach - 1)
                    if not 0 <= base < len(olds):
                        raise Untrusted("the delta needs an object that its base does not have")
                    name, base_size = olds[base]
                length = length or size - offset
                if not 0 < length <= size - offset:
                    raise Untrusted(f"a piece of object {sha256[:12]} reaches beyond its end")
                pieces.append(Piece(sha256, size, offset, length, name, base_size, expansion))
            if sum(piece.length for piece in pieces) > limits.PART_OUTPUT:
                raise Untrusted("a part of the delta yields more than it may")
            yield Part(line.kind, line.sha256, start, line.length, tuple(pieces))
            start += line.length


def contents(tree: Tree) -> dict[str, int]:
    """Digest to size of a tree's files, in the order that a delta's table counts them in.

    Each content once, where its path comes first; empty files are left out.
    """
    found: dict[str, int] = {}
    for entry in tree.entries:
        if entry.kind == "file" and entry.size:
            found.setdefault(entry.sha256, entry.size)
    return found


def head_length(start: bytes) -> int:
    """Bytes of a head that starts so (at least ``LEAD_IN`` bytes). Raises Untrusted."""
    if len(start) < LEAD_IN:
        raise Untrusted("the delta is shorter than its head")
    magic, table = _HEAD.unpack_from(start)
    if magic != MAGIC:
        raise Untrusted(f"not an .ewd file of version 1: it begins with {start[:4]!r}")
    if not 0 < table <= limits.DELTA_HEAD:
        raise Untrusted(f"a delta's table of {table} bytes is not accepted")
    return LEAD_IN + int(table)


def open_head(data: bytes, sha256: str) -> Head:
    """A delta's head (its bytes exactly), once it matched ``sha256``. Raises Untrusted."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Untrusted(f"the head of delta {sha256[:12]} is not what its name says")
    if head_length(data) != len(data):
        raise Untrusted(f"the head of delta {sha256[:12]} has another length than it says")
    table = NumberReader(_unzstd(data[LEAD_IN:], b"", limits.DELTA_HEAD))
    base, tree = table.bytes(32), table.bytes(32)
    manifest_size, count = table.numbers(2)
    if count > limits.DELTA_PARTS:
        raise Untrusted(f"a delta of {count} parts is not accepted")
    if manifest_size > limits.TREE or count < 1:
        raise Untrusted("the delta has no manifest, or one that is too large")
    kinds, digests = table.bytes(count), table.bytes(32 * count)
    lengths, counts = table.numbers(count), table.numbers(count)
    if kinds[0] != MANIFEST or counts[0]:
        raise Untrusted("the delta's first part is not its manifest")
    if any(length > 2 * limits.PART_OUTPUT for length in lengths[1:]) or lengths[0] > limits.TREE:
        raise Untrusted("a part of the delta is longer than it may be")
    if MANIFEST in kinds[1:]:
        raise Untrusted("the delta has two manifests")
    lines = tuple(
        _Line(kind, digests[32 * n : 32 * n + 32].hex(), length, pieces)
        for n, (kind, length, pieces) in enumerate(zip(kinds, lengths, counts, strict=True))
    )
    total = sum(counts)
    if total > limits.ENTRIES + limits.DELTA_PARTS:
        raise Untrusted(f"a delta of {total} pieces is not accepted")
    columns = tuple(array("Q", table.numbers(total)) for _ in range(4))
    expansions = []
    index = -1
    for _ in range(table.number()):
        step, kind, size, length = table.numbers(4)
        index += 1 + step
        if length > EXPANSION_DETAIL or size > limits.OBJECT:
            raise Untrusted("an expansion of the delta is larger than it may be")
        expansions.append((index, Expansion(kind, size, table.bytes(length))))
    table.end()
    first = Part(MANIFEST, lines[0].sha256, len(data), lines[0].length, ())
    return Head(
        base="" if base == _ZEROS else base.hex(),
        tree=tree.hex(),
        manifest_size=manifest_size,
        manifest_part=first,
        _lines=lines[1:],
        _columns=(columns[0], columns[1], columns[2], columns[3]),
        _expansions=tuple(expansions),
    )


def part_lines(head: Head) -> Iterator[tuple[int, int, str]]:
    """(start, length, digest) of every part, for one who only checks and passes on."""
    start = head.manifest_part.start
    for length, sha256 in (
        (head.manifest_part.length, head.manifest_part.sha256),
        *((line.length, line.sha256) for line in head._lines),
    ):
        yield start, length, sha256
        start += length


def prefix_range(piece: Piece) -> tuple[int, int]:
    """(offset, length) of the base that a prefix part holds for this piece.

    All of the base for a whole object; for a piece of one, the same range and ``AROUND``
    bytes before and behind.
    """
    if piece.whole:
        return 0, piece.base_size if piece.expansion is None else limits.PART_BASE
    start = max(0, piece.offset - AROUND)
    return start, piece.offset + piece.length + AROUND - start


def prefix_of(pieces: Sequence[Piece], read: Read) -> bytearray:
    """The old contents that a prefix part refers to, in the pieces' order, each range once."""
    seen: set[tuple[str, int, int]] = set()
    found = bytearray()  # a list to be joined would be there twice
    left = limits.PART_BASE
    for piece in pieces:
        if not piece.base:
            continue
        start, length = prefix_range(piece)
        if (piece.base, start, length) in seen:
            continue
        seen.add((piece.base, start, length))
        data = read(piece.base, start, min(length, left + 1))
        left -= len(data)
        if left < 0:
            raise Untrusted("a part of the delta needs more old content than it may")
        found += data
    return found


def decode(part: Part, packed: bytes, read: Read) -> Iterator[tuple[Piece, bytes]]:
    """The pieces of a part, with their bytes. What is old is not checked here: the caller
    checks every object that it puts together.

    Raises Untrusted for a part that is not the one that the head names, is of a kind that
    this version does not know, or does not decode.
    """
    _check(part, packed)
    total = sum(piece.length for piece in part.pieces)
    data: bytes | bytearray
    if part.kind == PREFIX:
        data = _unzstd(packed, prefix_of(part.pieces, read), total)
    elif part.kind in (BSDIFF, PREDICTED):
        yield from _patched(part, packed, read)
        return
    elif part.kind in (SOLID, SOLID_X86):
        data = _unlzma(packed, total, x86=part.kind == SOLID_X86)
    else:
        raise Untrusted(f"a part of the delta is of kind {part.kind}, which is not known here")
    if len(data) != total:
        raise Untrusted("a part of the delta yields fewer bytes than it says")
    at = 0
    for piece in part.pieces:
        yield piece, bytes(memoryview(data)[at : at + piece.length])
        at += piece.length


def _check(part: Part, packed: bytes) -> None:
    if hashlib.sha256(packed).hexdigest() != part.sha256:
        raise Untrusted(f"part {part.sha256[:12]} of a delta is not what its head says")


def _patched(part: Part, packed: bytes, read: Read) -> Iterator[tuple[Piece, bytes]]:
    """bsdiff (Percival 2003): ``control`` says what is copied with differences and inserted."""
    table = NumberReader(packed[:32] + bytes(32))
    control_size, diff_size, extra_size = table.numbers(3)
    start = table.at
    total = sum(piece.length for piece in part.pieces)
    if diff_size + extra_size != total or control_size > limits.PART_CONTROL:
        raise Untrusted("a part of the delta has sizes that cannot be")
    data = _unlzma(packed[start:], control_size + total, x86=False)
    if len(data) != control_size + total:
        raise Untrusted("a part of the delta yields fewer bytes than it says")
    control = NumberReader(bytes(memoryview(data)[:control_size]))
    at, behind = control_size, control_size + diff_size
    for piece, count in zip(part.pieces, control.numbers(len(part.pieces)), strict=True):
        moves, copies, inserts = (control.numbers(count) for _ in range(3))
        copied = sum(copies)
        if copied + sum(inserts) != piece.length or at + copied > control_size + diff_size:
            raise Untrusted("a part of the delta does not add up")
        old = _old(piece, moves, copies, read)
        difference = memoryview(data)[at : at + copied]
        new: bytes | bytearray
        if part.kind == PREDICTED:
            columns = moves, copies, inserts
            new = _predicted(old, difference, piece, columns, control, read)
        else:
            new = add(old, difference)
        at += copied
        del old
        yield piece, _woven(new, copies, data, behind, inserts)
        behind += piece.length - copied
    control.end()


def _places(moves: list[int], copies: list[int]) -> Iterator[tuple[int, int]]:
    """Start and length of each copy in the old file. Made anew each time: a list of them would
    be larger than what 100,000 copies take."""
    end = 0
    for move, length in zip(moves, copies, strict=True):
        start = end + ((move >> 1) ^ -(move & 1))
        end = start + length
        yield start, length


def _old(piece: Piece, moves: list[int], copies: list[int], read: Read) -> bytes | bytearray:
    """The old bytes that the copies take, one after the other."""
    high = 0
    low = limits.OBJECT
    for start, length in _places(moves, copies):
        low = min(low, start)
        high = max(high, start + length)
    if low < 0:
        raise Untrusted("a part of the delta copies from before a file's start")
    near = high - low <= limits.PART_BASE
    window = read(piece.base, low, high - low) if near and high > low else b""
    found: bytes | bytearray = window
    if len(copies) != 1 or not near:
        found, view = bytearray(), memoryview(window)
        for start, length in _places(moves, copies):
            if length:
                there = start - low
                found += view[there : there + length] if near else read(piece.base, start, length)
    if len(found) != sum(copies):
        raise Untrusted("a part of the delta copies from behind a file's end")
    return found


def _predicted(
    old: bytes | bytearray,
    difference: memoryview,
    piece: Piece,
    columns: tuple[list[int], list[int], list[int]],
    control: NumberReader,
    read: Read,
) -> bytearray:
    # Only programs that were built anew need it: a node without such an update never loads it.
    from edgewise.delivery import references

    said = references.parse(control)
    if not said.groups:
        found = bytearray(old)
    else:
        moves, lengths, inserts = columns
        spans = [(start, start + length) for start, length in _places(moves, lengths)]
        copies = references.copies(spans, inserts, piece.offset)
        found = references.predicted(
            old, copies, said, lambda offset, length: read(piece.base, offset, length)
        )
    references.add(found, difference)
    return found


def _woven(
    copied: bytes | bytearray, copies: list[int], data: bytearray, behind: int, inserts: list[int]
) -> bytes:
    if len(copies) == 1 and not inserts[0]:
        return bytes(copied)
    woven = bytearray()
    at, old, new = 0, memoryview(copied), memoryview(data)
    for copy, insert in zip(copies, inserts, strict=True):
        if copy:
            woven += old[at : at + copy]
            at += copy
        if insert:
            woven += new[behind : behind + insert]
            behind += insert
    return bytes(woven)


def add(old: bytes | bytearray, difference: bytes | memoryview) -> bytes | bytearray:
    """Bytewise sum modulo 256.

    Many bytes at once as one large integer: the low seven bits of each are added, which
    carries nowhere, and the high bits are put right by exclusive or. 2 ms a MiB, without a
    compiled extension on the node.
    """
    if len(old) == len(difference) <= ADD_BLOCK:
        return _sum(old, difference)
    found = bytearray(old)
    for at in range(0, len(old), ADD_BLOCK):
        block = difference[at : at + ADD_BLOCK]
        if block != _NOTHING:
            found[at : at + ADD_BLOCK] = _sum(old[at : at + ADD_BLOCK], block)
    return found


def _sum(old: bytes | bytearray, difference: bytes | memoryview) -> bytes:
    one, other = int.from_bytes(old, "little"), int.from_bytes(difference, "little")
    both = ((one & _LOW) + (other & _LOW)) ^ ((one ^ other) & _HIGH)
    return both.to_bytes(len(old), "little")


def _unzstd(packed: bytes, prefix: bytes | bytearray, at_most: int) -> bytes:
    """One frame that says its size; memory is bounded by ``at_most`` and the window.

    A prefix that can be emptied is: zstandard has copied it, and it is the largest thing here.
    """
    try:
        about = zstandard.get_frame_parameters(packed)
        if not 0 <= about.content_size <= at_most or about.window_size > max(_WINDOW, at_most):
            raise Untrusted("a part of the delta unpacks to more than it may")
        about_dict = (
            zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
            if len(prefix) >= 8
            else None
        )
        if isinstance(prefix, bytearray):
            prefix.clear()
        unpacker = zstandard.ZstdDecompressor(dict_data=about_dict)
        return unpacker.decompress(
            packed, max_output_size=max(1, about.content_size), allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise Untrusted(f"a part of the delta is not sound zstd: {error}") from error


def _unlzma(packed: bytes, at_most: int, *, x86: bool) -> bytearray:
    filters: list[dict[str, int]] = [{"id": lzma.FILTER_LZMA2, "dict_size": DICTIONARY}]
    if x86:
        filters.insert(0, {"id": lzma.FILTER_X86})
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        data = bytearray(unpacker.decompress(packed, max_length=_STEP))
        while not unpacker.eof and len(data) <= at_most:  # at once, it would be there twice
            more = unpacker.decompress(b"", max_length=min(_STEP, at_most + 1 - len(data)))
            if not more and not unpacker.eof:
                break
            data += more
    except lzma.LZMAError as error:
        raise Untrusted(f"a part of the delta is not sound LZMA: {error}") from error
    if len(data) > at_most or not unpacker.eof or unpacker.unused_data:
        raise Untrusted("a part of the delta unpacks to more than it may, or not to its end")
    return data


def parse_tree(manifest: bytes) -> Tree:
    """A verified manifest's tree. Raises Untrusted."""
    return decode_document(manifest, Tree, what="tree", at_most=limits.TREE)
