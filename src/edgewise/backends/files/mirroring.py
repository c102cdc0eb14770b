"""Copy the content root to where a file server serves it, in a safe order.

The timestamp is read first and put in place last; what it leads to was there when it was
read, and immutable. So a mirror that is cut off anywhere is a complete older state.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import zstandard

from edgewise.model.errors import NotFound
from edgewise.runtime.durable import disk_error, sync_filesystem, write_durably

PAYLOAD: Final = ("objects", "deltas")
TIMESTAMP: Final = "tuf/timestamp.json"
BATCH_FILES: Final = 500
BATCH_BYTES: Final = 64 << 20
"""What is copied to a directory before its names are set: so much is copied again after a stop."""
SEALED: Final = b"age-encryption.org/"
"""How a sealed secret begins (the age format, version line)."""

Progress = Callable[[int, int], None]
"""Called with the files done and those to do."""


class Copy(NamedTuple):
    """One file to bring."""

    path: str
    """Below both roots."""
    source: Path
    size: int


class MirrorTarget(Protocol):
    """Where a mirror is written."""

    def sizes(self) -> dict[str, int]:
        """Path to size of every file of ``PAYLOAD`` and ``tuf/`` that is there, whole."""

    def same(self, path: str, data: bytes) -> bool:
        """Whether a small file is there with just these bytes."""

    def bring(self, copies: Iterable[Copy]) -> Iterator[Copy]:
        """Put each in place, whole or not at all, in any order; yields what is there now. A
        source that is gone meanwhile is left out."""

    def replace(self, path: str, data: bytes) -> None:
        """Put a small file in place in one step, in place of an older one."""

    def remove(self, paths: Iterable[str]) -> None:
        """Delete files; those that are not there do not matter."""


@dataclass(slots=True)
class Mirrored:
    """What a copy did, or would do."""

    copied: int = 0
    bytes: int = 0
    present: int = 0
    sealed: int = 0
    """Sealed secrets that were left out."""
    pruned: int = 0
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class MirrorTerms:
    """How a copy is made."""

    sealed: bool = False
    """Sealed secrets too."""
    prune: bool = False
    """Then delete what the content root no longer has."""
    dry_run: bool = False
    """Only count."""
    progress: Progress = lambda done, of: None


def mirror(content: Path, target: MirrorTarget, terms: MirrorTerms | None = None) -> Mirrored:
    """Bring ``target`` to the state of ``content``. Repeating it is harmless, and copies only
    what is not there yet.

    Raises NotFound where there is no content, NeedsPerson and TryLater as the target does.
    """
    terms = terms or MirrorTerms()
    done = Mirrored(dry_run=terms.dry_run)
    try:
        timestamp = (content / TIMESTAMP).read_bytes()
    except FileNotFoundError:
        raise NotFound(
            f"there is no published content in {content}",
            hint="name the hub's directory with --data, the one of `edgewise up`",
        ) from None
    there = target.sizes()
    payload = list(_lacking(content, payload_of(content), there, done, sealed=terms.sealed))
    metadata = list(_changed(content, target, there, done))
    of = len(payload) + len(metadata)
    for step in (payload, metadata):  # metadata only after all that it names
        brought = iter(step) if terms.dry_run else target.bring(step)
        for copy in brought:
            done.copied += 1
            done.bytes += copy.size
            terms.progress(done.copied, of)
    if not terms.dry_run and not target.same(TIMESTAMP, timestamp):
        target.replace(TIMESTAMP, timestamp)
    if terms.prune:
        gone = [path for path in there if _is_payload(path) and not (content / path).exists()]
        done.pruned = len(gone)
        if not terms.dry_run:
            target.remove(gone)
    return done


def payload_of(root: Path) -> Iterator[str]:
    """Paths of the objects and deltas below a content root."""
    for kind in PAYLOAD:
        if not (root / kind).is_dir():
            continue
        for folder in sorted(os.listdir(root / kind)):
            if len(folder) != 2:  # what is still being written
                continue
            for name in sorted(os.listdir(root / kind / folder)):
                if name.endswith((".zst", ".ewd")) and not name.startswith("."):
                    yield f"{kind}/{folder}/{name}"


def _is_payload(path: str) -> bool:
    return path.startswith(tuple(f"{kind}/" for kind in PAYLOAD)) and path.endswith(
        (".zst", ".ewd")
    )


def _lacking(
    content: Path, paths: Iterable[str], there: dict[str, int], done: Mirrored, *, sealed: bool
) -> Iterator[Copy]:
    for path in paths:
        source = content / path
        try:
            size = source.stat().st_size
        except FileNotFoundError:
            continue  # the hub has given it up meanwhile: nothing of now needs it
        if there.get(path) == size:  # immutable under its name, and whole or not there
            done.present += 1
        elif not sealed and path.startswith("objects/") and _is_sealed(source):
            done.sealed += 1
        else:
            yield Copy(path, source, size)


def _changed(
    content: Path, target: MirrorTarget, there: dict[str, int], done: Mirrored
) -> Iterator[Copy]:
    """Metadata is compared byte by byte: a hub that was killed between two steps of a publication
    writes the same names again, often with the same length."""
    for name in sorted(os.listdir(content / "tuf")):
        path = f"tuf/{name}"
        if not name.endswith(".json") or name.startswith(".") or path == TIMESTAMP:
            continue
        try:
            data = (content / path).read_bytes()
        except FileNotFoundError:
            continue
        if there.get(path) == len(data) and target.same(path, data):
            done.present += 1
        else:
            yield Copy(path, content / path, len(data))


def _is_sealed(packed: Path) -> bool:
    try:
        with packed.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
            return bool(reader.read(len(SEALED)) == SEALED)
    except FileNotFoundError:
        return False
    except zstandard.ZstdError:
        return False


class FolderTarget:
    """A directory. Raises NeedsPerson for what its disk says."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sizes(self) -> dict[str, int]:
        """See ``MirrorTarget``."""
        paths = list(payload_of(self._folder))
        if (self._folder / "tuf").is_dir():
            paths += [f"tuf/{name}" for name in os.listdir(self._folder / "tuf")]
        return {path: (self._folder / path).stat().st_size for path in paths}

    def same(self, path: str, data: bytes) -> bool:
        """See ``MirrorTarget``."""
        try:
            return (self._folder / path).read_bytes() == data
        except FileNotFoundError:
            return False

    def bring(self, copies: Iterable[Copy]) -> Iterator[Copy]:
        """See ``MirrorTarget``. The disk is waited for twice a batch, not twice a file."""
        batch: list[Copy] = []
        weight = 0
        for copy in copies:
            batch.append(copy)
            weight += copy.size
            if weight >= BATCH_BYTES or len(batch) >= BATCH_FILES:
                yield from self._bring(batch)
                batch, weight = [], 0
        yield from self._bring(batch)

    def replace(self, path: str, data: bytes) -> None:
        """See ``MirrorTarget``."""
        try:
            (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_durably(self._folder / path, data)
        except OSError as error:
            raise disk_error(error, self._folder) from error

    def remove(self, paths: Iterable[str]) -> None:
        """See ``MirrorTarget``."""
        for path in paths:
            (self._folder / path).unlink(missing_ok=True)

    def _bring(self, batch: Iterable[Copy]) -> Iterator[Copy]:
        waiting: dict[Path, Copy] = {}
        try:
            try:
                for copy in batch:
                    self._copy(copy, waiting)
                if waiting:
                    sync_filesystem(self._folder)
                for file, copy in waiting.items():
                    os.rename(file, self._folder / copy.path)
                if waiting:
                    sync_filesystem(self._folder)
            except OSError as error:
                raise disk_error(error, self._folder) from error
        finally:
            for file in waiting:  # there only where something went wrong
                file.unlink(missing_ok=True)
        yield from waiting.values()

    def _copy(self, copy: Copy, waiting: dict[Path, Copy]) -> None:
        final = self._folder / copy.path
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            reader = copy.source.open("rb")
        except FileNotFoundError:
            return
        new = final.with_name(f".{final.name}.new")
        waiting[new] = copy
        with reader, new.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
        os.chmod(new, 0o644)


def _meets_its_port(target: FolderTarget) -> MirrorTarget:
    return target
