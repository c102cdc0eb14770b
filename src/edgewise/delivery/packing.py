"""Packed objects: zstd, unpacked in bounded memory and checked against their name.

Whoever sends packed bytes is not trusted. Three bounds hold whatever arrives: the packed
length (``packed_bound``), the unpacked length (the signed size where there is one), and the
decompressor's window (``WINDOW``), which is what its memory is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from io import BytesIO
from typing import IO, Final, cast

import zstandard

from edgewise.model.errors import Untrusted

LEVEL: Final = 9
"""3 costs a third of the CPU and sends about a tenth more; a node's link is the dearer one."""
WINDOW: Final = 8 << 20
"""Bytes of history a packed object may need; our own packer needs 4 MiB at level 9."""
CHUNK: Final = 256 << 10
"""Bytes unpacked at a time."""


def packed_bound(size: int) -> int:
    """The most bytes that an object of ``size`` bytes can be when packed (zstd's own bound)."""
    return size + (size >> 7) + 1024


def pack(data: bytes) -> bytes:
    """A small object, packed."""
    return zstandard.ZstdCompressor(level=LEVEL).compress(data)


def unpacked(packed: IO[bytes], sha256: str, *, at_most: int) -> Iterator[bytes]:
    """The content in chunks of at most ``CHUNK`` bytes.

    The last chunk has been yielded before the digest is known: use nothing until the
    iterator has ended by itself. Raises Untrusted for bytes that are no zstd, unpack to
    more than ``at_most`` bytes, go on after the object, or do not match ``sha256``.
    """
    unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    digest = hashlib.sha256()
    seen = 0
    try:
        # read_across_frames: what follows the first frame must be part of the object too.
        with unpacker.stream_reader(packed, read_across_frames=True, closefd=False) as reader:
            while chunk := reader.read(min(CHUNK, at_most + 1 - seen)):
                seen += len(chunk)
                if seen > at_most:
                    raise Untrusted(
                        f"object {sha256[:12]} unpacks to more than the {at_most} bytes it may have"
                    )
                digest.update(chunk)
                yield chunk
    except zstandard.ZstdError as error:
        raise Untrusted(f"object {sha256[:12]} is not sound zstd: {error}") from error
    if digest.hexdigest() != sha256:
        raise Untrusted(f"object {sha256[:12]} has other content than its name says")


def unpack(packed: bytes, sha256: str, *, at_most: int) -> bytes:
    """The whole content of a small object. Raises Untrusted as ``unpacked`` does."""
    return b"".join(unpacked(BytesIO(packed), sha256, at_most=at_most))


class Unpacking:
    """Checks a packed object while it arrives. ``feed`` it in order, then ``end``.

    Nothing of it may be called whole before ``end`` has returned. Blocks for the time that
    unpacking takes; the unpacked bytes are not kept.
    """

    def __init__(self, sha256: str, *, at_most: int) -> None:
        self._sha256 = sha256
        self._left = at_most
        self._at_most = at_most
        self._digest = hashlib.sha256()
        unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW)
        self._writer = unpacker.stream_writer(
            cast("IO[bytes]", self), write_size=CHUNK, closefd=False
        )

    def write(self, data: bytes) -> int:
        """What the unpacker calls."""
        self._left -= len(data)
        if self._left < 0:
            raise Untrusted(
                f"object {self._sha256[:12]} unpacks to more than the {self._at_most} bytes"
                " it may have"
            )
        self._digest.update(data)
        return len(data)

    def feed(self, packed: bytes) -> None:
        """The next packed bytes. Raises Untrusted for what cannot be right any more."""
        try:
            self._writer.write(packed)
        except zstandard.ZstdError as error:
            raise Untrusted(f"object {self._sha256[:12]} is not sound zstd: {error}") from error

    def end(self) -> None:
        """Raises Untrusted unless all that came is the object that its name says."""
        if self._digest.hexdigest() != self._sha256:
            raise Untrusted(f"object {self._sha256[:12]} has other content than its name says")
