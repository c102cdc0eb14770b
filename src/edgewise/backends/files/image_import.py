"""From container images to trees in a build folder, each layer taken apart and put together
again before it is believed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from edgewise.backends.files.builds import BuildFolder
from edgewise.backends.files.image_sources import (
    Archive,
    Folder,
    SourceImage,
    SourceLayer,
    Unpacking,
    docker_images,
    oci_images,
)
from edgewise.delivery import images, skeleton
from edgewise.delivery.trees import make_tree
from edgewise.model.errors import BadUsage
from edgewise.protocol.content import Entry, TreeRef

RATIO: Final = 250
"""Bytes that a byte of a layer may unpack to, after the first ``FREE``. Programs reach 10,
zeros 1,000."""
FREE: Final = 256 << 20
_CHUNK: Final = 256 << 10


@dataclass(frozen=True)
class Source:
    """``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]`` or ``docker-archive:FILE[:TAG]``."""

    kind: str
    place: Path
    tag: str

    @classmethod
    def parse(cls, text: str) -> Source:
        """As skopeo writes it. Raises BadUsage."""
        kind, colon, rest = text.partition(":")
        if kind not in ("oci", "oci-archive", "docker-archive") or not colon or not rest:
            raise BadUsage(
                f"{text[:200]!r} is not like oci:DIR, oci-archive:FILE, docker-archive:FILE,"
                " ostree:REPO:REF or disk:FILE",
                hint="`skopeo copy docker://NAME oci:DIR:TAG` makes one of what a registry has",
            )
        if Path(rest).exists():
            return cls(kind, Path(rest), "")
        place, _, tag = rest.partition(":")
        return cls(kind, Path(place), tag)

    def images(self) -> list[SourceImage]:
        """Raises BadUsage when it cannot be read, or does not say which of several."""
        if self.kind == "oci":
            if not self.place.is_dir():
                raise BadUsage(f"{self.place} is not a directory")
            return oci_images(Folder(self.place), self.tag)
        archive = Archive(self.place)
        return (docker_images if self.kind == "docker-archive" else oci_images)(archive, self.tag)


def import_images(
    folder: BuildFolder,
    found: list[SourceImage],
    platforms: frozenset[str],
    *,
    at_most: int,
    said: Callable[[str], None] = lambda line: None,
) -> dict[str, TreeRef]:
    """A tree for each image of ``platforms`` (empty: of all); ``at_most`` bounds the bytes of
    each, unpacked.

    Raises BadUsage for images that are not sound, twice for one platform, or missing.
    """
    by_platform: dict[str, SourceImage] = {}
    for image in found:
        if platforms and image.platform not in platforms:
            continue
        if image.platform in by_platform:
            raise BadUsage(
                f"there are two images for {image.platform}", hint="name one of them by its tag"
            )
        by_platform[image.platform] = image
    if missing := platforms - by_platform.keys() or ({"any platform"} if not by_platform else ()):
        raise BadUsage(
            f"there is no image for {', '.join(sorted(missing))}",
            hint=f"there is: {', '.join(sorted({image.platform for image in found}))}",
        )
    return {
        platform: _import(folder, image, at_most, said)
        for platform, image in sorted(by_platform.items())
    }


def _import(
    folder: BuildFolder, image: SourceImage, at_most: int, said: Callable[[str], None]
) -> TreeRef:
    config = images.read(image.config, images.Config, "the configuration of an image")
    expected = images.diff_ids(config, len(image.layers))
    entries: list[Entry] = []
    layers: list[tuple[str, int]] = []
    for number, layer in enumerate(image.layers):
        top = f"layers/{number}"
        made, whole = _layer(folder, layer, expected[number], at_most)
        said(f"{image.platform}: layer {number + 1} of {len(expected)}, {len(made) - 1} files")
        entries += [Entry(f"{top}/skeleton", "file", 0o644, made[0].size, made[0].sha256)]
        entries += images.content_entries(f"{top}/files", made[1:])
        layers.append((whole.sha256, whole.size))
        at_most -= whole.size
    annotations = dict(image.annotations)
    if image.digest:
        annotations[images.SOURCE_DIGEST] = image.digest
    kept = folder.keep(BytesIO(image.config))
    manifest = folder.keep(BytesIO(images.served_manifest(kept, layers, annotations)))
    for path, (sha256, size) in ((images.CONFIG, kept), (images.MANIFEST, manifest)):
        entries.append(Entry(path, "file", 0o644, size, sha256))
    return folder.add_manifest(make_tree(images.with_directories(entries)))


def _layer(
    folder: BuildFolder, layer: SourceLayer, diff_id: str, at_most: int
) -> tuple[list[skeleton.Content], skeleton.Whole]:
    """The skeleton and the contents."""
    unpacking = layer.open()
    with tempfile.TemporaryFile(prefix="edgewise-skeleton-") as out:
        whole, contents = skeleton.take_apart(
            _Watched(unpacking), folder.keep, out, at_most=at_most
        )
        unpacking.source.end()
        if whole.sha256 != diff_id:
            raise BadUsage(
                f"{layer.name} unpacks to {whole.sha256}, and the image's configuration says"
                f" {diff_id}",
                hint="copy the image again",
            )
        out.seek(0)
        for _ in skeleton.assembled(out, _reader(folder), whole.sha256):
            pass
        out.seek(0)
        sha256, size = folder.keep(out)
    return [skeleton.Content(sha256, size), *contents], whole


class _Watched:
    """Refuses what unpacks to far more than it was."""

    def __init__(self, unpacking: Unpacking) -> None:
        self._unpacking = unpacking
        self._seen = 0

    def read(self, size: int) -> bytes:
        data = self._unpacking.read(size)
        self._seen += len(data)
        if self._seen > FREE + RATIO * self._unpacking.source.size:
            raise BadUsage(
                f"a layer unpacks to more than {RATIO} times its {self._unpacking.source.size}"
                " bytes: it is taken for a bomb",
                hint="save the image with uncompressed layers, if you trust where it is from",
            )
        return data


def _reader(folder: BuildFolder) -> Callable[[str, int], Iterator[bytes]]:
    def read(sha256: str, size: int) -> Iterator[bytes]:
        with (folder.path / "objects" / sha256).open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    return read
