"""Reads what a node keeps, bit by bit, so that a sealed file that rotted is found (ADR 0016).

Laws: nothing is deleted or written here. A damaged file loses its seal, so that the next fetch
hashes it, drops it and brings it anew. Standard library only: the resident agent does this.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from edgewise.backends.files import seals
from edgewise.model.names import is_digest

PIECE: Final = 256 << 10
"""Bytes read at once: 3 ms of a slow core, 10 ms of a slow card."""
_LEAST: Final = 4096
"""What looking at a file counts at least."""


class Step(NamedTuple):
    """A little of the way."""

    bytes: int
    """Read; at least a block for a file that was only looked at."""
    damaged: str = ""
    """An object that is not what its name says, and has lost its seal."""


def scrub(root: Path, first: int = 0) -> Iterator[Step]:
    """Once round all kept files of the node at ``root``, from the folder ``first`` (0 to 255).

    Each step reads at most ``PIECE`` bytes. What has no seal is passed over: it is hashed
    before it is used. What goes away meanwhile is, too.
    """
    for number in range(256):
        short = f"{(first + number) % 256:02x}"
        folder = root / "store" / "objects" / short
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            continue
        for name in names:
            sha256 = short + name.partition("-")[0]
            if is_digest(sha256):
                yield from _read(folder / name, sha256)


def _read(path: Path, sha256: str) -> Iterator[Step]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # collected meanwhile, or no file: not ours to judge
        return
    try:
        if not seals.bears_seal(fd, sha256):
            yield Step(_LEAST)
            return
        digest, at = hashlib.sha256(), 0
        while data := _piece(fd, at):
            digest.update(data)
            at += len(data)
            yield Step(max(_LEAST, len(data)))
        if digest.hexdigest() != sha256 and seals.bears_seal(fd, sha256):
            with suppress(OSError):  # of a read-only disk: it is found again, and said again
                seals.break_seal(fd, sha256)
            yield Step(_LEAST, sha256)
    finally:
        os.close(fd)


def _piece(fd: int, at: int) -> bytes:
    """From the disk, not from memory, as far as nobody has changed or mapped it."""
    os.posix_fadvise(fd, at, PIECE, os.POSIX_FADV_DONTNEED)
    try:
        return os.pread(fd, PIECE, at)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""  # it ends here, so its digest is wrong
