"""Bundles: one fleet's release with all it needs, as a directory or one plain tar file.

Format 1, in this order: ``edgewise-bundle.json`` (protocol.media.BundleIndex; in a directory it
is written last), ``tuf/*.json``, ``records/<node>.json``, ``objects/ab/<62 hex>.zst``,
``deltas/ab/<62 hex>.ewd``. The tar is ustar with regular files only: any tar can read it, and the
same content gives the same bytes.

Law: a bundle comes from a stick that anybody may have held. Nothing of it is ever written under
a name that it gives; a name of any other form, a second file of the same name, a link or a
length that the medium does not have is refused before anything is read.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol

import msgspec

from edgewise.delivery.ports import Source
from edgewise.model.errors import BadUsage, NotFound, TryLater, Untrusted
from edgewise.protocol import limits
from edgewise.protocol.channel import Signed
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.media import BundleIndex
from edgewise.runtime.durable import disk_error, sync_directory

INDEX: Final = "edgewise-bundle.json"
_NAME: Final = re.compile(
    r"edgewise-bundle\.json|tuf/(?:[1-9][0-9]{0,8}\.)?[a-z]{1,40}\.json"
    r"|records/[a-z0-9][a-z0-9-]{0,62}\.json|objects/[0-9a-f]{2}/[0-9a-f]{62}\.zst"
    r"|deltas/[0-9a-f]{2}/[0-9a-f]{62}\.ewd"
)
FILES: Final = 1_000_000
"""Members of a bundle; two releases of 500,000 files each."""
METADATA: Final = 512
"""Files below ``tuf/``: 256 roots and what belongs to them."""
_BLOCK: Final = 512
_USTAR: Final = b"ustar"
_CHUNK: Final = 256 << 10
_LONGEST_MEMBER: Final = 8**11 - 1
"""Bytes that a ustar header can say: 8 GiB."""


@dataclass(frozen=True, slots=True)
class _Member:
    """Where the bytes of one file are."""

    file: Path
    start: int
    size: int


class Bundle:
    """A bundle as it lies there; a ``Source`` of its content. ``Bundle.open`` it."""

    def __init__(self, members: dict[str, _Member]) -> None:
        self._members = members

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """From a directory or a tar file. Raises NotFound, BadUsage, Untrusted."""
        try:
            found = _in_directory(path) if path.is_dir() else _in_tar(path)
            bundle = cls(found)
        except OSError as error:
            raise NotFound(f"{path} cannot be read: {error.strerror}") from error
        if INDEX not in bundle.names():
            raise BadUsage(
                f"{path} is no bundle: it has no {INDEX}",
                hint="`edgewise bundle export` makes one",
            )
        return bundle

    def names(self) -> frozenset[str]:
        """Every file in it."""
        return frozenset(self._members)

    def index(self) -> BundleIndex:
        """What it says of itself; to be shown, never believed."""
        return decode(self.small(INDEX, 1 << 20), BundleIndex, what=INDEX)

    def metadata(self) -> dict[str, bytes]:
        """Everything below ``tuf/``, by file name. Raises Untrusted for too much of it."""
        names = sorted(name for name in self._members if name.startswith("tuf/"))
        if len(names) > METADATA:
            raise Untrusted(f"a bundle has {len(names)} metadata files, at most {METADATA}")
        return {n.removeprefix("tuf/"): self.small(n, limits.TUF_METADATA) for n in names}

    def record(self, node: str) -> Signed | None:
        """The signed record of a node, unchecked; None where it has none."""
        name = f"records/{node}.json"
        if name not in self._members:
            return None
        return decode(self.small(name, limits.RECORD * 2), Signed, what=name)

    def records(self) -> Iterator[tuple[str, Signed]]:
        """Node to its record, unchecked."""
        for name in sorted(self._members):
            if name.startswith("records/"):
                node = name.removeprefix("records/").removesuffix(".json")
                signed = self.record(node)
                if signed is not None:
                    yield node, signed

    def objects(self) -> tuple[tuple[str, int], ...]:
        """(digest, packed bytes) of each object that it claims to have."""
        return self._below("objects/", ".zst")

    def deltas(self) -> tuple[tuple[str, int], ...]:
        """(digest of the head, bytes) of each delta and pack that it claims to have."""
        return self._below("deltas/", ".ewd")

    def _below(self, folder: str, ending: str) -> tuple[tuple[str, int], ...]:
        return tuple(
            (name.removeprefix(folder).removesuffix(ending).replace("/", ""), member.size)
            for name, member in sorted(self._members.items())
            if name.startswith(folder)
        )

    def small(self, name: str, at_most: int) -> bytes:
        """One file, whole. Raises NotFound, Untrusted for a longer one."""
        return b"".join(self._pieces(name, at_most, 0, None))

    async def read(
        self, path: str, *, at_most: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """See ``Source.read``."""
        for piece in self._pieces(path, at_most, start, end):
            yield piece

    def _pieces(self, name: str, at_most: int, start: int, end: int | None) -> Iterator[bytes]:
        member = self._members.get(name)
        if member is None:
            raise NotFound(f"the bundle has no {name}")
        stop = member.size if end is None else min(end, member.size)
        if stop - start > at_most:
            raise Untrusted(f"{name} has {stop - start} bytes, at most {at_most} are accepted")
        try:
            with member.file.open("rb") as file:
                file.seek(member.start + start)
                left = stop - start
                while left > 0:
                    piece = file.read(min(_CHUNK, left))
                    if not piece:
                        raise TryLater(
                            f"the bundle ends in the middle of {name}",
                            hint="copy it again: the medium was pulled too early",
                        )
                    left -= len(piece)
                    yield piece
        except OSError as error:
            raise TryLater(f"{member.file} cannot be read: {error.strerror}") from error


def _in_directory(path: Path) -> dict[str, _Member]:
    found: dict[str, _Member] = {}
    for folder, _, names in os.walk(path):  # follows no link
        for one in names:
            file = Path(folder) / one
            name = file.relative_to(path).as_posix()
            if file.is_symlink() or not file.is_file():
                raise Untrusted(f"{name!r} in the bundle is a link or a device")
            if not _NAME.fullmatch(name):
                raise Untrusted(
                    f"{name[:100]!r} is no name of a file in a bundle",
                    hint="give the bundle a directory of its own on the medium",
                )
            _add(found, name, _Member(file, 0, file.stat().st_size))
    return found


def _in_tar(path: Path) -> dict[str, _Member]:
    found: dict[str, _Member] = {}
    length = path.stat().st_size
    with path.open("rb") as file:
        at = 0
        while True:
            header = file.read(_BLOCK)
            if len(header) < _BLOCK:
                raise Untrusted(
                    f"{path} ends after {at} bytes without an end of archive",
                    hint="copy it again: the medium was pulled too early",
                )
            if header == bytes(_BLOCK):
                return found
            if not at and header[257:262] != _USTAR:
                raise BadUsage(
                    f"{path} is no bundle: it is no tar file",
                    hint="`edgewise bundle export` makes one",
                )
            name, size = _header(header, at)
            if at + _BLOCK + size > length:
                raise Untrusted(
                    f"{path} ends in the middle of {name}",
                    hint="copy it again: the medium was pulled too early",
                )
            _add(found, name, _Member(path, at + _BLOCK, size))
            at += _BLOCK + -(-size // _BLOCK) * _BLOCK
            file.seek(at)


def _add(found: dict[str, _Member], name: str, member: _Member) -> None:
    if not _NAME.fullmatch(name):
        raise Untrusted(f"{name[:100]!r} is no name of a file in a bundle")
    if name in found:
        raise Untrusted(f"the bundle has two files {name}")
    if len(found) >= FILES:
        raise Untrusted(f"a bundle has at most {FILES} files")
    found[name] = member


def _header(header: bytes, at: int) -> tuple[str, int]:
    """Name and size of a ustar member (POSIX pax(1), ustar interchange format)."""
    try:
        said = int(header[148:156].rstrip(b"\0 "), 8)
        size = int(header[124:136].rstrip(b"\0 ") or b"0", 8)
        name, prefix = (header[a:b].partition(b"\0")[0].decode() for a, b in ((0, 100), (345, 500)))
    except ValueError as error:
        raise Untrusted(f"there is no tar header at byte {at} of the bundle") from error
    if said != _checksum(header) or size < 0:
        raise Untrusted(f"the tar header at byte {at} of the bundle is damaged")
    if header[156:157] not in (b"0", b"\0"):
        raise Untrusted(f"{name[:100]!r} in the bundle is no regular file")
    return (f"{prefix}/{name}" if prefix else name), size


def _checksum(header: bytes) -> int:
    return sum(header[:148]) + 8 * 0x20 + sum(header[156:])


# Writing


class Writer(Protocol):
    """A bundle that is being made."""

    def add(self, name: str, size: int, content: IO[bytes]) -> None: ...


@contextmanager
def write_bundle(to: Path, index: BundleIndex) -> Iterator[Writer]:
    """Make a bundle: a directory where ``to`` ends in a slash or is one, else a tar file.

    It is there whole or not at all. Raises NeedsPerson when the disk is full.
    """
    waiting = to.with_name(f".{to.name}.new")
    try:
        if to.is_dir():
            if any(to.iterdir()):
                raise BadUsage(f"{to} is not empty", hint="name a new file or an empty directory")
            yield (writer := _DirectoryWriter(to))
            _into(writer, index)  # last: without it a directory is no bundle
            return
        with waiting.open("wb") as file:
            yield _into(_TarWriter(file), index)
            file.write(bytes(2 * _BLOCK))
            file.flush()
            os.fsync(file.fileno())
        waiting.rename(to)
        sync_directory(to.parent)
    except OSError as error:
        raise disk_error(error, to.parent) from error
    finally:
        waiting.unlink(missing_ok=True)


def _into(writer: Writer, index: BundleIndex) -> Writer:
    from io import BytesIO

    data = msgspec.json.format(encode(index), indent=1) + b"\n"
    writer.add(INDEX, len(data), BytesIO(data))
    return writer


class _TarWriter:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def add(self, name: str, size: int, content: IO[bytes]) -> None:
        if size > _LONGEST_MEMBER:
            raise BadUsage(
                f"{name} has {size} bytes: too long for tar", hint="export --to a directory"
            )
        header = bytearray(_BLOCK)
        header[0 : len(name)] = name.encode()
        fields = ((100, b"0000644\0"), (108, b"0000000\0"), (116, b"0000000\0"))
        for at, value in (*fields, (124, b"%011o\0" % size), (136, b"00000000000\0")):
            header[at : at + len(value)] = value
        header[156:157] = b"0"
        header[257:265] = b"ustar\00000"
        header[148:156] = b"%06o\0 " % _checksum(bytes(header))
        self._file.write(header)
        before = self._file.tell()
        shutil.copyfileobj(content, self._file, _CHUNK)
        if self._file.tell() - before != size:
            raise Untrusted(f"{name} has other than the {size} bytes that it was said to have")
        self._file.write(bytes(-size % _BLOCK))


class _DirectoryWriter:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, name: str, size: int, content: IO[bytes]) -> None:
        file = self._directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as target:
            shutil.copyfileobj(content, target, _CHUNK)
            target.flush()
            os.fsync(target.fileno())


def _meets_its_port(bundle: Bundle) -> Source:
    return bundle
