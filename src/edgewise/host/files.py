"""Files of configs and secrets: written whole or not at all, never through a foreign link.

A path is walked one directory descriptor at a time. A symbolic link on the way is followed
only when it belongs to root or to the agent, and, below a ``root`` prefix, never out of it;
so a program that may write somewhere cannot make the agent write elsewhere. What lies at
the path itself is replaced, never followed.
"""

from __future__ import annotations

import contextlib
import grp
import hashlib
import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgewise.heal.drift import Found, Remove, Wanted, Write, Written
from edgewise.model.errors import NeedsPerson
from edgewise.runtime.durable import disk_error, write_durably

_LINKS: Final = 40
"""As many links on one path as Linux follows (path_resolution(7))."""
_READ: Final = 16 << 20
"""A file larger than any config is not ours: it is not read to compare."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where documents' absolute paths lie: ``/``, or a prefix for many agents on a machine."""

    root: Path = Path("/")

    @contextmanager
    def parent(self, path: str, *, make: bool) -> Iterator[tuple[int, str]]:
        """The open directory that holds ``path``, and the last name.

        Raises NeedsPerson for a way that is not safe, FileNotFoundError when it is not there
        and ``make`` is False. Directories are made with mode 0755.
        """
        names = [n for n in path.split("/") if n not in ("", ".")]
        if not path.startswith("/") or not names or ".." in names:
            raise NeedsPerson(f"{path!r} is not an absolute path of a file")
        directory = self._walk(names[:-1], path, make=make)
        try:
            yield directory, names[-1]
        finally:
            os.close(directory)

    def _walk(self, names: list[str], path: str, *, make: bool) -> int:
        top = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack, waiting, links = [top], list(reversed(names)), 0
        try:
            while waiting:
                name = waiting.pop()
                if name == "..":
                    if len(stack) > 1:  # as in a chroot, the root is its own parent
                        os.close(stack.pop())
                    continue
                try:
                    stack.append(_open_directory(stack[-1], name, make=make))
                except NotADirectoryError:
                    links += 1
                    target = _trusted_link(stack[-1], name, path) if links <= _LINKS else None
                    if target is None:
                        raise NeedsPerson(
                            f"{path} leads through {name!r}, which is no directory",
                            hint="remove it, or choose another path",
                        ) from None
                    if target.startswith("/"):
                        while len(stack) > 1:
                            os.close(stack.pop())
                    waiting += [n for n in reversed(target.split("/")) if n not in ("", ".")]
            return os.dup(stack[-1])
        finally:
            for descriptor in stack:
                os.close(descriptor)

    def look(self, wanted: Wanted) -> Found:
        """What lies where a config wants a file."""
        try:
            with self.parent(wanted.file.path, make=False) as (directory, name):
                about = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if not stat.S_ISREG(about.st_mode):
                    return Found("other")
                data = _read(directory, name) if about.st_size <= _READ else None
        except FileNotFoundError:
            return Found("absent")
        user, group = owner_ids(wanted.file.owner)
        return Found(
            kind="file",
            sha256=hashlib.sha256(data).hexdigest() if data is not None else "",
            mode=stat.S_IMODE(about.st_mode),
            owned_right=user in (-1, about.st_uid) and group in (-1, about.st_gid),
        )

    def write(self, path: str, data: bytes, mode: int, owner: str = "") -> None:
        """Replace one file: a reader and a power cut see the old bytes or the new ones.

        Raises NeedsPerson when the disk is full, the way is not safe, the owner unknown.
        """
        user, group = owner_ids(owner)
        try:
            with self.parent(path, make=True) as (directory, name):
                _replace(directory, name, data, (mode, user, group))
        except OSError as error:
            raise disk_error(error, Path(path)) from error

    def remove(self, path: str) -> None:
        """Remove a file or link; nothing when it is gone."""
        with contextlib.suppress(FileNotFoundError):
            with self.parent(path, make=False) as (directory, name):
                os.unlink(name, dir_fd=directory)
                os.fsync(directory)

    def read(self, path: str) -> tuple[bytes, int] | None:
        """Content and mode of a regular file; None for anything else."""
        try:
            with self.parent(path, make=False) as (directory, name):
                about = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if not stat.S_ISREG(about.st_mode) or about.st_size > _READ:
                    return None
                return _read(directory, name), stat.S_IMODE(about.st_mode)
        except FileNotFoundError:
            return None


def _open_directory(parent: int, name: str, *, make: bool) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        if not make:
            raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent)
        return os.open(name, flags, dir_fd=parent)


def _trusted_link(parent: int, name: str, path: str) -> str | None:
    """Where a link on the way points; None for what is no link.

    Raises NeedsPerson for a link of somebody else: it could lead anywhere.
    """
    about = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISLNK(about.st_mode):
        return None
    if about.st_uid not in (0, os.geteuid()):
        raise NeedsPerson(
            f"{path} leads through the link {name!r} of user {about.st_uid}",
            hint="only links of root and of the agent are followed; choose another path",
        )
    return os.readlink(name, dir_fd=parent)


def _read(directory: int, name: str) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(_READ)


def _replace(directory: int, name: str, data: bytes, rights: tuple[int, int, int]) -> None:
    mode, user, group = rights
    waiting = f".{name}.edgewise-new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(waiting, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(waiting, flags, 0o600, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if (user, group) != (-1, -1):
                os.fchown(descriptor, user, group)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.rename(waiting, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(waiting, dir_fd=directory)
        raise
    os.fsync(directory)


def owner_ids(owner: str) -> tuple[int, int]:
    """``user`` or ``user:group`` to ids; -1 for "leave it". Raises NeedsPerson."""
    if not owner:
        return -1, -1
    user, _, group = owner.partition(":")
    try:
        entry = pwd.getpwnam(user)
        return entry.pw_uid, grp.getgrnam(group).gr_gid if group else entry.pw_gid
    except KeyError:
        raise NeedsPerson(
            f"there is no owner {owner!r} on this node", hint="create it in the image"
        ) from None


class ConfigFiles:
    """The files of configs on this node, and which of them we wrote."""

    def __init__(self, state: Path, place: Place) -> None:
        self._record = state / "files.json"
        self._originals = state / "originals"
        self._place = place
        self.written = self._load()

    def _load(self) -> dict[str, Written]:
        try:
            return msgspec.json.decode(self._record.read_bytes(), type=dict[str, Written])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise NeedsPerson(
                f"{self._record} is damaged: {error}",
                hint="remove it; files that no config names any more then stay on the node",
            ) from error

    def _save(self) -> None:
        try:
            write_durably(self._record, msgspec.json.encode(self.written))
        except OSError as error:
            raise disk_error(error, self._record) from error

    def look(self, wanted: Mapping[str, Wanted]) -> dict[str, Found]:
        """What is there now."""
        return {path: self._place.look(want) for path, want in wanted.items()}

    def write(self, step: Write) -> None:
        """Perform one step. The claim is on disk before the file is, so nothing is orphaned."""
        path, file = step.wanted.file.path, step.wanted.file
        original = self.written[path].original if path in self.written else self._keep(path)
        claim = Written(step.wanted.config, step.wanted.sha256, original)
        if self.written.get(path) != claim:
            before = self.written.get(path)
            self.written[path] = claim
            try:
                self._save()
            except NeedsPerson:
                self._unclaim(path, before)
                raise
        self._place.write(path, file.content.encode(), file.mode, file.owner)

    def _unclaim(self, path: str, before: Written | None) -> None:
        if before is None:
            del self.written[path]
        else:
            self.written[path] = before

    def remove(self, step: Remove) -> None:
        """Perform one step: remove what we wrote, or put back what lay there before."""
        kept = self._original(step.path)
        if step.restore and kept.exists():
            data = kept.read_bytes()
            self._place.write(step.path, data, stat.S_IMODE(kept.stat().st_mode))
        else:
            self._place.remove(step.path)
        self.written.pop(step.path, None)
        self._save()
        kept.unlink(missing_ok=True)

    def confirm(self) -> None:
        """The release stays: nothing of what was there before us is needed any more."""
        if not any(w.original for w in self.written.values()):
            return
        self.written = {
            path: msgspec.structs.replace(w, original=False) for path, w in self.written.items()
        }
        self._save()
        for kept in self._originals.iterdir():
            kept.unlink()

    def _original(self, path: str) -> Path:
        return self._originals / hashlib.sha256(path.encode()).hexdigest()

    def _keep(self, path: str) -> bool:
        found = self._place.read(path)
        if found is None:
            return False
        try:
            self._originals.mkdir(exist_ok=True, mode=0o700)
            kept = self._original(path)
            write_durably(kept, found[0], mode=0o600)
            kept.chmod(found[1] | stat.S_IRUSR)
        except OSError as error:
            raise disk_error(error, self._originals) from error
        return True
