"""Raw disk images: cut into blocks for a build folder, and put onto a disk again.

A tree of the shape ``disk`` holds ``disk.json`` (``DiskImage``) and ``blocks/<number>`` of 1 MiB,
eight digits; blocks of zeros are left out. Writing is repeatable: blocks that are right already
are left alone, so a write that was cut off goes on where it was.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

import msgspec

from edgewise.backends.files.builds import BuildFolder
from edgewise.delivery.images import with_directories
from edgewise.delivery.trees import make_tree
from edgewise.model.errors import BadUsage, NeedsPerson, Untrusted
from edgewise.protocol import limits
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.content import Entry, Tree, TreeRef
from edgewise.runtime.durable import disk_error

DOCUMENT: Final = "disk.json"
BLOCK: Final = 1 << 20
BLOCKS: Final = limits.ENTRIES - 2
"""Blocks of one image: 488 GiB."""
_ZEROS: Final = bytes(BLOCK)


class DiskImage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``disk.json``."""

    size: int
    """Bytes of the whole disk image."""
    sha256: str
    """Of the whole disk image."""
    block: Literal[1048576] = 1048576
    schema: Literal[1] = 1

    def __post_init__(self) -> None:
        if not 0 < self.size <= BLOCKS * BLOCK:
            raise ValueError(f"a disk image of {self.size} bytes cannot be kept")


def import_disk(folder: BuildFolder, file: Path) -> TreeRef:
    """The tree of a disk image. Raises BadUsage for what cannot be read, or is too large."""
    entries: list[Entry] = []
    whole, size = hashlib.sha256(), 0
    try:
        with file.open("rb") as source:
            for number in range(BLOCKS + 1):
                block = source.read(BLOCK)
                if not block:
                    break
                whole.update(block)
                size += len(block)
                if block != _ZEROS[: len(block)]:
                    sha256, length = folder.keep(BytesIO(block))
                    entries.append(Entry(_path(number), "file", 0o644, length, sha256))
    except OSError as error:
        raise BadUsage(f"{file} cannot be read: {error.strerror}") from error
    try:
        document = encode(DiskImage(size, whole.hexdigest()))
    except ValueError as error:
        raise BadUsage(f"{file}: {error}") from error
    sha256, length = folder.keep(BytesIO(document))
    entries.append(Entry(DOCUMENT, "file", 0o644, length, sha256))
    return folder.add_manifest(make_tree(with_directories(entries)))


def blocks_of(tree: Tree, image: DiskImage) -> dict[int, Entry]:
    """Number to entry, of the blocks that are not all zeros. Raises Untrusted for a tree that is
    no disk image."""
    found: dict[int, Entry] = {}
    last = (image.size - 1) // BLOCK
    for entry in tree.entries:
        if entry.kind != "file" or entry.path == DOCUMENT:
            continue
        digits = entry.path.removeprefix("blocks/")
        if not (digits.isascii() and digits.isdigit()) or _path(int(digits)) != entry.path:
            raise Untrusted(f"a disk image has no file {entry.path[:100]!r}")
        number = int(digits)
        if number > last or entry.size != min(BLOCK, image.size - number * BLOCK):
            raise Untrusted(f"block {number} of a disk image is of a wrong size or place")
        found[number] = entry
    return found


def read_document(data: bytes) -> DiskImage:
    """``disk.json``. Raises Untrusted."""
    return decode(data, DiskImage, what=DOCUMENT, at_most=4096)


class Disk:
    """A file or block device to write to. A device that is in use is refused by the kernel."""

    def __init__(self, place: Path, size: int, *, dry_run: bool) -> None:
        """Raises BadUsage for what is neither, or too small; NeedsPerson when it is in use."""
        self.place = place
        self._size = size
        self.is_device = place.exists() and stat.S_ISBLK(place.stat().st_mode)
        if place.exists() and not (self.is_device or place.is_file()):
            raise BadUsage(f"{place} is neither a file nor a block device")
        flags = os.O_RDONLY if dry_run else os.O_RDWR
        if self.is_device:
            flags |= os.O_EXCL  # with block devices: fail where it, or a part of it, is in use
        elif not dry_run:
            flags |= os.O_CREAT
        try:
            missing = dry_run and not place.exists()
            self._fd = os.open(os.devnull if missing else place, flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise NeedsPerson(
                    f"{place} is in use: it, or a part of it, is mounted",
                    hint=f"umount it first; `lsblk {place}` shows what",
                ) from error
            raise NeedsPerson(f"{place} cannot be opened: {error.strerror}") from error
        if self.is_device and (there := os.lseek(self._fd, 0, os.SEEK_END)) < size:
            os.close(self._fd)
            raise BadUsage(f"{place} has {there} bytes, and the image {size}")

    def __enter__(self) -> Disk:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def lacks(self, blocks: Mapping[int, Entry]) -> Iterator[int]:
        """Numbers of the blocks that are not there as the image has them, zeros included."""
        for number in range((self._size - 1) // BLOCK + 1):
            length = min(BLOCK, self._size - number * BLOCK)
            there = os.pread(self._fd, length, number * BLOCK)
            entry = blocks.get(number)
            if entry is None:
                right = there == _ZEROS[:length]
            else:
                right = hashlib.sha256(there).hexdigest() == entry.sha256
            if not right:
                yield number

    def write(self, number: int, block: bytes) -> None:
        """Raises NeedsPerson when the disk takes no more."""
        try:
            done = 0
            while done < len(block):
                done += os.pwrite(self._fd, block[done:], number * BLOCK + done)
        except OSError as error:
            raise disk_error(error, self.place) from error

    def clear(self, number: int) -> None:
        """Zeros."""
        self.write(number, _ZEROS[: min(BLOCK, self._size - number * BLOCK)])

    def finish(self, sha256: str) -> None:
        """Sync, and read everything again. Raises NeedsPerson when it is not what was written."""
        try:
            if not self.is_device:
                os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
            # What is read next shall come from the disk, not from memory.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise disk_error(error, self.place) from error
        digest = hashlib.sha256()
        for at in range(0, self._size, BLOCK):
            digest.update(os.pread(self._fd, min(BLOCK, self._size - at), at))
        if digest.hexdigest() != sha256:
            raise NeedsPerson(
                f"{self.place} gives back other bytes than were written",
                hint="the disk or card is worn out, or something else writes to it",
            )


def _path(number: int) -> str:
    return f"blocks/{number:08d}"
