"""Gzip files as what they expand to, and back to the same bytes.

Only what this machine reproduced bit for bit travels expanded; a node checks the digest of
what it compresses again, so another gzip costs it a download, never a wrong file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import IO, Final

from edgewise.delivery.delta import Expansion
from edgewise.model.errors import Untrusted

ZLIB: Final = 1
GNU_GZIP: Final = 2
LEVELS: Final = (9, 6)
"""``gzip -9n`` makes most files of a distribution; 6 is everybody's default."""
_MAGIC = b"\x1f\x8b\x08"
_NAME = 8
_PIECE = 256 << 10
_TRAILER = struct.Struct("<II")
_KNOWN: Final = b"".join(b"%d of many, so that levels differ; " % (n * n) for n in range(9000))
_KNOWN_GZIP: Final = "ace266b76161b15a4d17b55d2a7b3c732bc06def7e4a2952f96b89496c0cfee7"
_KNOWN_ZLIB: Final = "85db419c73a5ae9d804753ea5d28c1b60adc76f31fd032710323bd33ea69a4e3"


def header_length(start: bytes) -> int:
    """Bytes of a gzip header with at most a file name; 0 for any other file."""
    if len(start) < 18 or start[:3] != _MAGIC:
        return 0
    flags = int(start[3])
    if flags == 0:
        return 10
    end = start.find(b"\0", 10)
    return end + 1 if flags == _NAME and 0 < end < 4096 else 0


def expanded(source: IO[bytes], *, at_most: int) -> Iterator[bytes]:
    """What a gzip file of one member holds, in pieces.

    Raises Untrusted when it is none, goes on after its end, or is larger than ``at_most``.
    """
    unpacker = zlib.decompressobj(31)
    total = 0
    try:
        while data := source.read(_PIECE):
            if unpacker.eof:
                raise Untrusted("a gzip file goes on after its end")
            while data:
                piece = unpacker.decompress(data, _PIECE)
                total += len(piece)
                if total > at_most:
                    raise Untrusted(f"a gzip file expands to more than {at_most} bytes")
                if piece:
                    yield piece
                data = unpacker.unconsumed_tail
            if unpacker.unused_data:
                raise Untrusted("a gzip file goes on after its end")
    except zlib.error as error:
        raise Untrusted(f"not a sound gzip file: {error}") from error
    if not unpacker.eof:
        raise Untrusted("a gzip file ends early")


def recompress(expansion: Expansion, source: IO[bytes], sink: Callable[[bytes], object]) -> None:
    """Compress again all that ``source`` (a flushed file with a descriptor) holds; the caller
    checks the digest of what ``sink`` got.

    Raises Untrusted for a kind or level that is not known here, and when gzip fails.
    """
    level, head = expansion.detail[:1], expansion.detail[1:]
    if expansion.kind not in (ZLIB, GNU_GZIP) or not level or not 1 <= level[0] <= 9:
        raise Untrusted(f"expansion {expansion.kind} of a delta is not known here")
    sink(head)
    if expansion.kind == ZLIB:
        _deflate(level[0], source, sink)
    else:
        _gzip(level[0], source, sink)


def _deflate(level: int, source: IO[bytes], sink: Callable[[bytes], object]) -> None:
    packer = zlib.compressobj(level, zlib.DEFLATED, -15, 8)
    check = length = 0
    while data := os.pread(source.fileno(), _PIECE, length):
        check = zlib.crc32(data, check)
        length += len(data)
        sink(packer.compress(data))
    sink(packer.flush() + _TRAILER.pack(check, length & 0xFFFFFFFF))


def _gzip(level: int, source: IO[bytes], sink: Callable[[bytes], object]) -> None:
    command = ("gzip", f"-{level}nc")
    os.lseek(source.fileno(), 0, os.SEEK_SET)  # what is buffered here is not seen by gzip
    try:
        with subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.read(10)  # its own header: ours has the name and time
            while data := process.stdout.read(_PIECE):
                sink(data)
    except OSError as error:
        raise Untrusted(f"gzip cannot be run: {error}") from error
    if process.returncode:
        raise Untrusted(f"gzip ended with {process.returncode}")


@cache
def can_recompress(kind: int) -> bool:
    """Whether this machine's compressor gives the bytes that it gave where this was written."""
    import tempfile

    known = {ZLIB: _KNOWN_ZLIB, GNU_GZIP: _KNOWN_GZIP}.get(kind)
    if known is None or (kind == GNU_GZIP and shutil.which("gzip") is None):
        return False
    digest = hashlib.sha256()
    with tempfile.TemporaryFile() as file:
        file.write(_KNOWN)
        file.flush()
        for level in LEVELS:
            try:
                recompress(Expansion(kind, len(_KNOWN), bytes([level])), file, digest.update)
            except Untrusted:
                return False
    return digest.hexdigest() == known


def expansion_of(source: IO[bytes], scratch: IO[bytes], *, at_most: int) -> Expansion | None:
    """How a gzip file comes again from what it expands to, which is left in ``scratch``.

    None when it is none, or no compressor here makes these bytes. zlib is asked first: a node
    has it in its process, and starts one for each file that only gzip makes.
    """
    start = source.read(4200)
    length = header_length(start)
    if not length:
        return None
    source.seek(0)
    digest = hashlib.sha256(source.read()).digest()
    source.seek(0)
    try:
        size = 0
        for piece in expanded(source, at_most=at_most):
            scratch.write(piece)
            size += len(piece)
    except Untrusted:
        return None
    scratch.flush()
    for kind, level in ((ZLIB, 9), (GNU_GZIP, 9), (ZLIB, 6), (GNU_GZIP, 6)):
        found = Expansion(kind, size, bytes([level]) + start[:length])
        again = hashlib.sha256()
        recompress(found, scratch, again.update)
        if again.digest() == digest:
            return found
    return None
