"""Writing an ``.ewd`` head: the counterpart of ``delta.open_head``. Pure."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence

import zstandard

from edgewise.delivery.delta import MAGIC, MANIFEST, Expansion, Part, Piece

_LEVEL = 19


def varints(numbers: Iterable[int]) -> bytes:
    """LEB128 of numbers that are not negative."""
    found = bytearray()
    for number in numbers:
        left = number
        while left > 127:
            found.append(left & 127 | 128)
            left >>= 7
        found.append(left)
    return bytes(found)


def unsigned(number: int) -> int:
    """Zigzag: 0, -1, 1, -2 ... as 0, 1, 2, 3 ..."""
    return (number << 1) ^ (number >> 63)


def written_part(kind: int, packed: bytes, pieces: Sequence[Piece]) -> Part:
    """A part as the table tells it; where it starts follows from its place in the file."""
    return Part(kind, hashlib.sha256(packed).hexdigest(), 0, len(packed), tuple(pieces))


def head(
    trees: tuple[str, str],
    manifest_size: int,
    lines: Sequence[Part],
    olds: Mapping[str, int],
    news: Mapping[str, int],
) -> bytes:
    """The head of a file whose parts come in this order, the manifest's first.

    ``trees`` are base ("" for a pack) and new; ``olds`` and ``news`` give each object its
    number: old contents, and those new ones that are not among them (``delta.contents``).
    """
    base, tree = trees
    assert lines[0].kind == MANIFEST
    pieces = [piece for part in lines for piece in part.pieces]
    table = [
        bytes.fromhex(base or "0" * 64),
        bytes.fromhex(tree),
        varints([manifest_size, len(lines)]),
        bytes(part.kind for part in lines),
        *(bytes.fromhex(part.sha256) for part in lines),
        varints(part.length for part in lines),
        varints(len(part.pieces) for part in lines),
        *_columns(pieces, olds, news),
        _expansions(pieces, news),
    ]
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(b"".join(table))
    return struct.pack("<4sI", MAGIC, len(packed)) + packed


def _columns(
    pieces: Sequence[Piece], olds: Mapping[str, int], news: Mapping[str, int]
) -> tuple[bytes, bytes, bytes, bytes]:
    objects, bases = [], []
    last = last_base = -1
    for piece in pieces:
        index = news[piece.sha256]
        objects.append(unsigned(index - last - 1))
        last = index
        if piece.base:
            base = olds[piece.base]
            bases.append(1 + unsigned(base - last_base - 1))
            last_base = base
        else:
            bases.append(0)
    offsets = [piece.offset for piece in pieces]
    ends = [0 if p.offset + p.length == p.size else p.length for p in pieces]
    return varints(objects), varints(offsets), varints(ends), varints(bases)


def _expansions(pieces: Sequence[Piece], news: Mapping[str, int]) -> bytes:
    found: dict[int, Expansion] = {}
    for piece in pieces:
        if piece.expansion is not None:
            found[news[piece.sha256]] = piece.expansion
    out = [varints([len(found)])]
    last = -1
    for index, expansion in sorted(found.items()):
        about = [index - last - 1, expansion.kind, expansion.size, len(expansion.detail)]
        out += [varints(about), expansion.detail]
        last = index
    return b"".join(out)
