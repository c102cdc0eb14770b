"""Files that appear whole: written under a name of their own, then renamed.

The resident agent writes no objects, so what lays out is loaded when the first one comes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from edgewise.model.errors import NeedsPerson
from edgewise.protocol.content import Attributes

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class NewFiles:
    """Files that wait in a folder. Strings, not paths: an update makes many thousand."""

    def __init__(self, waiting: Path) -> None:
        self._waiting = str(waiting)
        self._count = 0

    def write(self, final: str, content: Iterable[bytes], attributes: Attributes | None) -> None:
        """Make the file ``final``, and its folder where there is none; without ``attributes``
        it is private. Nothing stays when anything raises.

        Raises OSError, what ``content`` raises, and NeedsPerson when this process may not give
        files such attributes.
        """
        fd, waiting = self._open()
        try:
            try:
                _fill(fd, content, attributes)
            finally:
                os.close(fd)
            try:
                os.rename(waiting, final)
            except FileNotFoundError:
                os.mkdir(os.path.dirname(final))
                os.rename(waiting, final)
        except BaseException:
            with suppress(OSError):
                os.unlink(waiting)
            raise

    def _open(self) -> tuple[int, str]:
        while True:
            # What a process with our number left behind is passed over.
            self._count += 1
            name = f"{self._waiting}/.{os.getpid():x}-{self._count:x}"
            try:
                return os.open(name, _NEW, 0o600), name
            except FileExistsError:
                continue


def _fill(fd: int, content: Iterable[bytes], attributes: Attributes | None) -> None:
    if attributes is None:
        for chunk in content:
            view = memoryview(chunk)
            while view:
                view = view[os.write(fd, view) :]
        return
    from edgewise.backends.files import layout

    layout.fill(fd, content, sparse=attributes.sparse)
    try:
        layout.give(fd, attributes)
    except OSError as error:
        raise _not_allowed(error, attributes) from error


def _not_allowed(error: OSError, attributes: Attributes) -> Exception:
    if error.errno not in (errno.EPERM, errno.EINVAL, errno.ENOTSUP) or attributes.uid is None:
        return error
    names = ", ".join(name for name, _ in attributes.xattrs) or "no xattrs"
    return NeedsPerson(
        f"a file cannot be given user {attributes.uid}, group {attributes.gid}, mode"
        f" {attributes.mode:04o} and {names} here: {error.strerror}",
        hint="a node lays system trees out as root, on a file system that has xattrs",
    )
