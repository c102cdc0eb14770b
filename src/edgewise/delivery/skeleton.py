"""A tar archive taken apart: its files' contents are objects, all the rest is a skeleton.

The skeleton and the contents give the archive again, bit for bit. Reading a skeleton needs no
knowledge of tar: it is a list of bytes to copy and of contents to put between them. Taking apart
guesses from tar headers where contents are; a wrong guess costs sharing, never bytes.

The format is in docs/internals/shapes.md. Laws: nothing here grows with the archive but the
list that the caller keeps; a skeleton that does not add up to its own end is Untrusted.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Final, NamedTuple, Protocol

from edgewise.model.errors import BadUsage, Untrusted
from edgewise.protocol import limits

MAGIC: Final = b"EWSKEL1\n"
LITERAL_PIECE: Final = 64 << 10
"""Bytes of one literal record: what a reader holds at once."""
INLINE: Final = 256
"""Contents below it stay in the skeleton: an object of their own would cost more."""
OPAQUE_PIECE: Final = 1 << 20
"""What is no tar is cut into contents of this many bytes."""
LITERALS: Final = 512 << 20
"""Literal bytes of one skeleton: ``CONTENTS`` headers of 1,536 bytes with padding, and room."""
CONTENTS: Final = 200_000
"""Contents of one archive."""

_LITERAL, _CONTENT, _END = b"L", b"C", b"E"
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_BLOCK: Final = 512
_CHUNK: Final = 256 << 10
_META: Final = 1 << 20
"""A PAX header or long name of more bytes is copied and not read."""


class Content(NamedTuple):
    """Bytes that are an object of their own."""

    sha256: str
    size: int
    hint: str = ""
    """The name in the archive; not in the skeleton, and never used as a path as it is."""


class Whole(NamedTuple):
    """The archive that a skeleton stands for."""

    sha256: str
    size: int


class Readable(Protocol):
    """What bytes come out of."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""


Keep = Callable[[Readable], tuple[str, int]]
"""Keeps a content; returns its digest and size."""


# Reading


def parts(skeleton: Readable) -> Iterator[bytes | Content | Whole]:
    """What to put one after the other; the last item says what must have come out.

    Raises Untrusted for bytes that are no skeleton, or are one beyond the bounds.
    """
    if _exactly(skeleton, len(MAGIC)) != MAGIC:
        raise Untrusted("this is no skeleton of an archive")
    seen = literals = contents = 0
    while (kind := skeleton.read(1)) != _END:
        if kind == _LITERAL:
            (size,) = _U32.unpack(_exactly(skeleton, 4))
            literals += size
            if not 0 < size <= LITERAL_PIECE or literals > LITERALS:
                raise Untrusted(f"a skeleton has {size} literal bytes in one place, or too many")
            yield _exactly(skeleton, size)
        elif kind == _CONTENT:
            (size,) = _U64.unpack(_exactly(skeleton, 8))
            contents += 1
            if size > limits.OBJECT or contents > CONTENTS:
                raise Untrusted(f"a skeleton has {contents} contents, one of {size} bytes")
            yield Content(_exactly(skeleton, 32).hex(), size)
        else:
            raise Untrusted(f"a skeleton holds a record of the kind {kind!r}")
        seen += size
    (total,) = _U64.unpack(_exactly(skeleton, 8))
    whole = Whole(_exactly(skeleton, 32).hex(), total)
    if total != seen or skeleton.read(1):
        raise Untrusted(f"a skeleton of {total} bytes has parts of {seen}, or goes on")
    yield whole


def assembled(
    skeleton: Readable, read: Callable[[str, int], Iterable[bytes]], whole: str
) -> Iterator[bytes]:
    """The archive. ``read(sha256, size)`` gives a content. Raises Untrusted at the end, after
    the last byte, when the archive is another than ``whole`` (SHA-256)."""
    digest = hashlib.sha256()
    for part in parts(skeleton):
        if isinstance(part, Whole):
            break
        for chunk in (part,) if isinstance(part, bytes) else read(part.sha256, part.size):
            digest.update(chunk)
            yield chunk
    if digest.hexdigest() != whole:
        raise Untrusted(f"the archive {whole[:12]} cannot be put together from its parts")


def _exactly(file: Readable, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise Untrusted("a skeleton ends too early")
    return data


# Writing


def take_apart(
    archive: Readable, keep: Keep, out: IO[bytes], *, at_most: int
) -> tuple[Whole, list[Content]]:
    """Write the skeleton of ``archive`` to ``out``, and keep its contents.

    Raises BadUsage for more than ``at_most`` bytes, ``CONTENTS`` or ``LITERALS``.
    """
    taker = _Taker(archive, keep, out, at_most)
    taker.run()
    return taker.end(), taker.contents


class _Taker:
    def __init__(self, archive: Readable, keep: Keep, out: IO[bytes], at_most: int) -> None:
        self._archive = archive
        self._keep = keep
        self._out = out
        self._at_most = at_most
        self._digest = hashlib.sha256()
        self._size = 0
        self._literal = bytearray()
        self._literals = 0
        self.contents: list[Content] = []
        out.write(MAGIC)

    def run(self) -> None:
        name, size = "", None  # what an extended header says of the file behind it
        while block := self._read(_BLOCK):
            header = _Header.of(block)
            if header is None:
                if block.count(0) != _BLOCK:
                    return self._opaque(block)
                self._copy(block)
                continue
            self._copy(block)
            length = header.size if size is None else size
            if header.kind in b"xgLK":
                said = self._meta(header.size)
                if header.kind in b"xL":
                    found = _said(header.kind, said)
                    name, size = found[0] or name, size if found[1] is None else found[1]
                continue
            if header.kind == b"S"[0]:
                more = block[482] != 0
                while more and (block := self._read(_BLOCK)):
                    self._copy(block)
                    more = len(block) == _BLOCK and block[504] != 0
            if header.kind in b"\x0007S":
                self._content(name or header.name, length)
                self._copy_through(-length % _BLOCK)
            elif header.kind not in b"123456":  # of an unknown kind; these have no content
                self._copy_through(-(-length // _BLOCK) * _BLOCK)
            name, size = "", None

    def end(self) -> Whole:
        self._flush()
        whole = Whole(self._digest.hexdigest(), self._size)
        self._out.write(_END + _U64.pack(whole.size) + bytes.fromhex(whole.sha256))
        return whole

    def _read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size and (chunk := self._archive.read(size - len(found))):
            found += chunk
        self._size += len(found)
        if self._size > self._at_most:
            raise BadUsage(
                f"an archive unpacks to more than the {self._at_most} bytes it may have",
                hint="raise the bound with --at-most, if you trust where it is from",
            )
        self._digest.update(found)
        return bytes(found)

    def _copy(self, data: bytes) -> None:
        self._literals += len(data)
        if self._literals > LITERALS:
            raise BadUsage(f"an archive has more than {LITERALS} bytes besides its files' contents")
        self._literal += data
        if len(self._literal) >= LITERAL_PIECE:
            self._flush()

    def _copy_through(self, size: int) -> None:
        while size > 0 and (chunk := self._read(min(size, _CHUNK))):
            size -= len(chunk)
            self._copy(chunk)

    def _flush(self) -> None:
        for start in range(0, len(self._literal), LITERAL_PIECE):
            piece = self._literal[start : start + LITERAL_PIECE]
            self._out.write(_LITERAL + _U32.pack(len(piece)) + piece)
        self._literal.clear()

    def _meta(self, size: int) -> bytes:
        if size > _META:
            self._copy_through(-(-size // _BLOCK) * _BLOCK)
            return b""
        said = self._read(-(-size // _BLOCK) * _BLOCK)
        self._copy(said)
        return said[:size]

    def _content(self, hint: str, size: int) -> None:
        if size < INLINE:
            return self._copy_through(size)
        first = self._read(min(size, _CHUNK))
        if first:
            self._kept(hint, first, size - len(first))

    def _kept(self, hint: str, first: bytes, rest: int) -> None:
        if len(self.contents) == CONTENTS:
            raise BadUsage(f"an archive has more than {CONTENTS} files")
        sha256, size = self._keep(_Piece(self._chunks(first, rest)))
        self._flush()
        self._out.write(_CONTENT + _U64.pack(size) + bytes.fromhex(sha256))
        self.contents.append(Content(sha256, size, hint))

    def _chunks(self, first: bytes, rest: int) -> Iterator[bytes]:
        yield first
        while rest > 0 and (chunk := self._read(min(rest, _CHUNK))):
            rest -= len(chunk)
            yield chunk

    def _opaque(self, block: bytes) -> None:
        """What is no tar, or is none from here on."""
        piece = block + self._read(OPAQUE_PIECE - len(block))
        while piece:
            if len(piece) < INLINE:
                return self._copy(piece)
            self._kept("", piece, 0)
            piece = self._read(OPAQUE_PIECE)


class _Piece:
    """One content, to be read once."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def read(self, size: int) -> bytes:
        data = self._left or next(self._chunks, b"")
        self._left = data[size:]
        return data[:size]


class _Header(NamedTuple):
    """What a tar header says (POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual)."""

    name: str
    kind: int
    size: int

    @classmethod
    def of(cls, block: bytes) -> _Header | None:
        """None for a block that is no header: its checksum does not fit."""
        if len(block) != _BLOCK:
            return None
        stated = _number(block[148:156])
        if stated is None or stated != sum(block) - sum(block[148:156]) + 8 * 32:
            return None
        size = _number(block[124:136])
        if size is None or not 0 <= size < 1 << 62:
            return None
        name, prefix = _text(block[:100]), _text(block[345:500])
        if block[257:263] == b"ustar\0" and prefix:
            name = f"{prefix}/{name}"
        return cls(name, block[156], size)


def _number(field: bytes) -> int | None:
    if field[0] & 0x80:  # GNU: base 256
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        return None


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "replace")


def _said(kind: int, said: bytes) -> tuple[str, int | None]:
    """The name and size that an extended header gives the file behind it."""
    if kind == b"L"[0]:
        return _text(said), None
    name, size = "", None
    while said:
        length, _, _ = said.partition(b" ")
        if not length.isdigit() or len(length) > 7 or not 0 < int(length) <= len(said):
            break
        key, _, value = said[len(length) + 1 : int(length)].rstrip(b"\n").partition(b"=")
        if key in (b"path", b"GNU.sparse.name"):
            name = value.decode("utf-8", "replace")
        elif key == b"size" and value.isdigit() and len(value) < 19:
            size = int(value)
        said = said[int(length) :]
    return name, size
