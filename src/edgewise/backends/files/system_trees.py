"""Read an operating system's root, a directory or a tar file, into a system tree.

A tar file needs no root here: what it says about owners, devices and xattrs is taken as it
stands (ustar, GNU and PAX headers; xattrs as ``SCHILY.xattr.NAME``, as GNU tar and star write
them). Times are not carried. Names that share an inode in the source share one in the tree.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final, Literal

import msgspec

from edgewise.delivery.trees import make_tree
from edgewise.model.errors import BadUsage, NeedsPerson
from edgewise.protocol.content import Entry, Top, Tree
from edgewise.protocol.tree_checks import NAMESPACES

Keep = Callable[[IO[bytes]], tuple[str, int]]
"""Reads a content to its end and keeps it; returns its SHA-256 and its size in bytes."""

_XATTR: Final = "SCHILY.xattr."
_SPECIAL: Final[dict[int, Literal["char", "block", "fifo"]]] = {
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}


def read_system(source: Path, keep: Keep) -> Tree:
    """The system tree of ``source``; each file's content goes to ``keep``.

    Raises BadUsage, naming the path, for what a node would refuse, for a socket, another file
    system mounted below, and a name that is not UTF-8; NeedsPerson for what cannot be read.
    """
    try:
        if source.is_dir():
            return _Directory(keep).read(source)
        with tarfile.open(source, encoding="utf-8", errors="surrogateescape") as archive:
            return _Archive(keep).read(archive)
    except PermissionError as error:
        raise NeedsPerson(
            f"{error.filename or source} cannot be read: {error.strerror}",
            hint="read it as root, or make a tar file as root and name that",
        ) from error
    except (OSError, EOFError) as error:
        raise NeedsPerson(f"{source} cannot be read: {error}") from error
    except tarfile.TarError as error:
        raise BadUsage(
            f"{source} is no tar file that can be read: {error}",
            hint="plain, gzip, bzip2 and xz are read; unpack others first (zstd -d)",
        ) from error


class _Names:
    """Path to entry, where entries that are the same object are names of one inode."""

    def __init__(self) -> None:
        self.found: dict[str, Entry] = {}

    def add(self, path: str, kind: str, **fields: Any) -> None:
        """Also in place of an earlier one, as in a tar file."""
        try:
            path.encode()
            self.found[path] = Entry(path, kind, **fields)  # type: ignore[arg-type]
        except UnicodeEncodeError as error:
            raise BadUsage(f"{path!r}: file names must be UTF-8", hint="rename it") from error
        except ValueError as error:
            raise BadUsage(str(error)) from error

    def tree(self, top: Top) -> Tree:
        return make_tree(self._entries(), top)

    def _entries(self) -> Iterator[Entry]:
        first: dict[int, str] = {}
        for path, entry in sorted(self.found.items()):
            if entry.kind == "file" and first.setdefault(id(entry), path) != path:
                yield Entry(path, "hard", target=first[id(entry)])
            else:
                yield msgspec.structs.replace(entry, path=path)


class _Directory:
    """A directory of this machine, as its kernel describes it."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._names = _Names()
        self._inodes: dict[int, Entry] = {}
        self._device = 0

    def read(self, top: Path) -> Tree:
        about = top.stat()
        self._device = about.st_dev
        self._folder(str(top), "")
        mode = stat.S_IMODE(about.st_mode)
        return self._names.tree(Top(mode, about.st_uid, about.st_gid, _xattrs_of(str(top))))

    def _folder(self, folder: str, prefix: str) -> None:
        for item in os.scandir(folder):
            about = item.stat(follow_symlinks=False)
            path = prefix + item.name
            if about.st_dev != self._device:
                raise BadUsage(
                    f"{path!r} is another file system, mounted there", hint=f"umount {item.path}"
                )
            self._one(item.path, path, about)
            if stat.S_ISDIR(about.st_mode):
                self._folder(item.path, path + "/")

    def _one(self, place: str, path: str, about: os.stat_result) -> None:
        fields: dict[str, Any] = {
            "mode": stat.S_IMODE(about.st_mode),
            "uid": about.st_uid,
            "gid": about.st_gid,
            "xattrs": _xattrs_of(place),
        }
        kind = stat.S_IFMT(about.st_mode)
        if kind == stat.S_IFDIR:
            self._names.add(path, "dir", **fields)
        elif kind == stat.S_IFLNK:
            self._names.add(path, "link", target=os.readlink(place), **fields)
        elif kind == stat.S_IFREG:
            self._file(place, path, about, fields)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            fields["device"] = (os.major(about.st_rdev), os.minor(about.st_rdev))
            self._names.add(path, _SPECIAL[kind], **fields)
        elif kind == stat.S_IFIFO:
            self._names.add(path, "fifo", **fields)
        else:
            raise BadUsage(f"{path!r} is a socket; its server makes it", hint=f"rm {place}")

    def _file(self, place: str, path: str, about: os.stat_result, fields: dict[str, Any]) -> None:
        if about.st_nlink > 1 and (known := self._inodes.get(about.st_ino)) is not None:
            self._names.found[path] = known
            return
        with open(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            if about.st_blocks * 512 < about.st_size:
                fields["sparse"] = os.lseek(file.fileno(), 0, os.SEEK_HOLE) < about.st_size
                file.seek(0)
            sha256, size = self._keep(file)
        if size != about.st_size:
            raise BadUsage(
                f"{place} changed while it was read", hint="build again when it is still"
            )
        self._names.add(path, "file", size=size, sha256=sha256, **fields)
        if about.st_nlink > 1:
            self._inodes[about.st_ino] = self._names.found[path]


def _xattrs_of(place: str) -> tuple[tuple[str, bytes], ...]:
    """Those that can be given again; a file system's own (``btrfs.``) are left out."""
    return tuple(
        (name, os.getxattr(place, name, follow_symlinks=False))
        for name in sorted(os.listxattr(place, follow_symlinks=False))
        if name.startswith(NAMESPACES)
    )


class _Archive:
    """A tar file: later members replace earlier ones of the same name."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._names = _Names()
        self._top = Top()

    def read(self, archive: tarfile.TarFile) -> Tree:
        for member in archive:
            self._one(archive, member)
            archive.members = []  # type: ignore[attr-defined]  # or each is held to the end
        return self._names.tree(self._top)

    def _one(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = _plain(member.name)
        fields: dict[str, Any] = {
            "mode": stat.S_IMODE(member.mode),
            "uid": member.uid,
            "gid": member.gid,
            "xattrs": _xattrs_in(member),
        }
        if not path:
            self._top = _top(fields)
        elif member.isdir():
            self._make_parents(path)
            self._names.add(path, "dir", **fields)
        elif member.islnk():
            self._second_name(path, member)
        elif member.issym():
            self._make_parents(path)
            fields["mode"] = 0o777
            self._names.add(path, "link", target=member.linkname, **fields)
        elif member.isreg():
            self._make_parents(path)
            content = archive.extractfile(member)
            assert content is not None  # it is a regular file
            sha256, size = self._keep(content)
            sparse = member.issparse()
            self._names.add(path, "file", size=size, sha256=sha256, sparse=sparse, **fields)
        elif member.ischr() or member.isblk():
            self._make_parents(path)
            fields["device"] = (member.devmajor, member.devminor)
            self._names.add(path, "char" if member.ischr() else "block", **fields)
        elif member.isfifo():
            self._make_parents(path)
            self._names.add(path, "fifo", **fields)
        else:
            raise BadUsage(f"{path!r} is a tar member of type {member.type!r}, which is no file")

    def _second_name(self, path: str, member: tarfile.TarInfo) -> None:
        known = self._names.found.get(_plain(member.linkname))
        if known is None or known.kind == "dir":
            raise BadUsage(f"hard link {path!r}: no file {member.linkname!r} comes before it")
        self._make_parents(path)
        self._names.found[path] = known

    def _make_parents(self, path: str) -> None:
        """A tar file need not list the directories that its members are in."""
        parent = path.rpartition("/")[0]
        if parent and parent not in self._names.found:
            self._make_parents(parent)
            self._names.add(parent, "dir", mode=0o755, uid=0, gid=0)


def _top(fields: dict[str, Any]) -> Top:
    try:
        return Top(**fields)
    except ValueError as error:
        raise BadUsage(str(error)) from error


def _plain(name: str) -> str:
    """``./usr/bin/`` as ``usr/bin``; empty for the top. Raises BadUsage for ``..`` and ``/usr``."""
    segments = [segment for segment in name.split("/") if segment not in ("", ".")]
    if name.startswith("/") or ".." in segments:
        raise BadUsage(
            f"tar member {name[:200]!r} reaches outside", hint="make it with `tar -C DIR -c .`"
        )
    return "/".join(segments)


def _xattrs_in(member: tarfile.TarInfo) -> tuple[tuple[str, bytes], ...]:
    """Values are bytes in the file; tarfile reads them as UTF-8 with surrogates for the rest."""
    found = {
        name.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
        for name, value in member.pax_headers.items()
        if name.startswith(_XATTR)
    }
    return tuple(sorted((n, v) for n, v in found.items() if n.startswith(NAMESPACES)))
