"""Copy the content root to a directory that a file server serves, in a safe order.

The timestamp is read first and put in place last; what it leads to was there when it was
read, and immutable. So a mirror that is cut off anywhere is a complete older state.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zstandard

from edgewise.model.errors import NeedsPerson, NotFound
from edgewise.runtime.durable import disk_error, sync_directory, write_durably

PAYLOAD: Final = ("objects", "deltas")
TIMESTAMP: Final = "timestamp.json"
SEALED: Final = b"age-encryption.org/"
"""How a sealed secret begins (the age format, version line)."""


@dataclass(slots=True)
class Mirrored:
    """What a copy did."""

    copied: int = 0
    bytes: int = 0
    present: int = 0
    sealed: int = 0
    """Sealed secrets that were left out."""
    pruned: int = 0


def mirror(content: Path, target: Path, *, sealed: bool = False, prune: bool = False) -> Mirrored:
    """Bring ``target`` to the state of ``content``. Repeating it is harmless.

    Raises NotFound where there is no content, NeedsPerson for what a disk says.
    """
    done = Mirrored()
    try:
        timestamp = (content / "tuf" / TIMESTAMP).read_bytes()
    except FileNotFoundError:
        raise NotFound(
            f"there is no published content in {content}",
            hint="name the hub's directory with --data, the one of `edgewise up`",
        ) from None
    try:
        for path in _payload(content):
            _copy(content, target, path, done, sealed=sealed)
        for name in sorted(os.listdir(content / "tuf")):
            if name.endswith(".json") and not name.startswith(".") and name != TIMESTAMP:
                _copy(content, target, f"tuf/{name}", done, sealed=True)
        (target / "tuf").mkdir(parents=True, exist_ok=True)
        write_durably(target / "tuf" / TIMESTAMP, timestamp)
        if prune:
            _prune(content, target, done)
    except OSError as error:
        raise disk_error(error, target) from error
    return done


def _payload(root: Path) -> Iterator[str]:
    for kind in PAYLOAD:
        if not (root / kind).is_dir():
            continue
        for folder in sorted(os.listdir(root / kind)):
            if len(folder) != 2:  # what is still being written
                continue
            for name in sorted(os.listdir(root / kind / folder)):
                if name.endswith((".zst", ".ewd")):
                    yield f"{kind}/{folder}/{name}"


def _copy(content: Path, target: Path, path: str, done: Mirrored, *, sealed: bool) -> None:
    source, final = content / path, target / path
    try:
        size = source.stat().st_size
        if final.is_file() and final.stat().st_size == size:
            done.present += 1
            return
        if not sealed and path.startswith("objects/") and _is_sealed(source):
            done.sealed += 1
            return
        final.parent.mkdir(parents=True, exist_ok=True)
        waiting = final.with_name(f".{final.name}.new")
        with source.open("rb") as reader, waiting.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())
        os.chmod(waiting, 0o644)
        os.rename(waiting, final)
        sync_directory(final.parent)
    except FileNotFoundError as error:
        if source.exists():
            raise NeedsPerson(
                f"{error.filename} went away", hint="is somebody else there?"
            ) from error
        return  # the hub has given it up meanwhile: nothing of now needs it
    done.copied += 1
    done.bytes += size


def _is_sealed(packed: Path) -> bool:
    try:
        with packed.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
            return bool(reader.read(len(SEALED)) == SEALED)
    except zstandard.ZstdError:
        return False


def _prune(content: Path, target: Path, done: Mirrored) -> None:
    for path in list(_payload(target)):
        if not (content / path).exists():
            (target / path).unlink(missing_ok=True)
            done.pruned += 1
