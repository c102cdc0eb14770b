"""Gzip files and kernel images as what they expand to, and back to the same bytes.

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
from typing import IO, Final, Literal

from edgewise.delivery.delta import Expansion
from edgewise.model.errors import Untrusted

ZLIB: Final = 1
GNU_GZIP: Final = 2
KERNEL_LZ4: Final = 3
"""A Linux image for x86 whose payload is LZ4 in its legacy frame."""
LEVELS: Final = (9, 6)
"""``gzip -9n`` makes most files of a distribution; 6 is everybody's default."""
_MAGIC = b"\x1f\x8b\x08"
_NAME = 8
_PIECE = 256 << 10
_TRAILER = struct.Struct("<II")
_KNOWN: Final = b"".join(b"%d of many, so that levels differ; " % (n * n) for n in range(9000))
_KNOWN_GZIP: Final = "ace266b76161b15a4d17b55d2a7b3c732bc06def7e4a2952f96b89496c0cfee7"
_KNOWN_LZ4: Final = "4b1b75fe3689f79a92e0ab5bcfcce8f92b3e0a024811ab05777930960cb8aca8"
_KNOWN_ZLIB: Final = "85db419c73a5ae9d804753ea5d28c1b60adc76f31fd032710323bd33ea69a4e3"
_LZ4_MAGIC: Final = bytes.fromhex("02214c18")
_LZ4_BLOCK: Final = 8 << 20
"""What a block of the legacy frame holds (LZ4 frame format 1.6, "Legacy frame")."""
_LZ4_LEVEL: Final = 9
"""As Linux' scripts/Makefile.lib calls it."""
_KERNEL: Final = struct.Struct("<BQQ")
"""Level, and bytes before and behind the payload's blocks."""
_BOOT: Final = 0x250
"""Bytes of a kernel image up to the end of what its boot header says of the payload."""

Form = Literal["gzip", "kernel"]


def form_of(start: bytes) -> Form | None:
    """What a file that starts so (4,200 bytes) can be expanded as; None for nothing."""
    if header_length(start):
        return "gzip"
    return "kernel" if _payload(start) is not None else None


def _payload(start: bytes) -> tuple[int, int] | None:
    """Where the blocks of an LZ4 payload are: (first byte, end). Linux, boot.rst 2.08."""
    if len(start) < _BOOT or start[0x202:0x206] != b"HdrS":
        return None
    version, offset, length = (
        int(struct.unpack_from(form, start, at)[0])
        for form, at in (("<H", 0x206), ("<I", 0x248), ("<I", 0x24C))
    )
    begin = ((start[0x1F1] or 4) + 1) * 512 + offset
    if version < 0x0208 or length < 12:
        return None
    # The last four bytes are the size that it unpacks to.
    return begin, begin + length - 4


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
    """What a file expands to, in pieces: a gzip file of one member, what it holds; a kernel
    image, what is before its payload, the payload unpacked, and what is behind.

    Raises Untrusted when it is neither, goes on after its end, or is larger than ``at_most``.
    """
    start = source.read(_BOOT)
    source.seek(0)
    found = _payload(start)
    total = 0
    for piece in _gunzipped(source) if found is None else _unpacked(source, *found):
        total += len(piece)
        if total > at_most:
            raise Untrusted(f"a packed file expands to more than {at_most} bytes")
        yield piece


def _unpacked(source: IO[bytes], begin: int, end: int) -> Iterator[bytes]:
    """A kernel image with its payload unpacked."""
    try:
        import lz4.block
    except ImportError as error:
        raise Untrusted("LZ4 is not installed here") from error

    yield _exactly(source, begin)
    if _exactly(source, 4) != _LZ4_MAGIC:
        raise Untrusted("the payload of a kernel image is not LZ4")
    at = begin + 4
    while at < end:
        (size,) = struct.unpack("<I", _exactly(source, 4))
        if not 0 < size <= end - at - 4 or size > 2 * _LZ4_BLOCK:
            raise Untrusted("the payload of a kernel image has a block that cannot be")
        try:
            data: bytes = lz4.block.decompress(_exactly(source, size), _LZ4_BLOCK)
        except lz4.block.LZ4BlockError as error:
            raise Untrusted(f"the payload of a kernel image is not sound: {error}") from error
        at += 4 + size
        if at < end and len(data) != _LZ4_BLOCK:
            raise Untrusted("the payload of a kernel image has a short block before its end")
        yield data
    while rest := source.read(_PIECE):
        yield rest


def _exactly(source: IO[bytes], size: int) -> bytes:
    if size > 2 * _LZ4_BLOCK:
        raise Untrusted("a kernel image says that its payload begins too far in")
    data = source.read(size)
    if len(data) != size:
        raise Untrusted("a kernel image ends early")
    return data


def _gunzipped(source: IO[bytes]) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(31)
    try:
        while data := source.read(_PIECE):
            if unpacker.eof:
                raise Untrusted("a gzip file goes on after its end")
            while data:
                piece = unpacker.decompress(data, _PIECE)
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
    if expansion.kind == KERNEL_LZ4:
        _pack_kernel(expansion, source, sink)
        return
    level, head = expansion.detail[:1], expansion.detail[1:]
    if expansion.kind not in (ZLIB, GNU_GZIP) or not level or not 1 <= level[0] <= 9:
        raise Untrusted(f"expansion {expansion.kind} of a delta is not known here")
    sink(head)
    if expansion.kind == ZLIB:
        _deflate(level[0], source, sink)
    else:
        _gzip(level[0], source, sink)


def recompressed(expansion: Expansion, data: bytes) -> bytes:
    """``recompress`` from and to memory, for what is no larger than a part of a delta."""
    packed = bytearray()
    with os.fdopen(os.memfd_create("edgewise-expanded"), "w+b") as source:
        source.write(data)
        source.flush()
        recompress(expansion, source, packed.extend)
    return bytes(packed)


def _deflate(level: int, source: IO[bytes], sink: Callable[[bytes], object]) -> None:
    packer = zlib.compressobj(level, zlib.DEFLATED, -15, 8)
    check = length = 0
    while data := os.pread(source.fileno(), _PIECE, length):
        check = zlib.crc32(data, check)
        length += len(data)
        sink(packer.compress(data))
    sink(packer.flush() + _TRAILER.pack(check, length & 0xFFFFFFFF))


def _pack_kernel(expansion: Expansion, source: IO[bytes], sink: Callable[[bytes], object]) -> None:
    if len(expansion.detail) != _KERNEL.size:
        raise Untrusted("an expansion of a kernel image says something else than its three numbers")
    level, before, behind = _KERNEL.unpack(expansion.detail)
    end = expansion.size - behind
    if not 1 <= level <= 12 or not 0 <= before <= end:
        raise Untrusted("an expansion of a kernel image has numbers that cannot be")
    try:
        import lz4.block
    except ImportError as error:
        raise Untrusted("LZ4 is not installed here") from error
    fd = source.fileno()
    _pass_on(fd, 0, before, sink)
    sink(_LZ4_MAGIC)
    for at in range(before, end, _LZ4_BLOCK):
        data = os.pread(fd, min(_LZ4_BLOCK, end - at), at)
        packed: bytes = lz4.block.compress(
            data, mode="high_compression", compression=level, store_size=False
        )
        del data
        sink(struct.pack("<I", len(packed)))
        sink(packed)
    _pass_on(fd, end, expansion.size, sink)


def _pass_on(fd: int, at: int, end: int, sink: Callable[[bytes], object]) -> None:
    while at < end and (data := os.pread(fd, min(_PIECE, end - at), at)):
        sink(data)
        at += len(data)


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

    known = {ZLIB: _KNOWN_ZLIB, GNU_GZIP: _KNOWN_GZIP, KERNEL_LZ4: _KNOWN_LZ4}.get(kind)
    if known is None or (kind == GNU_GZIP and shutil.which("gzip") is None):
        return False
    digest = hashlib.sha256()
    with tempfile.TemporaryFile() as file:
        file.write(_KNOWN)
        file.flush()
        levels = [bytes([level]) for level in LEVELS]
        for detail in [_KERNEL.pack(_LZ4_LEVEL, 0, 0)] if kind == KERNEL_LZ4 else levels:
            try:
                recompress(Expansion(kind, len(_KNOWN), detail), file, digest.update)
            except Untrusted:
                return False
    return digest.hexdigest() == known


def expansion_of(source: IO[bytes], scratch: IO[bytes], *, at_most: int) -> Expansion | None:
    """How a packed file comes again from what it expands to, which is left in ``scratch``.

    None when it is none, or no compressor here makes these bytes. zlib is asked first: a node
    has it in its process, and starts one for each file that only gzip makes.
    """
    start = source.read(4200)
    if form_of(start) is None:
        return None
    source.seek(0)
    there, whole = hashlib.sha256(), 0
    while data := source.read(_PIECE):
        there.update(data)
        whole += len(data)
    source.seek(0)
    try:
        size = 0
        for piece in expanded(source, at_most=at_most):
            scratch.write(piece)
            size += len(piece)
    except Untrusted:
        return None
    scratch.flush()
    for kind, detail in _ways(start, whole):
        found = Expansion(kind, size, detail)
        again = hashlib.sha256()
        recompress(found, scratch, again.update)
        if again.digest() == there.digest():
            return found
    return None


def _ways(start: bytes, whole: int) -> Iterator[tuple[int, bytes]]:
    payload = _payload(start)
    if payload is not None:
        yield KERNEL_LZ4, _KERNEL.pack(_LZ4_LEVEL, payload[0], whole - payload[1])
        return
    head = start[: header_length(start)]
    for kind, level in ((ZLIB, 9), (GNU_GZIP, 9), (ZLIB, 6), (GNU_GZIP, 6)):
        yield kind, bytes([level]) + head
