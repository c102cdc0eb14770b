"""From a part of a delta to objects in the node's store. Through ports only; blocks.

Laws:
- an object is kept only after its digest matched the one that the signed tree names;
- pieces of an object that spans parts wait in a scratch file, each with its digest behind
  the content: after a crash only those that still match count;
- what is old is read unchecked, because a wrong result shows it. ``Applied.wrong`` then says
  whether a base was damaged (it is dropped, and comes anew) or the delta is wrong.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Final, Protocol

from edgewise.delivery.delta import Expansion, Part, Piece, decode
from edgewise.delivery.ports import NodeFiles, Scratch
from edgewise.model.errors import NotFound, Untrusted
from edgewise.protocol import limits
from edgewise.protocol.content import Attributes

OPEN: Final = 16
"""Old files held open between reads: a part refers to few, again and again."""
CHUNK: Final = 1 << 20
SMALL: Final = 256 << 10
"""An old file that expands to no more is held in memory, at most ``OPEN`` of them: most of a
system's packed files are pages of a manual, and three scratch files for each cost more than
compressing them."""
_RECORD: Final = struct.Struct("<QQ32s")
"""Offset, length and SHA-256 of a piece that a scratch file holds, behind its content."""
PASSING: Final = Attributes(0o600)
"""Of contents that only lead to others; nothing links them, so ``collect`` takes them."""


class Recompression(Protocol):
    """Gzip files as what they expand to, and back. Implementation: backends.files.recompress."""

    def can_recompress(self, kind: int) -> bool:
        """Whether this machine makes the same bytes as others do."""

    def expanded(self, source: IO[bytes], *, at_most: int) -> Iterator[bytes]:
        """Raises Untrusted for no gzip file, or one that expands to more than ``at_most``."""

    def recompress(
        self, expansion: Expansion, source: IO[bytes], sink: Callable[[bytes], object]
    ) -> None:
        """Compress all of ``source``; the caller checks the digest. Raises Untrusted."""

    def recompressed(self, expansion: Expansion, data: bytes) -> bytes:
        """The same from and to memory."""


@dataclass(slots=True)
class Applied:
    """What a part brought."""

    done: list[str] = field(default_factory=list)
    """Objects that are in the store now."""
    alone: list[str] = field(default_factory=list)
    """Objects that this machine cannot compress again: they come whole."""
    wrong: str = ""
    """Why an object or the part is wrong, with ``damaged`` empty: the delta is to be refused."""
    damaged: list[str] = field(default_factory=list)
    """Old contents that were found damaged and dropped."""


class Applying:
    """Applies parts in any order, one at a time. ``close`` it."""

    def __init__(
        self,
        store: NodeFiles,
        wanted: Mapping[str, tuple[Attributes, ...]],
        recompression: Recompression | None,
    ) -> None:
        self._store = store
        self.wanted = wanted
        """Objects to keep, each with its attributes."""
        self.passing: frozenset[str] = frozenset()
        """Objects that are kept although nothing names them: the middle of a chain."""
        self._recompression = recompression
        self._files: OrderedDict[tuple[str, bool], tuple[IO[bytes], ExitStack]] = OrderedDict()
        self._pieces: dict[tuple[str, Scratch], dict[int, int]] = {}
        self._bases: dict[str, set[str]] = {}
        self._expanded: set[str] = set()

    def close(self) -> None:
        """Forget old files; scratch files of objects that did not come whole stay."""
        for _, held in self._files.values():
            held.close()
        self._files.clear()
        for sha256 in self._expanded:
            self._store.drop_scratch(sha256, "old")
        self._expanded.clear()

    # Before parts are chosen

    def usable(self, piece: Piece) -> bool:
        """Whether this machine can make the object of a piece."""
        if piece.expansion is None:
            return True
        found = self._recompression
        return found is not None and found.can_recompress(piece.expansion.kind)

    def has(self, piece: Piece) -> bool:
        """Whether the piece waits in a scratch file already."""
        if piece.whole and piece.expansion is None:
            return False
        use: Scratch = "new" if piece.expansion is None else "full"
        have = self._held(piece.sha256, piece.size, use)
        if not piece.offset and _covers(have, piece.size):
            return False  # all waits, but nothing put it together: any part of it does
        at, end = piece.offset, piece.offset + piece.length
        while at < end and (length := have.get(at)):
            at += length
        return at >= end

    def _held(self, sha256: str, size: int, use: Scratch) -> dict[int, int]:
        """Offset to length of the pieces in a scratch file, as they were verified once."""
        known = self._pieces.get((sha256, use))
        if known is not None:
            return known
        known = self._pieces[sha256, use] = {}
        if self._store.has_scratch(sha256, use):
            with self._store.scratch(sha256, use) as file:
                file.seek(size)
                records = file.read(limits.ENTRIES * _RECORD.size)
                for at in range(0, len(records) - _RECORD.size + 1, _RECORD.size):
                    offset, length, digest = _RECORD.unpack_from(records, at)
                    if length > limits.PART_OUTPUT or offset + length > size:
                        continue
                    file.seek(offset)
                    if hashlib.sha256(file.read(length)).digest() == digest:
                        known[offset] = length
        return known

    # Applying

    def apply(self, part: Part, packed: bytes) -> Applied:
        """Decode a part and keep what it completes. Raises NeedsPerson when the disk is full.

        Nothing that a wrong part yields is kept.
        """
        applied = Applied()
        expands = {piece.base for piece in part.pieces if piece.expansion is not None}
        try:
            for piece, data in decode(part, packed, self._reader(expands)):
                if not self._needs(piece):
                    continue
                if piece.whole and piece.expansion is None:
                    self._single(piece, data, applied)
                elif piece.whole and piece.expansion is not None:
                    self._packed(piece, piece.expansion, data, applied)
                else:
                    self._piece(piece, data, applied)
        except (Untrusted, NotFound) as error:
            applied.wrong = str(error)
        if applied.wrong:
            bases = {piece.base for piece in part.pieces if piece.base}
            for sha256 in applied.done:
                bases -= self._bases.pop(sha256, set())
            self._look_at(bases, applied)
        return applied

    def _needs(self, piece: Piece) -> bool:
        sha256 = piece.sha256
        return (sha256 in self.wanted or sha256 in self.passing) and not self._store.kept(sha256)

    def _single(self, piece: Piece, data: bytes, applied: Applied) -> None:
        if hashlib.sha256(data).hexdigest() != piece.sha256:
            applied.wrong = f"the delta makes something else than object {piece.sha256[:12]}"
            return
        self._keep(piece.sha256, lambda: iter([data]))
        applied.done.append(piece.sha256)

    def _packed(self, piece: Piece, expansion: Expansion, data: bytes, applied: Applied) -> None:
        """A packed file of which a part has all that it expands to."""
        self._bases.setdefault(piece.sha256, set()).add(piece.base)
        again = b""
        if self._recompression is not None:
            with suppress(Untrusted):
                again = self._recompression.recompressed(expansion, data)
        if hashlib.sha256(again).hexdigest() != piece.sha256:
            applied.alone.append(piece.sha256)
            return
        self._keep(piece.sha256, lambda: iter([again]))
        applied.done.append(piece.sha256)

    def _piece(self, piece: Piece, data: bytes, applied: Applied) -> None:
        use: Scratch = "new" if piece.expansion is None else "full"
        have = self._held(piece.sha256, piece.size, use)
        self._bases.setdefault(piece.sha256, set()).add(piece.base)
        if have.get(piece.offset) != piece.length:
            with self._store.scratch(piece.sha256, use) as file:
                file.seek(piece.offset)
                file.write(data)
                file.seek(piece.size + len(have) * _RECORD.size)
                file.write(_RECORD.pack(piece.offset, piece.length, hashlib.sha256(data).digest()))
            have[piece.offset] = piece.length
        if _covers(have, piece.size):
            self._finish(piece, use, applied)

    def _finish(self, piece: Piece, use: Scratch, applied: Applied) -> None:
        """All pieces are there: check the object and keep it."""
        sha256 = piece.sha256
        with self._store.scratch(sha256, use) as file:
            try:
                if piece.expansion is None:
                    self._keep_checked(sha256, file, piece.size)
                else:
                    file.truncate(piece.size)  # without the records: all of it is compressed
                    self._compress(sha256, piece.expansion, file)
            except Untrusted as error:
                if piece.expansion is None:
                    applied.wrong = str(error)
                    self._look_at(self._bases.get(sha256, set()) - {""}, applied)
                else:
                    applied.alone.append(sha256)
            else:
                applied.done.append(sha256)
        self._store.drop_scratch(sha256, use)
        self._pieces.pop((sha256, use), None)

    def _compress(self, sha256: str, expansion: Expansion, source: IO[bytes]) -> None:
        if self._recompression is None:
            raise Untrusted("nothing here compresses again")
        try:
            with self._store.scratch(sha256, "new") as file:
                file.truncate(0)
                source.flush()
                source.seek(0)
                self._recompression.recompress(expansion, source, file.write)
                self._keep_checked(sha256, file, file.tell())
        finally:
            self._store.drop_scratch(sha256, "new")

    def _keep_checked(self, sha256: str, file: IO[bytes], size: int) -> None:
        """Keep the first ``size`` bytes. What lies behind stays: a kill loses no piece."""

        def content() -> Iterator[bytes]:
            digest, left = hashlib.sha256(), size
            file.seek(0)
            while left and (data := file.read(min(CHUNK, left))):
                digest.update(data)
                left -= len(data)
                yield data
            if digest.hexdigest() != sha256:
                raise Untrusted(f"the delta makes something else than object {sha256[:12]}")

        self._keep(sha256, content)

    def _keep(self, sha256: str, content: Callable[[], Iterator[bytes]]) -> None:
        variants = self.wanted.get(sha256, (PASSING,))
        self._store.keep_file(sha256, variants[0], content())
        for attributes in variants[1:]:
            self._store.copy(sha256, variants[0].key, attributes)

    def _look_at(self, bases: set[str], applied: Applied) -> None:
        """Something is wrong: was it what the node has?"""
        for sha256 in sorted(bases):
            keys = self._store.kept(sha256)
            if not keys or not all([self._store.verify(sha256, key) for key in keys]):
                applied.damaged.append(sha256)
            for form in (False, True):
                if (opened := self._files.pop((sha256, form), None)) is not None:
                    opened[1].close()

    # Old contents

    def _reader(self, expands: set[str]) -> Callable[[str, int, int], bytes]:
        last = ""
        file: IO[bytes]

        def read(sha256: str, offset: int, length: int) -> bytes:
            nonlocal last, file
            if sha256 != last:  # one piece may read a thousand times from its base
                file = self._old(sha256, expanded=sha256 in expands)
                last = sha256
            file.seek(offset)
            return file.read(length)

        return read

    def _old(self, sha256: str, *, expanded: bool) -> IO[bytes]:
        key = (sha256, expanded)
        opened = self._files.pop(key, None)
        if opened is None:
            with ExitStack() as held:
                if expanded:
                    file = held.enter_context(self._expanded_old(sha256))
                else:
                    file = held.enter_context(self._store.open_kept(sha256))
                opened = file, held.pop_all()
        self._files[key] = opened
        while len(self._files) > OPEN:
            self._files.popitem(last=False)[1][1].close()
        return opened[0]

    @contextmanager
    def _expanded_old(self, sha256: str) -> Iterator[IO[bytes]]:
        """The expanded form of an old packed file: in memory, or made once on the disk."""
        if self._recompression is None:
            raise Untrusted("nothing here expands packed files")
        if sha256 not in self._expanded:
            small = io.BytesIO()
            with self._store.open_kept(sha256) as packed:
                for data in self._recompression.expanded(packed, at_most=limits.OBJECT):
                    small.write(data)
                    if small.tell() > SMALL:
                        break
                else:
                    yield small
                    return
        with self._store.scratch(sha256, "old") as file:
            if sha256 not in self._expanded:
                file.truncate(0)
                with self._store.open_kept(sha256) as packed:
                    for data in self._recompression.expanded(packed, at_most=limits.OBJECT):
                        file.write(data)
                file.flush()
                self._expanded.add(sha256)
            yield file


def _covers(have: Mapping[int, int], size: int) -> bool:
    at = 0
    while at < size and (length := have.get(at)):
        at += length
    return at >= size
