"""A relay's content on its disk: what is whole, what is on its way, deltas with holes.

Whole files lie below the content root under the names by which they are served. What is on
its way lies in ``incoming/`` beside it, under its own name too, so that a restart goes on
where it was. A delta lies in its place from its first part on: each part is verified by
itself, and what is not here yet is a hole in the file.

Every call blocks for a file operation. Writing raises NeedsPerson when the disk is full.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edgewise.delivery.recency import KeptFile
from edgewise.model.errors import NeedsPerson, TryLater
from edgewise.runtime.durable import disk_error, sync_directory

KINDS: Final = ("objects", "deltas")
CHUNK: Final = 64 << 10
"""Bytes read and handed on at a time. A node has eight downloads at once and each may wait in
its connection's buffer, so this times 1,600 is what 200 slow nodes cost; and reading so little
from the page cache is quicker than a thread."""
STALE: Final = 14 * 86400.0
"""Seconds after which a download that nobody took up again is given up."""


class CacheFiles:
    """``root`` is the content root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._incoming = root / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)
        for kind in KINDS:
            (root / kind).mkdir(exist_ok=True)

    def kept(self) -> Iterator[KeptFile]:
        """Everything whole, and deltas as far as they are here."""
        for kind in KINDS:
            for folder in os.scandir(self.root / kind):
                if not folder.is_dir(follow_symlinks=False) or folder.name.startswith("."):
                    continue
                for found in os.scandir(folder.path):
                    about = found.stat(follow_symlinks=False)
                    path = f"{kind}/{folder.name}/{found.name}"
                    yield KeptFile(path, disk_size(about), about.st_mtime)

    def clear_stale(self, now: float) -> None:
        """Forget downloads that were begun and left long ago. ``now`` in epoch seconds."""
        for found in os.scandir(self._incoming):
            if now - found.stat(follow_symlinks=False).st_mtime > STALE:
                os.unlink(found.path)

    def free(self) -> int:
        """Bytes that may still be written."""
        about = os.statvfs(self.root)
        return about.f_bavail * about.f_frsize

    def exists(self, path: str) -> bool:
        """Whether there is a file in its place: whole, or some parts of a delta."""
        return (self.root / path).is_file()

    def size(self, path: str) -> int | None:
        """Bytes of a file in its place."""
        try:
            return (self.root / path).stat().st_size
        except OSError:
            return None

    def open(self, path: str) -> int | None:
        """A descriptor for reading and writing; None when it is not here. The caller closes
        it; it stays good when the file is forgotten meanwhile."""
        try:
            return os.open(self.root / path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None

    def create(self, path: str) -> int:
        """A new, empty file in its place (a delta)."""
        final = self.root / path
        try:
            final.parent.mkdir(exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            return os.open(final, flags, 0o644)
        except OSError as error:
            raise disk_error(error, self.root) from error

    def begin(self, path: str) -> int:
        """The unfinished file of ``path``, with what came before a restart."""
        try:
            return os.open(self._waiting(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise disk_error(error, self.root) from error

    def begun_file(self, path: str) -> int | None:
        """What there is of the unfinished file, open for reading; None for nothing."""
        try:
            return os.open(self._waiting(path), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None

    def put(self, path: str, data: bytes) -> None:
        """A whole, small file at once."""
        fd = self.begin(path)
        try:
            self.write(fd, data, 0)
            os.ftruncate(fd, len(data))
            self.finish(path, fd)
        except NeedsPerson:
            self.drop(path)
            raise
        finally:
            os.close(fd)

    def begun(self, path: str) -> bytes:
        """What came of a small file or part, and forget it."""
        waiting = self._waiting(path)
        try:
            data = waiting.read_bytes()
        except FileNotFoundError:
            return b""
        waiting.unlink(missing_ok=True)
        return data

    def save(self, path: str, data: bytes) -> None:
        """What came of a small file or part, for the next time. A full disk is no error."""
        waiting = self._waiting(path)
        try:
            waiting.write_bytes(data)
        except OSError:
            waiting.unlink(missing_ok=True)

    def write(self, fd: int, data: bytes, at: int) -> None:
        """All of ``data`` at an offset."""
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(fd, view, at)
                view, at = view[written:], at + written
        except OSError as error:
            raise disk_error(error, self.root) from error

    def finish(self, path: str, fd: int) -> None:
        """Sync what ``begin`` opened, then give it its name."""
        final = self.root / path
        try:
            os.fsync(fd)
            if not final.parent.exists():
                final.parent.mkdir(exist_ok=True)
                sync_directory(final.parent.parent)
            os.rename(self._waiting(path), final)
            sync_directory(final.parent)
        except OSError as error:
            raise disk_error(error, self.root) from error

    def mark(self, path: str, now: float) -> None:
        """Remember on the disk that it was used; the disk may have other worries."""
        try:
            os.utime(self.root / path, (now, now))
        except OSError:
            return

    def forget(self, path: str) -> None:
        """Idempotent."""
        (self.root / path).unlink(missing_ok=True)

    def drop(self, path: str) -> None:
        """Forget what is on its way. Idempotent."""
        self._waiting(path).unlink(missing_ok=True)

    def _waiting(self, path: str) -> Path:
        return self._incoming / path.replace("/", "-")


def disk_size(about: os.stat_result) -> int:
    """Bytes of a file without its holes."""
    return min(about.st_size, about.st_blocks * 512)


def kept_pieces(fd: int, start: int, end: int, path: str) -> Iterator[bytes]:
    """A range of an open file, ``CHUNK`` by ``CHUNK``. Raises TryLater when the file ends
    before it."""
    while start < end:
        piece = os.pread(fd, min(CHUNK, end - start), start)
        if not piece:
            raise TryLater(f"{path} is shorter than it was")
        start += len(piece)
        yield piece


def filled(fd: int) -> Iterator[tuple[int, int]]:
    """The ranges of a file that are no holes, as the file system sees it."""
    at = 0
    while True:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at
