"""Writing so that a power cut leaves the old bytes or the new ones. Standard library only."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from edgewise.model.errors import NeedsPerson


def sync_directory(path: Path) -> None:
    """Make renames in ``path`` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Temporary name, fsync, rename, fsync of the directory. Raises OSError."""
    waiting = path.with_name(f".{path.name}.new")
    fd = os.open(waiting, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(waiting, path)
    except OSError:
        waiting.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_filesystem(path: Path) -> None:
    """Write out the file system that holds ``path``; raises OSError when that fails.

    syncfs(2) on a descriptor in the store itself, not on "/": they may be different file
    systems (ostree pull request 3504). One call is 40 times faster than an fsync a file
    (ostree pull request 49).
    """
    import ctypes  # kept out of the resident agent, which never calls this

    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "syncfs"):
            os.sync()
        elif libc.syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(fd)


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step, renameat2(2); False where the file system cannot."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE (linux/fs.h)
    done = libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), swap)
    return bool(done == 0)


def disk_error(error: OSError, where: Path) -> NeedsPerson:
    """What an OSError of a write means for a person."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NeedsPerson(
            f"the disk that holds {where} is full", hint="free space there; nothing was changed"
        )
    return NeedsPerson(
        f"writing below {where} failed: {error.strerror or error}",
        hint="check the disk and its permissions",
    )


def remove_tree(path: Path) -> None:
    """Remove a directory and all below it; links are removed, not followed. Raises OSError.

    Not shutil.rmtree: importing shutil brings three compression libraries into the agent.
    """
    for folder, _, _ in os.walk(path):
        os.chmod(folder, 0o700)
    for folder, folders, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(os.path.join(folder, name))
        for name in folders:
            below = os.path.join(folder, name)
            if os.path.islink(below):
                os.unlink(below)
            else:
                os.rmdir(below)
    os.rmdir(path)
