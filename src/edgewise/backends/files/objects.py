"""Objects as zstd files below a content root, where any file server can serve them.

Laws: a file under its final name is complete, synced and matches its digest (it was
unpacked and checked before the rename); a crash leaves only files in ``objects/.incoming``,
which the next start empties; memory is bounded whatever the size.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

import zstandard

from edgewise.delivery import packing
from edgewise.delivery.ports import ObjectStore
from edgewise.model.errors import NotFound, Untrusted
from edgewise.model.names import Digest
from edgewise.protocol import limits
from edgewise.protocol.content import object_path
from edgewise.runtime.durable import disk_error, sync_directory, sync_filesystem

FEW: Final = 8
"""Up to so many files are synced one by one: syncing the file system waits for what others write
there, too."""


class FileObjects:
    """``root`` is the content root: objects lie at ``root/objects/ab/<62 hex>.zst``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "objects" / ".incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)
        for left in self._incoming.iterdir():
            left.unlink()

    def path(self, sha256: str) -> Path:
        """Where the packed object is or would be. Raises ValueError for no digest."""
        return self._root / object_path(Digest(sha256).sha256)

    async def put(self, sha256: str, content: AsyncIterator[bytes] | bytes) -> int:
        """See ``ObjectStore.put``."""
        final = self.path(sha256)
        if final.exists():
            return final.stat().st_size
        if isinstance(content, bytes):
            return await asyncio.to_thread(self._put_bytes, sha256, content)
        with self._writing() as (file, waiting):
            digest = hashlib.sha256()
            packer = zstandard.ZstdCompressor(level=packing.LEVEL).compressobj()
            size = 0
            async for chunk in content:
                size += len(chunk)
                if size > limits.OBJECT:
                    raise Untrusted(f"object {sha256[:12]} is larger than {limits.OBJECT} bytes")
                digest.update(chunk)
                file.write(await asyncio.to_thread(packer.compress, chunk))
            file.write(packer.flush())
            if digest.hexdigest() != sha256:
                raise Untrusted(f"object {sha256[:12]} has other content than its name says")
            return await asyncio.to_thread(_settle, file, waiting, final)

    async def put_all(self, contents: Mapping[str, bytes]) -> None:
        """See ``ObjectStore.put_all``. The disk is waited for twice, however many there are."""
        await asyncio.to_thread(self._put_all, contents)

    async def put_packed(self, sha256: str, packed: AsyncIterator[bytes]) -> int:
        """See ``ObjectStore.put_packed``."""
        final = self.path(sha256)
        if final.exists():
            return final.stat().st_size
        with self._writing() as (file, waiting):
            bound = packing.packed_bound(limits.OBJECT)
            async for chunk in packed:
                file.write(chunk)
                if file.tell() > bound:
                    raise Untrusted(f"object {sha256[:12]} is larger than {bound} bytes")
            await asyncio.to_thread(_check, file, sha256)
            return await asyncio.to_thread(_settle, file, waiting, final)

    async def get(self, sha256: str, *, at_most: int) -> bytes:
        """See ``ObjectStore.get``. Raises Untrusted when the disk changed the bytes."""
        try:
            packed = self.path(sha256).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"object {sha256[:12]} is not kept here") from None
        return packing.unpack(packed, sha256, at_most=at_most)

    async def missing(self, digests: Iterable[str]) -> frozenset[str]:
        """See ``ObjectStore.missing``."""
        return frozenset(d for d in digests if not self.path(d).exists())

    async def size(self, sha256: str) -> int:
        """See ``ObjectStore.size``."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            raise NotFound(f"object {sha256[:12]} is not kept here") from None

    async def collect(self, keep: Collection[str], *, unused_since: float) -> int:
        """Delete objects outside ``keep`` that were stored before ``unused_since``.

        ``unused_since`` is in epoch seconds: an upload puts its objects before the document
        that names them, so leave it hours. Returns the bytes freed.
        """
        return await asyncio.to_thread(self._collect, frozenset(keep), unused_since)

    def _collect(self, keep: frozenset[str], unused_since: float) -> int:
        freed = 0
        for folder in (self._root / "objects").iterdir():
            if folder == self._incoming:
                continue
            for path in folder.iterdir():
                about = path.stat()
                if folder.name + path.stem not in keep and about.st_mtime < unused_since:
                    path.unlink()
                    freed += about.st_size
        return freed

    def _put_bytes(self, sha256: str, content: bytes) -> int:
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Untrusted(f"object {sha256[:12]} has other content than its name says")
        with self._writing() as (file, waiting):
            file.write(packing.pack(content))
            return _settle(file, waiting, self.path(sha256))

    def _put_all(self, contents: Mapping[str, bytes]) -> None:
        for sha256, content in contents.items():
            if hashlib.sha256(content).hexdigest() != sha256:
                raise Untrusted(f"object {sha256[:12]} has other content than its name says")
        if len(contents) <= FEW:
            for sha256, content in contents.items():
                if not self.path(sha256).exists():
                    self._put_bytes(sha256, content)
            return
        with ExitStack() as held:
            settling: dict[Path, Path] = {}
            for sha256, content in contents.items():
                final = self.path(sha256)
                if final.exists():
                    continue
                with self._writing(keep=held) as (file, waiting):
                    file.write(packing.pack(content))
                    os.fchmod(file.fileno(), 0o644)
                settling[waiting] = final
            if not settling:
                return
            try:
                sync_filesystem(self._incoming)
                for waiting, final in settling.items():
                    final.parent.mkdir(exist_ok=True)
                    os.rename(waiting, final)
                sync_filesystem(self._incoming)  # names too: the answer says that they are kept
            except OSError as error:
                raise disk_error(error, self._root) from error

    @contextmanager
    def _writing(self, keep: ExitStack | None = None) -> Iterator[tuple[IO[bytes], Path]]:
        """A temporary file that is gone afterwards unless it was settled; with ``keep``, it is
        gone when that ends."""
        try:
            fd, name = tempfile.mkstemp(dir=self._incoming)
        except OSError as error:
            raise disk_error(error, self._root) from error
        waiting = Path(name)
        if keep is not None:
            keep.callback(waiting.unlink, missing_ok=True)
        try:
            with os.fdopen(fd, "w+b") as file:
                yield file, waiting
        except OSError as error:
            raise disk_error(error, self._root) from error
        finally:
            if keep is None:
                waiting.unlink(missing_ok=True)


def _check(file: IO[bytes], sha256: str) -> None:
    file.flush()
    file.seek(0)
    for _ in packing.unpacked(file, sha256, at_most=limits.OBJECT):
        pass
    file.seek(0, os.SEEK_END)


def _settle(file: IO[bytes], waiting: Path, final: Path) -> int:
    file.flush()
    os.fchmod(file.fileno(), 0o644)
    os.fsync(file.fileno())
    size = os.fstat(file.fileno()).st_size
    if not final.parent.exists():
        final.parent.mkdir(exist_ok=True)
        sync_directory(final.parent.parent)
    os.rename(waiting, final)
    sync_directory(final.parent)
    return size


def _meets_its_port(store: FileObjects) -> ObjectStore:
    return store
