"""What a node keeps: files by digest and attributes, documents, releases, and which one is current.

Standard library and msgspec only: the resident agent reads from here without the worker.

Laws (docs/internals/content.md has the order of syncs):
- ``releases/<sha>`` exists only complete: everything in it was synced before the rename;
- ``current`` and ``previous`` are symlinks, replaced by rename, the directory synced after;
- a kept file is only a hint until its digest was checked again, or its seal was found
  (``backends.files.seals``); a document until its digest was checked again;
- ``collect`` deletes nothing that current, previous, a pin or ``keep`` need, and no object
  while a fetch runs.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sys
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from edgewise.backends.files import seals
from edgewise.backends.files.new_files import NewFiles
from edgewise.backends.files.seals import attributes_of
from edgewise.delivery.ports import NodeFiles, Scratch
from edgewise.model.errors import NeedsPerson, NotFound, Untrusted
from edgewise.model.names import Digest, is_digest
from edgewise.protocol.content import Attributes, Entry, Tree
from edgewise.protocol.installed import Installed
from edgewise.runtime.durable import (
    disk_error,
    exchange,
    remove_tree,
    sync_directory,
    sync_filesystem,
    write_durably,
)

_COPY = 1 << 20


class NodeStore:
    """``root`` is the node's state directory. One process may fetch, others may read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._objects = root / "store" / "objects"
        self._folder = str(self._objects)
        self._documents = root / "store" / "documents"
        self._releases = root / "releases"
        self._staging = root / "staging"
        self._partials = root / "staging" / "partial"
        self._listing = threading.Lock()
        """A part is applied in a thread while others download."""
        self._new = NewFiles(self._staging)
        self._listed: dict[str, dict[str, tuple[str, ...]]] | None = None
        """While a fetch runs: what the folders of objects hold, by their two digits."""
        self._keys: dict[tuple[str, ...], tuple[str, ...]] = {}
        """Each once: nearly all of many thousand files have one of a few."""
        self._unsealed: list[tuple[str, str, bool]] = []
        """While a fetch runs: paths whose content matched their digest, the digest, and whether
        others could write to the file meanwhile. ``finish`` seals them."""
        self._pins = root / "pinned"
        # Nobody but the agent needs what is kept, and old setuid files are among it.
        for folder in (root / "store", self._staging):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self._objects, self._documents, self._releases, self._partials):
            folder.mkdir(parents=True, exist_ok=True)

    # What runs

    def active(self) -> Installed | None:
        """The current release; None before the first. Raises NeedsPerson when it is damaged."""
        return self._linked("current")

    def previous(self) -> Installed | None:
        """The release that ``put_back`` would start; None when there is none."""
        if self._name_of("previous") == self._name_of("current"):
            return None
        return self._linked("previous")

    def staged(self, release: str) -> Installed | None:
        """A release that is here, complete; None when it is not."""
        if not (self.release_directory(release) / "release.json").exists():
            return None
        return self._read(release)

    def installed(self) -> tuple[Installed, ...]:
        """Every complete release here; damaged ones are left out (``collect`` takes them)."""
        found = []
        for folder in sorted(self._releases.iterdir()):
            try:
                found.append(self._read(folder.name))
            except NeedsPerson:
                continue
        return tuple(found)

    def release_directory(self, release: str) -> Path:
        """Where a release lies. Raises ValueError for no digest."""
        return self._releases / Digest(release).sha256

    def activate(self, release: str) -> Installed:
        """Make a staged release current; the one before becomes ``previous``. Idempotent.

        After a power cut at any point ``active`` is the old release or the new one.
        Raises NotFound when it is not staged, NeedsPerson when the disk is full.
        """
        installed = self.staged(release)
        if installed is None:
            raise NotFound(f"release {release[:12]} is not on this node")
        running = self._name_of("current")
        if running == release:
            return installed
        if running:
            # First, so that there is no moment at which the way back is not recorded.
            self._point("previous", running)
        self._point("current", release)
        return installed

    def put_back(self) -> Installed:
        """Make ``previous`` current again. Raises NeedsPerson when there is none."""
        before = self.previous()
        if before is None:
            raise NeedsPerson(
                "there is no previous release to put back",
                hint="publish a release that works; nothing was changed",
            )
        self._point("current", before.release)
        return before

    def pin(self, release: str) -> None:
        """Keep a release that is here until ``unpin``. Idempotent. Raises NotFound when it is
        not complete, NeedsPerson when the disk is full."""
        if self.staged(release) is None:
            raise NotFound(f"release {release[:12]} is not on this node")
        try:
            self._pins.mkdir(exist_ok=True)
            write_durably(self._pins / Digest(release).sha256, b"")
            sync_directory(self.root)
        except OSError as error:
            raise disk_error(error, self.root) from error

    def unpin(self, release: str) -> None:
        """Idempotent."""
        (self._pins / Digest(release).sha256).unlink(missing_ok=True)

    def pinned(self) -> frozenset[str]:
        """Releases that ``collect`` leaves alone."""
        try:
            names = os.listdir(self._pins)
        except FileNotFoundError:
            return frozenset()
        return frozenset(name for name in names if not name.startswith("."))

    def free_bytes(self) -> int:
        """Bytes that this process may still write on the store's file system."""
        about = os.statvfs(self.root)
        return about.f_bavail * about.f_frsize

    def free_inodes(self) -> int:
        """See ``NodeFiles.free_inodes``."""
        about = os.statvfs(self.root)
        return about.f_favail if about.f_files else sys.maxsize  # btrfs counts none

    def collect(self, keep: Collection[str] = ()) -> int:
        """Delete what nothing needs: releases but current, previous, pins and ``keep``, then
        files and documents that no release left here uses. Returns bytes freed.

        While a fetch runs, or a release in ``keep`` is not complete yet, objects and
        staging are left alone.
        """
        needed = {self._name_of("current"), self._name_of("previous"), *self.pinned(), *keep}
        freed = 0
        unneeded = [folder for folder in self._releases.iterdir() if folder.name not in needed]
        self._doom(unneeded)
        waiting = any(self.staged(release) is None for release in keep)
        if waiting:
            return 0
        with self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB) as mine:
            if mine:
                freed = self._sweep()
        return freed

    def _doom(self, folders: Collection[Path]) -> None:
        """Renamed, and that synced, before anything is deleted: a half-deleted release must
        not look complete, also after a power cut."""
        doomed = [self._staging / f"doomed-{folder.name}" for folder in folders]
        for folder, place in zip(folders, doomed, strict=True):
            if place.exists():
                _remove(place)
            os.rename(folder, place)
        if doomed:
            sync_directory(self._releases)
        for place in doomed:
            _remove(place)

    def _sweep(self) -> int:
        freed = 0
        for path in self._staging.iterdir():
            if path != self._partials:
                _remove(path)
        for path in self._partials.iterdir():
            path.unlink()
        for folder in self._objects.iterdir():
            for path in folder.iterdir():
                about = path.lstat()
                if about.st_nlink == 1:  # in no release: a checkout is made of hard links
                    path.unlink()
                    freed += about.st_size
        wanted = {sha256 for release in self.installed() for sha256 in _documents(release)}
        for path in self._documents.iterdir():
            if path.name not in wanted:
                freed += path.lstat().st_size
                path.unlink()
        return freed

    # What a fetch writes

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """See ``NodeFiles.fetching``."""
        with self._lock(fcntl.LOCK_SH):
            self._listed, self._keys = {}, {}  # nobody else changes the objects meanwhile
            self._unsealed = []
            try:
                yield
            finally:
                self._listed, self._keys = None, {}
                self._unsealed = []

    @contextmanager
    def _lock(self, how: int) -> Iterator[bool]:
        path = self.root / "store" / "lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise disk_error(error, self.root) from error
        try:
            try:
                fcntl.flock(fd, how)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def packed_sizes(self, release: str) -> dict[str, int]:
        """See ``NodeFiles.packed_sizes``; only a figure for receipts."""
        try:
            data = (self.release_directory(release) / "packed.json").read_bytes()
            return msgspec.json.decode(data, type=dict[str, int])
        except (FileNotFoundError, msgspec.DecodeError):
            return {}

    def document(self, sha256: str) -> bytes | None:
        """See ``NodeFiles.document``."""
        path = self._documents / Digest(sha256).sha256
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(data).hexdigest() != sha256:
            path.unlink()
            return None
        return data

    def keep_document(self, sha256: str, data: bytes) -> None:
        """See ``NodeFiles.keep_document``."""
        try:
            self._new.write(f"{self._documents}/{Digest(sha256).sha256}", (data,), None)
        except OSError as error:
            raise disk_error(error, self.root) from error

    def kept(self, sha256: str) -> tuple[str, ...]:
        """See ``NodeFiles.kept``."""
        short = sha256[:2]
        found = self._listed.get(short) if self._listed is not None else None
        if found is None:
            with self._listing:
                found = self._list(short)
                if self._listed is not None:
                    self._listed[short] = found
        return found.get(sha256[2:], ())

    def _list(self, short: str) -> dict[str, tuple[str, ...]]:
        """What one folder of objects holds: an update asks for each of many thousand files."""
        try:
            names = sorted(os.listdir(f"{self._objects}/{short}"))
        except FileNotFoundError:
            return {}
        found: dict[str, tuple[str, ...]] = {}
        for name in names:
            rest, _, key = name.partition("-")
            if attributes_of(key) is not None:
                keys = (*found.get(rest, ()), key)
                found[rest] = self._keys.setdefault(keys, keys)
        return found

    def _noted(self, sha256: str, key: str, *, kept: bool) -> None:
        """One file came or went."""
        with self._listing:
            if self._listed is None or (found := self._listed.get(sha256[:2])) is None:
                return
            keys = {*found.get(sha256[2:], ())}
            keys = keys | {key} if kept else keys - {key}
            found[sha256[2:]] = tuple(sorted(keys))

    def verify(
        self,
        sha256: str,
        key: str,
        xattrs: tuple[tuple[str, bytes], ...] | None = None,
        size: int | None = None,
    ) -> bool:
        """See ``NodeFiles.verify``."""
        path = self._object(sha256, key)
        want = attributes_of(key)
        try:
            sound = want is not None and (
                (size is not None and seals.is_sealed(path, sha256, size, want, xattrs))
                or self._hashed(path, sha256, want, xattrs)
            )
        except FileNotFoundError:
            self._noted(sha256, key, kept=False)
            return False
        if not sound:
            os.unlink(path)
            self._noted(sha256, key, kept=False)
        return sound

    def _hashed(
        self,
        path: str,
        sha256: str,
        want: seals.Wanted,
        xattrs: tuple[tuple[str, bytes], ...] | None,
    ) -> bool:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            return False
        with open(fd, "rb", 0) as file:
            if not seals.has_attributes(fd, want, xattrs):
                return False
            # Before it is read: whoever writes to it from now on takes the mark away.
            marked = self._listed is not None and seals.mark(fd, sha256)
            try:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    return False
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                return False  # a sector that cannot be read: it comes anew, to another place
        if marked:
            self._unsealed.append((path, sha256, True))
        return True

    def keep_file(self, sha256: str, attributes: Attributes, content: Iterable[bytes]) -> None:
        """See ``NodeFiles.keep_file``."""
        final = self._object(sha256, attributes.key)
        try:
            self._new.write(final, content, attributes)
        except OSError as error:
            raise disk_error(error, self.root) from error
        self._noted(sha256, attributes.key, kept=True)
        if self._listed is not None:
            self._unsealed.append((final, sha256, False))

    def copy(self, sha256: str, have: str, want: Attributes) -> bool:
        """See ``NodeFiles.copy``."""
        try:
            with open(self._object(sha256, have), "rb", 0) as file:
                self.keep_file(sha256, want, _checked(file, sha256))
        except (FileNotFoundError, Untrusted):
            self.verify(sha256, have)  # drops it
            return False
        return True

    @contextmanager
    def partial(self, sha256: str) -> Iterator[IO[bytes]]:
        """See ``NodeFiles.partial``."""
        try:
            with open(self._partials / Digest(sha256).sha256, "a+b") as file:
                yield file
        except OSError as error:
            raise disk_error(error, self.root) from error

    def has_partial(self, sha256: str) -> int:
        """See ``NodeFiles.has_partial``."""
        try:
            return (self._partials / Digest(sha256).sha256).stat().st_size
        except FileNotFoundError:
            return 0

    def drop_partial(self, sha256: str) -> None:
        """See ``NodeFiles.drop_partial``."""
        (self._partials / Digest(sha256).sha256).unlink(missing_ok=True)

    def open_kept(self, sha256: str) -> IO[bytes]:
        """See ``NodeFiles.open_kept``."""
        for key in self.kept(sha256):
            return open(self._object(sha256, key), "rb")
        raise NotFound(f"object {sha256[:12]} is not on this node")

    @contextmanager
    def scratch(self, sha256: str, use: Scratch) -> Iterator[IO[bytes]]:
        """See ``NodeFiles.scratch``."""
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            with open(os.open(self._scratch(sha256, use), flags, 0o600), "r+b") as file:
                yield file
        except OSError as error:
            raise disk_error(error, self.root) from error

    def has_scratch(self, sha256: str, use: Scratch) -> bool:
        """See ``NodeFiles.has_scratch``."""
        return self._scratch(sha256, use).exists()

    def drop_scratch(self, sha256: str, use: Scratch) -> None:
        """See ``NodeFiles.drop_scratch``."""
        self._scratch(sha256, use).unlink(missing_ok=True)

    def _scratch(self, sha256: str, use: Scratch) -> Path:
        return self._partials / f"{Digest(sha256).sha256}.{use}"

    def begin(self, release: str) -> None:
        """Start staging from nothing."""
        folder = self._stage(release)
        try:
            if folder.exists():
                _remove(folder)
            (folder / "apps").mkdir(parents=True)
        except OSError as error:
            raise disk_error(error, self.root) from error

    def lay_out(self, release: str, directory: str, tree: Tree) -> None:
        """See ``NodeFiles.lay_out``."""
        from edgewise.backends.files import layout

        top = self._stage(release) / directory
        try:
            top.parent.mkdir(parents=True, exist_ok=True)
            layout.lay_out(top, tree, self._link)
        except OSError as error:
            raise disk_error(error, self.root) from error

    def _link(self, entry: Entry, directory: int, name: str) -> None:
        kept = self._object(entry.sha256, entry.key)
        try:
            os.link(kept, name, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.EMLINK:  # ext4: 65,000 links to one (often empty) file
                raise
            from edgewise.backends.files import layout

            with open(kept, "rb", 0) as file:
                chunks = iter(lambda: file.read(_COPY), b"")
                layout.write_new(entry.attributes, chunks, directory, name)

    def finish(self, installed: Installed, packed_sizes: dict[str, int]) -> None:
        """See ``NodeFiles.finish``."""
        folder = self._stage(installed.release)
        final = self.release_directory(installed.release)
        try:
            (folder / "packed.json").write_bytes(msgspec.json.encode(packed_sizes))
            write_durably(folder / "release.json", msgspec.json.encode(installed))
            sync_filesystem(folder)
            # Not before: what is sealed has to be on the disk, whatever else of it is.
            for path, sha256, shared in self._unsealed:
                seals.seal(path, sha256, shared=shared)
            self._unsealed = []
            # The same release for a record with other labels or secrets may be running.
            swapped = final.exists() and exchange(folder, final)
            if not swapped:
                if final.exists():
                    self._doom([final])
                os.rename(folder, final)
            sync_directory(self._releases)
            if swapped:
                _remove(folder)
        except OSError as error:
            raise disk_error(error, self.root) from error

    # How

    def _object(self, sha256: str, key: str) -> str:
        """A string: an update asks for each of many thousand files."""
        if not is_digest(sha256):
            raise ValueError(f"{sha256[:80]!r} is not a SHA-256 digest")
        return f"{self._folder}/{sha256[:2]}/{sha256[2:]}-{key}"

    def _stage(self, release: str) -> Path:
        return self._staging / Digest(release).sha256

    def _name_of(self, link: str) -> str:
        try:
            return os.path.basename(os.readlink(self.root / link))
        except FileNotFoundError:
            return ""

    def _linked(self, link: str) -> Installed | None:
        name = self._name_of(link)
        return self._read(name) if name else None

    def _read(self, release: str) -> Installed:
        path = self._releases / release / "release.json"
        try:
            installed = msgspec.json.decode(path.read_bytes(), type=Installed)
        except (OSError, msgspec.DecodeError) as error:
            raise NeedsPerson(
                f"{path} is damaged or missing: {error}",
                hint="`edgewise agent run` fetches the release again once the hub is reachable",
            ) from error
        if installed.release != release:
            raise NeedsPerson(f"{path} speaks of release {installed.release[:12]}")
        return installed

    def _point(self, link: str, release: str) -> None:
        waiting = self.root / f".{link}.new"
        try:
            waiting.unlink(missing_ok=True)
            os.symlink(f"releases/{release}", waiting)
            os.rename(waiting, self.root / link)
            sync_directory(self.root)
        except OSError as error:
            raise disk_error(error, self.root) from error


def _documents(release: Installed) -> Iterator[str]:
    yield release.release
    for app in release.apps:
        yield app.part
        yield app.tree
    for config in release.configs:
        yield config.part
    for secret in release.secrets:
        yield secret.part
        yield secret.sealed


def _checked(file: IO[bytes], sha256: str) -> Iterator[bytes]:
    """What a file holds; raises Untrusted at its end when it is something else."""
    digest = hashlib.sha256()
    while data := file.read(_COPY):
        digest.update(data)
        yield data
    if digest.hexdigest() != sha256:
        raise Untrusted(f"kept object {sha256[:12]} is damaged")


def _remove(path: Path) -> None:
    """Also what a read-only directory of a tree would not let go."""
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    remove_tree(path)


def _meets_its_port(store: NodeStore) -> NodeFiles:
    return store
