"""What registries and OSTree remotes are served from, on the hub and on a relay."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from tuf.api.metadata import TargetFile

from edgewise.delivery import packing, trust
from edgewise.delivery.on_hub import Publisher
from edgewise.delivery.on_relay import Cache
from edgewise.identity.names import Station, authorise
from edgewise.model.errors import NotFound, Unauthenticated
from edgewise.net import ostree_remote, registry, server
from edgewise.net.ostree_remote import OstreeRemotes
from edgewise.net.registry import Library, Registry
from edgewise.net.routes import MEMBERS, Peer, Route
from edgewise.net.server import Mount
from edgewise.protocol import limits
from edgewise.protocol.codec import decode
from edgewise.protocol.content import Artifact, object_path
from edgewise.runtime.log import Log

KNOWN: Final = 4096
"""Artifact documents that are remembered: about 1 KB each."""


Place = Callable[[str], Path]
"""Where an object is, or would be."""


class FileLibrary:
    """Over a content folder. ``published`` says what builders signed, ``fetch`` has an object
    brought here."""

    def __init__(
        self,
        place: Place,
        published: Callable[[], Awaitable[Mapping[str, TargetFile]]],
        fetch: Callable[[str], Awaitable[None]],
    ) -> None:
        self._place = place
        self._published = published
        self._fetch = fetch
        self._known: OrderedDict[str, Artifact] = OrderedDict()

    async def artifacts(self, name: str) -> tuple[Artifact, ...]:
        """See ``Library``."""
        top = f"artifacts/{name}/"
        targets = await self._published()
        found = [(path, one) for path, one in targets.items() if path.startswith(top)]
        found.sort(key=lambda pair: (trust.added_in(pair[1]), pair[0]))
        return tuple([await self._artifact(path, target) for path, target in found])

    async def ensure(self, sha256: str) -> None:
        """See ``Library``."""
        await self._fetch(sha256)

    def stream(self, sha256: str, *, at_most: int) -> Iterator[bytes]:
        """See ``Library``."""
        try:
            packed = self._place(sha256).open("rb")
        except FileNotFoundError:
            raise NotFound(f"object {sha256[:12]} is not kept here") from None
        with packed:
            yield from packing.unpacked(packed, sha256, at_most=at_most)

    async def _artifact(self, path: str, target: TargetFile) -> Artifact:
        sha256 = trust.target_digest(target)
        known = self._known.get(sha256)
        if known is None:
            await self._fetch(sha256)
            data = b"".join(self.stream(sha256, at_most=limits.PART))
            known = decode(data, Artifact, what=path, at_most=limits.PART)
            self._known[sha256] = known
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)
        return known


def of_hub(publisher: Publisher, place: Place) -> FileLibrary:
    """Everything is there, or is not published."""

    async def published() -> Mapping[str, TargetFile]:
        return publisher.published()

    async def fetch(sha256: str) -> None:
        return None

    return FileLibrary(place, published, fetch)


def of_relay(cache: Cache, content: Path) -> FileLibrary:
    """What is not there comes from the hub."""
    return FileLibrary(
        lambda sha256: content / object_path(sha256),
        cache.published,
        lambda sha256: cache.ensure(object_path(sha256)),
    )


def hub_mounts(
    publisher: Publisher, place: Place, guard: Callable[[Peer], None], log: Log
) -> list[Mount]:
    """For members, and people who may see everything; ``guard`` as for content."""

    async def nothing(call: object) -> None:
        return None

    route = Route("GET", registry.PREFIX, "Images", nothing, MEMBERS, needs="viewer")

    def admit(peer: Peer) -> None:
        server.authorise(route, peer)
        guard(peer)

    return _mounts(of_hub(publisher, place), admit, log)


def relay_mounts(
    place: tuple[Cache, Path],
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


def _mounts(library: Library, admit: Callable[[Peer], None], log: Log) -> list[Mount]:
    return [
        Mount(registry.PREFIX, Registry(library, admit, log).answer),
        Mount(ostree_remote.PREFIX, OstreeRemotes(library, admit, log).answer),
    ]


def _meets_its_port(library: FileLibrary) -> Library:
    return library
