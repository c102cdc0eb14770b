"""Marks on kept files: this content matched its digest, and was on the disk after that.

The mark is the nanoseconds of a file's modification time, and comes from the digest. Whoever
writes to the file sets that time, so the mark goes; a file system without nanoseconds never
has it. A file is taken as it is where mark, size, mode, owner and xattrs are as they should be
and nobody but the node itself may write to it; every other is hashed (ADR 0016). Standard
library only.

Laws: a file is sealed only after its content matched and a sync of the file system succeeded,
so no power cut leaves a seal on something else; one that was reachable by others meanwhile
bears ``mark`` from before it was read, and is sealed only if it still does.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection
from contextlib import suppress
from functools import lru_cache
from typing import Final, NamedTuple

Xattrs = tuple[tuple[str, bytes], ...]

_KEY: Final = re.compile(r"([0-7]{1,4})(?:\.(\d{1,10})\.(\d{1,10})(\.[0-9a-f]{32})?s?)?")
"""``Attributes.key``: mode, user, group, a digest of the xattrs."""
_GIVES_RIGHTS: Final = frozenset({"security.capability", "system.posix_acl_access"})
"""Xattrs that a kept file must not have unless its name says so."""
_SECOND: Final = 1_000_000_000
_OTHERS_WRITE: Final = 0o022


class Wanted(NamedTuple):
    """What a kept file's name says of its attributes."""

    mode: int
    uid: int | None
    gid: int | None
    xattrs: bool


@lru_cache(1024)
def attributes_of(key: str) -> Wanted | None:
    """Of an ``Attributes.key``; None when it is none."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    mode, uid, gid, hashed = match.groups()
    return Wanted(
        int(mode, 8), None if uid is None else int(uid), None if gid is None else int(gid),
        bool(hashed),
    )  # fmt: skip


def _mark(sha256: str, *, sealed: bool) -> int:
    """Nanoseconds: 28 bits of the digest; never 0, which is what coarse clocks give."""
    return 2 * int(sha256[:7], 16) + (2 if sealed else 1)


def is_sealed(
    path: str, sha256: str, size: int, want: Wanted, xattrs: Xattrs | None = None
) -> bool:
    """Whether a kept file needs no hashing. Raises FileNotFoundError."""
    about = os.lstat(path)
    return (
        about.st_mtime_ns % _SECOND == _mark(sha256, sealed=True)
        and about.st_size == size
        and _only_ours(about)
        and _as_wanted(about, want)
        and _has_xattrs(path, want, xattrs)
    )


def has_attributes(fd: int, want: Wanted, xattrs: Xattrs | None) -> bool:
    """Whether an open file is a regular one with these, and with nothing that gives rights."""
    return _as_wanted(os.fstat(fd), want) and _has_xattrs(fd, want, xattrs)


def mark(fd: int, sha256: str) -> bool:
    """Mark a file that is about to be read; whether it may be sealed later."""
    about = os.fstat(fd)
    return _only_ours(about) and _set(fd, about, _mark(sha256, sealed=False))


def seal(path: str, sha256: str, *, shared: bool) -> None:
    """After the sync. ``shared``: others could reach it since it was marked."""
    with suppress(OSError):
        about = os.lstat(path)
        touched = shared and about.st_mtime_ns % _SECOND != _mark(sha256, sealed=False)
        if _only_ours(about) and not touched:
            _set(path, about, _mark(sha256, sealed=True))


def break_seal(fd: int, sha256: str) -> None:
    """Have a file hashed before it is used again. Raises OSError."""
    about = os.fstat(fd)
    if about.st_mtime_ns % _SECOND == _mark(sha256, sealed=True):
        os.utime(fd, ns=(about.st_atime_ns, about.st_mtime_ns // _SECOND * _SECOND))


def bears_seal(fd: int, sha256: str) -> bool:
    """Whether an open file bears the mark of a sealed one."""
    return os.fstat(fd).st_mtime_ns % _SECOND == _mark(sha256, sealed=True)


def _set(target: int | str, about: os.stat_result, nanoseconds: int) -> bool:
    """Whether it could be: only a file's owner may."""
    when = about.st_mtime_ns // _SECOND * _SECOND + nanoseconds
    try:
        if isinstance(target, int):
            os.utime(target, ns=(about.st_atime_ns, when))
        else:
            os.utime(target, ns=(about.st_atime_ns, when), follow_symlinks=False)
    except OSError:
        return False
    return True


def _only_ours(about: os.stat_result) -> bool:
    """Whoever may write to a file may also set its time back."""
    return not about.st_mode & _OTHERS_WRITE and about.st_uid in (0, os.geteuid())


def _as_wanted(about: os.stat_result, want: Wanted) -> bool:
    return (
        stat.S_ISREG(about.st_mode)
        and about.st_mode & 0o7777 == want.mode
        and (want.uid is None or (about.st_uid, about.st_gid) == (want.uid, want.gid))
    )


def _has_xattrs(target: int | str, want: Wanted, xattrs: Xattrs | None) -> bool:
    """Others may be there: a kernel labels files of its own accord (SELinux, IMA)."""
    names = _names(target)
    if xattrs is None:
        return want.xattrs or _GIVES_RIGHTS.isdisjoint(names)
    if not names:
        return not xattrs
    return all(name in names and _value(target, name) == value for name, value in xattrs) and (
        _GIVES_RIGHTS.isdisjoint(set(names) - {name for name, _ in xattrs})
    )


def _names(target: int | str) -> Collection[str]:
    try:
        return os.listxattr(target, follow_symlinks=isinstance(target, int))
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return ()


def _value(target: int | str, name: str) -> bytes:
    return os.getxattr(target, name, follow_symlinks=isinstance(target, int))
