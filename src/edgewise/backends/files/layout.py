"""Lay a tree out in a directory, with everything that it carries, never through a symlink.

Laws: a directory is only ever entered by its name below an open descriptor, with O_NOFOLLOW;
nothing that exists is opened for writing or replaced; an owner is given before the mode (chown(2)
clears setuid and capabilities), the mode before xattrs; directories get theirs last, the deepest
first, so that read-only ones can be filled. Not loaded by the resident agent.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Self

import msgspec

from edgewise.protocol.content import Attributes, Entry, Top, Tree

Place = Callable[[Entry, int, str], None]
"""Puts a ``file``, with content and attributes, at a name below an open directory."""

HOLE: Final = 4096
"""Bytes of the smallest hole; the block size of nearly every file system."""
OPEN: Final = 32
"""Directories held open: more than trees are deep, as a rule."""
_ZEROS: Final = bytes(HOLE)
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TYPES: Final = {"char": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO}


def lay_out(top: Path, tree: Tree, place: Place) -> None:
    """Make the directory ``top``, which must not exist, and all of the tree in it.

    Raises OSError, also where somebody put something in the way meanwhile: FileExistsError,
    NotADirectoryError or ELOOP. What was made until then is left for the caller to remove.
    """
    os.mkdir(top, 0o700)
    opened = os.open(top, _DIRECTORY)
    try:
        with _Directories(opened) as inside:
            for entry in tree.entries:  # sorted: a folder was made before what is in it
                if entry.kind != "hard":
                    folder, _, name = entry.path.rpartition("/")
                    _make(entry, inside.enter(folder), name, place)
            for entry in tree.entries:
                if entry.kind == "hard":
                    _second_name(inside, entry)
            for entry in reversed(tree.entries):
                if entry.kind == "dir":
                    _finish_directory(inside.enter(entry.path), entry)
        if isinstance(tree.system, Top):
            said = tree.system
            give(opened, Attributes(said.mode, said.uid, said.gid, said.xattrs))
        else:
            os.fchmod(opened, 0o755)
    finally:
        os.close(opened)


def write_new(attributes: Attributes, content: Iterable[bytes], fd: int, name: str) -> None:
    """Make a file below an open directory. Raises OSError, FileExistsError where it exists."""
    made = os.open(name, _NEW, 0o600, dir_fd=fd)
    try:
        fill(made, content, sparse=attributes.sparse)
        give(made, attributes)
    finally:
        os.close(made)


def fill(fd: int, content: Iterable[bytes], *, sparse: bool) -> None:
    """Write ``content`` to an empty file; ``sparse`` leaves holes for its blocks of zeros."""
    at = 0
    for chunk in content:
        if not sparse:
            _write(fd, memoryview(chunk), at)
            at += len(chunk)
            continue
        for piece in _blocks(chunk, at):
            if piece != _ZEROS:
                _write(fd, memoryview(piece), at)
            at += len(piece)
    if sparse:
        os.ftruncate(fd, at)


def give(target: int | str, attributes: Attributes) -> None:
    """Owner, mode and xattrs of an open file, or of a path that follows no link.

    Raises OSError; PermissionError where the process may not (owners need root).
    """
    if attributes.uid is not None and attributes.gid is not None:
        os.chown(target, attributes.uid, attributes.gid)
    os.chmod(target, attributes.mode)
    for name, value in attributes.xattrs:
        os.setxattr(target, name, value)


def _write(fd: int, data: memoryview, at: int) -> None:
    while data:
        done = os.pwrite(fd, data, at)
        data, at = data[done:], at + done


def _blocks(chunk: bytes, at: int) -> Iterator[bytes]:
    """``chunk``, whose first byte is at offset ``at``, cut at multiples of HOLE."""
    start = 0
    while start < len(chunk):
        end = start + HOLE - (at + start) % HOLE
        yield bytes(chunk[start:end])
        start = end


class _Directories:
    """Directories below an open one, each entered by one name below another. Those of the last
    entries stay open, at most ``OPEN``: their neighbours come next."""

    def __init__(self, top: int) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()
        self._top = top

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open.values():
            os.close(fd)

    def enter(self, path: str) -> int:
        """Its descriptor, which stays open for the next ``OPEN`` - 1 calls. Raises OSError."""
        if not path:
            return self._top
        fd = self._open.get(path)
        if fd is not None:
            self._open.move_to_end(path)
            return fd
        above, names = path, list[str]()
        while above and above not in self._open:
            above, _, name = above.rpartition("/")
            names.append(name)
        held = fd = self._open[above] if above else self._top
        for name in reversed(names):
            try:
                deeper = os.open(name, _DIRECTORY, dir_fd=fd)
            finally:
                if fd != held:
                    os.close(fd)
            fd = deeper
        self._open[path] = fd
        if len(self._open) > OPEN:
            os.close(self._open.popitem(last=False)[1])
        return fd


def _make(entry: Entry, fd: int, name: str, place: Place) -> None:
    match entry.kind:
        case "file":
            place(entry, fd, name)
        case "dir":
            os.mkdir(name, 0o700, dir_fd=fd)
        case "link":
            os.symlink(entry.target, name, dir_fd=fd)
            if entry.uid is not msgspec.UNSET and entry.gid is not msgspec.UNSET:
                os.chown(name, entry.uid, entry.gid, dir_fd=fd, follow_symlinks=False)
            for key, value in entry.xattrs:
                # There is no setxattrat(2) before Linux 6.13; this names what fd is open on.
                os.setxattr(f"/proc/self/fd/{fd}/{name}", key, value, follow_symlinks=False)
        case _:
            _make_special(entry, fd, name)


def _make_special(entry: Entry, fd: int, name: str) -> None:
    kind = _TYPES[entry.kind]
    number = 0 if isinstance(entry.device, msgspec.UnsetType) else os.makedev(*entry.device)
    os.mknod(name, kind | 0o600, number, dir_fd=fd)
    # O_PATH: a device or pipe is named, not opened; chmod(2) through /proc follows to just it.
    made = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        about = os.fstat(made)
        if stat.S_IFMT(about.st_mode) != kind or about.st_rdev != number:
            raise FileExistsError(f"{entry.path} was replaced while the tree was laid out")
        give(f"/proc/self/fd/{made}", entry.attributes)
    finally:
        os.close(made)


def _second_name(inside: _Directories, entry: Entry) -> None:
    folder, _, name = entry.path.rpartition("/")
    first_folder, _, first = entry.target.rpartition("/")
    source, fd = inside.enter(first_folder), inside.enter(folder)
    os.link(first, name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)


def _finish_directory(fd: int, entry: Entry) -> None:
    if entry.attributes.uid is None:
        os.fchmod(fd, entry.mode & 0o1777)
    else:
        give(fd, entry.attributes)
