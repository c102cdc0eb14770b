"""Container images as files: OCI image layouts, archives of them, and docker's archives.

Source: OCI image specification 1.1 (image-layout.md); for docker's archives the files that
``docker save`` and ``skopeo copy`` write (``manifest.json`` beside configurations and layers).
Nothing is ever unpacked to a name that an archive chose: members are read where they lie.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import msgspec
import zstandard

from edgewise.delivery import images
from edgewise.delivery.images import Config, Descriptor, Index, Manifest
from edgewise.delivery.skeleton import Readable
from edgewise.model.errors import BadUsage

MEMBERS: Final = 100_000
"""Members of an archive that are looked at."""
NESTED: Final = 3
"""Indexes within indexes that are followed."""
WINDOW: Final = 128 << 20
"""The zstd window that a layer may need: that of ``zstd --long``."""
_CHUNK: Final = 256 << 10


class Files(Protocol):
    """A folder or archive."""

    def open(self, name: str) -> Readable:
        """Raises BadUsage when there is no such file."""


@dataclass(frozen=True)
class SourceImage:
    """One image, ready to be read."""

    config: bytes
    layers: tuple[SourceLayer, ...]
    platform: str
    digest: str = ""
    """Of its manifest; docker's archives have none."""
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceLayer:
    """A layer, perhaps compressed."""

    files: Files
    name: str
    sha256: str = ""
    """Of the file as it is; empty: nobody says."""
    size: int = -1

    def open(self) -> Unpacking:
        """Its tar archive."""
        return Unpacking(Checked(self.files.open(self.name), self))


class Checked:
    """The bytes of a layer's file, counted; ``end`` says whether they were the right ones."""

    def __init__(self, file: Readable, layer: SourceLayer) -> None:
        self._file = file
        self._layer = layer
        self._digest = hashlib.sha256()
        self.size = 0

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes."""
        data = self._file.read(size)
        self._digest.update(data)
        self.size += len(data)
        return data

    def end(self) -> None:
        """Raises BadUsage for another content than the manifest says."""
        while self.read(_CHUNK):
            if 0 <= self._layer.size < self.size:
                break
        layer = self._layer
        if layer.sha256 and (
            self._digest.hexdigest() != layer.sha256 or layer.size not in (-1, self.size)
        ):
            raise BadUsage(f"{layer.name} is not what its digest says", hint="copy the image again")


class Unpacking:
    """Bytes that are gzip, zstd or neither, as their first bytes say; unpacked while read."""

    def __init__(self, source: Checked) -> None:
        self.source = source
        self._chunks = self._choose()
        self._left = b""

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes. Raises BadUsage for what is not sound."""
        try:
            while not self._left:
                chunk = next(self._chunks, None)
                if chunk is None:
                    return b""
                self._left = chunk
        except (zlib.error, zstandard.ZstdError) as error:
            raise BadUsage(f"a layer is not sound: {error}", hint="copy the image again") from error
        data, self._left = self._left[:size], self._left[size:]
        return data

    def _choose(self) -> Iterator[bytes]:
        first = self.source.read(4)
        while len(first) < 4 and (more := self.source.read(4 - len(first))):
            first += more
        if first[:2] == b"\x1f\x8b":
            yield from self._gunzip(first)
        elif first == b"\x28\xb5\x2f\xfd" or first[1:] == b"\x2a\x4d\x18":
            yield from self._unzstd(first)
        else:
            yield first
            while chunk := self.source.read(_CHUNK):
                yield chunk

    def _gunzip(self, data: bytes) -> Iterator[bytes]:
        unpacker = zlib.decompressobj(31)
        while data or (data := self.source.read(_CHUNK)):
            if unpacker.eof:
                if not data.strip(b"\0"):  # padding behind the last member
                    data = b""
                    continue
                unpacker = zlib.decompressobj(31)
            yield unpacker.decompress(data, _CHUNK)
            data = unpacker.unconsumed_tail or unpacker.unused_data
        if not unpacker.eof:
            raise zlib.error("it ends too early")

    def _unzstd(self, data: bytes) -> Iterator[bytes]:
        joined = _Joined(data, self.source)
        unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW)
        with unpacker.stream_reader(joined, read_across_frames=True, closefd=False) as reader:  # type: ignore[arg-type]
            while chunk := reader.read(_CHUNK):
                yield chunk


class _Joined:
    def __init__(self, first: bytes, rest: Checked) -> None:
        self._first = first
        self._rest = rest

    def read(self, size: int = _CHUNK) -> bytes:
        data, self._first = self._first, b""
        return data or self._rest.read(max(size, 1))


# Where they lie


class Folder:
    """A directory; links are not followed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open(self, name: str) -> Readable:
        """See ``Files``."""
        place = self._directory / name
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise BadUsage(f"{place} cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BadUsage(f"{place} is no file")
        return os.fdopen(descriptor, "rb")


class Archive:
    """A tar file. Links within it lead to its own members, never out of it."""

    def __init__(self, file: Path) -> None:
        self._where = file
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            self._tar = tarfile.open(file, "r:")
            for member in self._tar:
                self._members[posixpath.normpath(member.name)] = member
                if len(self._members) > MEMBERS:
                    raise BadUsage(f"{file} has more than {MEMBERS} members")
        except (OSError, tarfile.TarError) as error:
            raise BadUsage(
                f"{file} cannot be read as a tar file: {error}",
                hint="unpack it first when it is compressed: gunzip, zstd -d",
            ) from error

    def open(self, name: str) -> Readable:
        """See ``Files``."""
        member = self._members.get(posixpath.normpath(name))
        for _ in range(4):  # docker names equal layers by links
            if member is None or not (member.issym() or member.islnk()):
                break
            above = posixpath.dirname(member.name) if member.issym() else ""
            member = self._members.get(posixpath.normpath(f"{above}/{member.linkname}".lstrip("/")))
        found = self._tar.extractfile(member) if member and member.isreg() else None
        if found is None:
            raise BadUsage(f"{self._where} has no file {name[:200]!r}")
        return found


# Which images


def oci_images(files: Files, tag: str) -> list[SourceImage]:
    """The images of an OCI layout; of several tags, those of ``tag``.

    Raises BadUsage when there is none, or several and no tag was named.
    """
    index = images.read(_whole(files, "index.json"), Index, "index.json")
    tags = {(one.annotations or {}).get(images.REF_NAME, "") for one in index.manifests}
    if tag and tag not in tags:
        raise BadUsage(f"there is no image {tag!r}", hint=f"there is: {', '.join(sorted(tags))}")
    if not tag and len(tags) > 1:
        raise BadUsage("there are several images", hint=f"add one of {', '.join(sorted(tags))}")
    wanted = [
        one
        for one in index.manifests
        if not tag or (one.annotations or {}).get(images.REF_NAME, "") == tag
    ]
    return [_oci_image(files, one) for one in _flat(files, wanted, NESTED)]


def _flat(files: Files, found: list[Descriptor], deeper: int) -> Iterator[Descriptor]:
    if len(found) > images.PLATFORMS:
        raise BadUsage(f"an index has more than {images.PLATFORMS} manifests")
    for one in found:
        if one.media_type in images.INDEX_TYPES:
            if deeper == 0:
                raise BadUsage(f"indexes lie in indexes more than {NESTED} deep")
            index = images.read(_blob(files, one), Index, one.digest)
            yield from _flat(files, list(index.manifests), deeper - 1)
        elif one.platform is not None and one.platform.os == "unknown":
            continue  # what BuildKit attests beside an image
        elif one.media_type in images.MANIFEST_TYPES:
            yield one
        else:
            raise BadUsage(f"{one.digest} is of the kind {one.media_type[:100]!r}, no image")


def _oci_image(files: Files, descriptor: Descriptor) -> SourceImage:
    manifest = images.read(_blob(files, descriptor), Manifest, descriptor.digest)
    if manifest.config.media_type not in images.CONFIG_TYPES:
        raise BadUsage(
            f"{descriptor.digest} has a configuration of the kind"
            f" {manifest.config.media_type[:100]!r}: it is no container image"
        )
    config = _blob(files, manifest.config)
    for layer in manifest.layers:
        if layer.urls or "foreign" in layer.media_type or "encrypted" in layer.media_type:
            raise BadUsage(f"layer {layer.digest} is foreign or encrypted")
    return SourceImage(
        config,
        tuple(SourceLayer(files, _place(one), one.sha256, one.size) for one in manifest.layers),
        _platform(config),
        descriptor.digest,
        manifest.annotations or {},
    )


class _Saved(msgspec.Struct, rename="pascal"):
    config: str
    layers: tuple[str, ...]
    repo_tags: tuple[str, ...] | None = None


def docker_images(files: Files, tag: str) -> list[SourceImage]:
    """The images of a docker archive: one for each platform. Raises as ``oci_images``."""
    listed = images.read(_whole(files, "manifest.json"), tuple[_Saved, ...], "manifest.json")
    found = [one for one in listed if not tag or tag in (one.repo_tags or ())]
    if not found:
        raise BadUsage(f"there is no image {tag!r} in the archive")
    made = []
    for one in found[: images.PLATFORMS]:
        config = _whole(files, one.config)
        layers = tuple(SourceLayer(files, name) for name in one.layers)
        made.append(SourceImage(config, layers, _platform(config)))
    return made


def _platform(config: bytes) -> str:
    read = images.read(config, Config, "the configuration of an image")
    return images.OfPlatform(read.architecture, read.os, read.variant).text


def _place(descriptor: Descriptor) -> str:
    return f"blobs/sha256/{descriptor.sha256}"


def _blob(files: Files, descriptor: Descriptor) -> bytes:
    data = _whole(files, _place(descriptor))
    if len(data) != descriptor.size or hashlib.sha256(data).hexdigest() != descriptor.sha256:
        raise BadUsage(f"{descriptor.digest} is not what its digest says")
    return data


def _whole(files: Files, name: str) -> bytes:
    data, file = b"", files.open(name)
    while chunk := file.read(images.DOCUMENT + 1 - len(data)):
        data += chunk
        if len(data) > images.DOCUMENT:
            raise BadUsage(f"{name[:200]} has more than {images.DOCUMENT} bytes")
    return data
