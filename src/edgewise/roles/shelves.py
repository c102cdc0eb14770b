"""What registries and OSTree remotes are served from, on the hub and on a relay."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final

from tuf.api.metadata import TargetFile

from edgewise.backends.files.objects import FileObjects
from edgewise.delivery import trust
from edgewise.delivery.on_hub import Publisher
from edgewise.delivery.on_relay import Cache
from edgewise.identity.names import Station, authorise
from edgewise.model.errors import Unauthenticated
from edgewise.net import ostree_remote, registry, server
from edgewise.net.ostree_remote import OstreeRemotes
from edgewise.net.registry import Registry, Shelf
from edgewise.net.routes import MEMBERS, Peer, Route
from edgewise.net.server import Mount
from edgewise.protocol import limits
from edgewise.protocol.codec import decode
from edgewise.protocol.content import Artifact, object_path
from edgewise.runtime.log import Log

KNOWN: Final = 4096
"""Artifact documents that are remembered: about 1 KB each."""


class FileShelf:
    """Over a content folder. ``published`` says what builders signed, ``fetch`` has an object
    brought here."""

    def __init__(
        self,
        objects: FileObjects,
        published: Callable[[], Awaitable[Mapping[str, TargetFile]]],
        fetch: Callable[[str], Awaitable[None]],
    ) -> None:
        self._objects = objects
        self._published = published
        self._fetch = fetch
        self._known: OrderedDict[str, Artifact] = OrderedDict()

    async def artifacts(self, name: str) -> tuple[Artifact, ...]:
        """See ``Shelf``."""
        top = f"artifacts/{name}/"
        targets = await self._published()
        found = [(path, one) for path, one in targets.items() if path.startswith(top)]
        found.sort(key=lambda pair: (trust.added_in(pair[1]), pair[0]))
        return tuple([await self._artifact(path, target) for path, target in found])

    async def ensure(self, sha256: str) -> None:
        """See ``Shelf``."""
        await self._fetch(sha256)

    def stream(self, sha256: str, *, at_most: int) -> Iterator[bytes]:
        """See ``Shelf``."""
        return self._objects.stream(sha256, at_most=at_most)

    async def _artifact(self, path: str, target: TargetFile) -> Artifact:
        sha256 = trust.target_digest(target)
        known = self._known.get(sha256)
        if known is None:
            await self._fetch(sha256)
            data = await self._objects.get(sha256, at_most=limits.PART)
            known = decode(data, Artifact, what=path, at_most=limits.PART)
            self._known[sha256] = known
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)
        return known


def of_hub(publisher: Publisher, objects: FileObjects) -> FileShelf:
    """Everything is there, or is not published."""

    async def published() -> Mapping[str, TargetFile]:
        return publisher.published()

    async def fetch(sha256: str) -> None:
        return None

    return FileShelf(objects, published, fetch)


def of_relay(cache: Cache, objects: FileObjects) -> FileShelf:
    """What is not there comes from the hub."""
    return FileShelf(objects, cache.published, lambda sha256: cache.ensure(object_path(sha256)))


def hub_mounts(
    publisher: Publisher, objects: FileObjects, guard: Callable[[Peer], None], log: Log
) -> list[Mount]:
    """For members, and people who may see everything; ``guard`` as for content."""

    async def nothing(call: object) -> None:
        return None

    route = Route("GET", registry.PREFIX, "Images", nothing, MEMBERS, needs="viewer")

    def admit(peer: Peer) -> None:
        server.authorise(route, peer)
        guard(peer)

    return _mounts(of_hub(publisher, objects), admit, log)


def relay_mounts(
    place: tuple[Cache, FileObjects],
    station: Station,
    admit_node: Callable[[str], None],
    log: Log,
) -> list[Mount]:
    """For whoever may fetch content here; ``admit_node`` raises for nodes that may not."""

    def admit(peer: Peer) -> None:
        if peer.id is None:
            raise Unauthenticated(hint="show the node's certificate: docs/images.md")
        authorise("content", peer.id, station)
        if peer.role == "node":
            admit_node(peer.id.name)

    return _mounts(of_relay(*place), admit, log)


def _mounts(shelf: Shelf, admit: Callable[[Peer], None], log: Log) -> list[Mount]:
    return [
        Mount(registry.PREFIX, Registry(shelf, admit, log).answer),
        Mount(ostree_remote.PREFIX, OstreeRemotes(shelf, admit, log).answer),
    ]


def _meets_its_port(shelf: FileShelf) -> Shelf:
    return shelf
