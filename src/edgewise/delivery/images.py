"""Container images as trees: which paths they have, and the manifests that are served.

Source: OCI image specification 1.1 (image-index.md, manifest.md, config.md, layer.md). A tree of
an image holds ``manifest.json`` and ``config.json`` as they are served, and for layer *n*
``layers/<n>/skeleton`` and ``layers/<n>/files/...`` (delivery.skeleton). Layers are served
uncompressed, so their digests are the ``diff_ids`` of the configuration and the image ID stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from edgewise.delivery.skeleton import Content
from edgewise.model.errors import BadUsage, Untrusted
from edgewise.model.names import Digest, Platform
from edgewise.protocol.codec import encode
from edgewise.protocol.content import Entry

SHAPE: Final = "oci"
MANIFEST: Final = "manifest.json"
CONFIG: Final = "config.json"
LAYERS: Final = 128
"""Layers of one image; overlayfs takes no more."""
DOCUMENT: Final = 4 << 20
"""Bytes of an index, manifest or configuration: what registries take."""
PLATFORMS: Final = 64
"""Manifests of one index."""

INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
INDEX_TYPES: Final = (
    INDEX_TYPE,
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES: Final = (
    MANIFEST_TYPE,
    "application/vnd.docker.distribution.manifest.v2+json",
)
CONFIG_TYPES: Final = (CONFIG_TYPE, "application/vnd.docker.container.image.v1+json")
SOURCE_DIGEST: Final = "dev.edgewise.image.source-digest"
"""Annotation: the digest of the manifest that was imported."""
REF_NAME: Final = "org.opencontainers.image.ref.name"


class OfPlatform(msgspec.Struct, frozen=True, omit_defaults=True):
    """For which machine an image is."""

    architecture: str = ""
    os: str = ""
    variant: str = ""

    @property
    def text(self) -> str:
        """``os/architecture[/variant]``. Raises BadUsage for no platform."""
        words = [self.os, self.architecture, *([self.variant] if self.variant else [])]
        try:
            return Platform("/".join(words)).value
        except ValueError as error:
            raise BadUsage(f"an image is for {'/'.join(words)[:80]!r}: {error}") from error


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A reference to a blob (descriptor.md)."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    platform: OfPlatform | None = None
    urls: tuple[str, ...] | None = None

    @property
    def sha256(self) -> str:
        """Raises BadUsage for a digest of another kind."""
        kind, _, text = self.digest.partition(":")
        try:
            return Digest(text if kind == "sha256" else "").sha256
        except ValueError as error:
            raise BadUsage(f"the digest {self.digest[:80]!r} cannot be used: {error}") from error


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """An image index, or the ``index.json`` of an image layout."""

    manifests: tuple[Descriptor, ...]
    schema_version: int = 2


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """An image manifest."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] | None = None
    schema_version: int = 2


class RootFs(msgspec.Struct, frozen=True):
    """Of a configuration: the uncompressed layers."""

    diff_ids: tuple[str, ...]


class Config(msgspec.Struct, frozen=True):
    """What is read of an image's configuration."""

    architecture: str
    os: str
    rootfs: RootFs
    variant: str = ""


def read(data: bytes, kind: Any, what: str) -> Any:
    """A foreign document; fields that we do not know are left out. Raises BadUsage."""
    if len(data) > DOCUMENT:
        raise BadUsage(f"{what} has {len(data)} bytes; at most {DOCUMENT} are taken")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadUsage(f"{what} is malformed: {error}") from error


def diff_ids(config: Config, layers: int) -> tuple[str, ...]:
    """Hex digests of the uncompressed layers. Raises BadUsage unless there are ``layers``."""
    found = config.rootfs.diff_ids
    if len(found) != layers or layers > LAYERS:
        raise BadUsage(
            f"an image has {layers} layers and {len(found)} diff_ids; at most {LAYERS} are taken"
        )
    return tuple(Descriptor(LAYER_TYPE, one, 0).sha256 for one in found)


def served_manifest(
    config: tuple[str, int], layers: Iterable[tuple[str, int]], annotations: Mapping[str, str]
) -> bytes:
    """The manifest of an image whose layers are uncompressed. Pairs are digest and size."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": Descriptor(CONFIG_TYPE, f"sha256:{config[0]}", config[1]),
        "layers": [Descriptor(LAYER_TYPE, f"sha256:{sha}", size) for sha, size in layers],
    }
    return encode(document | ({"annotations": dict(annotations)} if annotations else {}))


def served_index(manifests: Mapping[str, tuple[str, int]]) -> bytes:
    """The index over ``manifests``: platform to digest and size."""
    found = []
    for platform, (sha256, size) in sorted(manifests.items()):
        system, architecture, *variant = platform.split("/")
        place = OfPlatform(architecture, system, *variant)
        found.append(Descriptor(MANIFEST_TYPE, f"sha256:{sha256}", size, platform=place))
    return encode({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": found})


# Trees

_PLAIN = re.compile(r"[^\w.,:;+=@~ ()\[\]{}%!#$&'-]")


def content_entries(top: str, contents: Iterable[Content]) -> list[Entry]:
    """Files below the directory ``top``, under their names in the archive as far as these can
    be names in a tree; others are numbered. Names serve only to find what is alike."""
    files: dict[str, Content] = {}
    directories: set[str] = set()
    for number, content in enumerate(contents):
        path = f"{top}/{_plain(content.hint)}"
        above = parents(path)
        if path in files or path in directories or not files.keys().isdisjoint(above):
            path = f"{top}/~{number}"
        if path in files or path in directories:  # somebody calls files so
            path = f"{top}/~~{number}~{content.sha256}"
        files[path] = content
        directories.update(parents(path))
    return [Entry(path, "file", 0o644, one.size, one.sha256) for path, one in files.items()]


def with_directories(entries: Iterable[Entry]) -> list[Entry]:
    """The entries, and every directory that they are in."""
    found = list(entries)
    above = {parent for entry in found for parent in parents(entry.path)}
    return [*found, *(Entry(path, "dir", 0o755) for path in above)]


def parents(path: str) -> list[str]:
    """Every directory that ``path`` is in, outermost first."""
    steps = path.split("/")[:-1]
    return ["/".join(steps[: at + 1]) for at in range(len(steps))]


def _plain(hint: str) -> str:
    steps = [_PLAIN.sub("_", step)[:200] for step in hint.split("/") if step not in ("", ".", "..")]
    path = "/".join(steps[:64])
    return path if path and len(path) <= 2000 else "~"


class Layer(msgspec.Struct, frozen=True):
    """A layer of a published image."""

    size: int
    skeleton: str
    """Digest of the skeleton."""


class Image(msgspec.Struct, frozen=True):
    """A published image of one platform, as far as it takes to serve it."""

    manifest: tuple[str, int]
    """Digest and bytes."""
    config: tuple[str, int]
    layers: dict[str, Layer]
    """By digest of the uncompressed layer."""


class _Place(msgspec.Struct, frozen=True):
    path: str
    sha256: str = ""
    size: int = 0


class _Places(msgspec.Struct, frozen=True):
    entries: tuple[_Place, ...]


_SHA256 = re.compile(r"[0-9a-f]{64}")


def places(tree: bytes, wanted: Callable[[str], bool]) -> dict[str, tuple[str, int]]:
    """Path to digest and size, of the files of an encoded tree that are ``wanted``.

    Raises Untrusted for bytes that are no tree.
    """
    try:
        found = msgspec.json.decode(tree, type=_Places)
    except msgspec.DecodeError as error:
        raise Untrusted(f"a tree is malformed: {error}") from error
    files = [one for one in found.entries if one.sha256 and wanted(one.path)]
    if not all(_SHA256.fullmatch(one.sha256) for one in files):
        raise Untrusted("a tree names something that is no digest")
    return {one.path: (one.sha256, one.size) for one in files}


_SKELETON = re.compile(r"layers/\d+/skeleton")


def is_frame(path: str) -> bool:
    """Whether ``path`` is one of those that ``opened`` needs."""
    return path in (MANIFEST, CONFIG) or _SKELETON.fullmatch(path) is not None


def opened(found: Mapping[str, tuple[str, int]], manifest: bytes) -> Image:
    """The image whose tree has ``found``. Raises Untrusted for a tree that is no image."""
    try:
        document = read(manifest, Manifest, "the manifest of an image")
        layers: dict[str, Layer] = {}
        for number, layer in enumerate(document.layers):
            skeleton, _ = found[f"layers/{number}/skeleton"]
            layers.setdefault(layer.sha256, Layer(layer.size, skeleton))
        if document.config.sha256 != found[CONFIG][0]:
            raise Untrusted("the manifest of an image names another configuration")
        return Image(found[MANIFEST], found[CONFIG], layers)
    except (KeyError, BadUsage) as error:
        raise Untrusted(f"a tree is no image: {error}") from error
