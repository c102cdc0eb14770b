"""A hub's content in a folder, a copy of it behind a file server, and relays that use both."""

from __future__ import annotations

import os
from pathlib import Path

from file_servers import FileServer, Nginx

from edgewise.backends.files.cache_files import CacheFiles
from edgewise.backends.files.objects import FileObjects
from edgewise.backends.files.shelf import FileShelf
from edgewise.backends.files.space import Space, SpaceTerms
from edgewise.backends.tuf.repository import FileMetadata
from edgewise.delivery.on_hub import Publisher
from edgewise.delivery.on_relay import Cache
from edgewise.model.names import Digest
from edgewise.net.client import Client, Endpoint
from edgewise.net.sources import Origin, Sources, plain_origin
from edgewise.protocol.channel import Channel
from edgewise.protocol.codec import encode
from edgewise.protocol.content import NotActedOn, PartRef, Release, object_path
from edgewise.runtime.clock import SystemClock
from edgewise.testing.content import MemoryKeys
from edgewise.testing.delta_files import delta_file
from edgewise.testing.log import ListLog


class Place:
    """A hub's content on disk, a mirror of it, and nginx before each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content, self.cdn = folder / "content", folder / "cdn"
        self.paths: dict[str, bytes] = {}
        self.publisher: Publisher
        self.log = ListLog()
        self.hub_nginx: Nginx
        self.cdn_server: FileServer

    async def publish(self, sequence: int) -> None:
        objects = FileObjects(self.content)
        if sequence == 1:
            self.publisher = await Publisher.open(
                FileMetadata(self.content / "tuf"), MemoryKeys(), objects, clock=SystemClock()
            )
        for size in (100, 5_000, 300_000):
            await self.put(os.urandom(size))
        path, data = delta_file([os.urandom(30_000) for _ in range(8)])
        (self.content / path).parent.mkdir(parents=True, exist_ok=True)
        (self.content / path).write_bytes(data)
        self.paths[path] = data
        part = encode(NotActedOn("Thing", f"thing-{sequence}"))
        refs = (PartRef("other", f"thing-{sequence}", (), {"": Digest.of(part).sha256}),)
        release = encode(Release("lab", refs))
        name = Digest.of(release).sha256
        await self.publisher.publish_release(name, {Digest.of(part).sha256: part, name: release})
        await self.publisher.publish_channels([Channel("lab", sequence, stable=name)])

    async def put(self, data: bytes) -> str:
        """The path of a new object."""
        digest = Digest.of(data).sha256
        await FileObjects(self.content).put(digest, data)
        path = object_path(digest)
        self.paths[path] = (self.content / path).read_bytes()
        return path

    def relay(self) -> tuple[Cache, Sources]:
        clock = SystemClock()
        hub = Client(Endpoint((self.hub_nginx.url,)), clock, 8)
        sources = Sources(
            (plain_origin(self.cdn_server.url, clock), Origin("hub", hub, "/")), clock, self.log
        )
        self.disk = self.folder / f"relay-{len(list(self.folder.iterdir()))}"
        space = Space(CacheFiles(self.disk), SpaceTerms(1 << 30, 0), clock, self.log)
        cache = Cache(
            FileShelf(space, sources, self.log),
            FileMetadata(self.disk / "tuf"),
            sources,
            root=self.publisher.root,
            clock=clock,
        )
        return cache, sources


async def get(cache: Cache, path: str) -> bytes:
    return b"".join([piece async for piece in cache.read(path, at_most=1 << 30)])


def served(sources: Sources) -> dict[str, int]:
    return {standing.name: standing.served_bytes for standing in sources.choice.standings}


async def everything(place: Place, cache: Cache) -> None:
    await get(cache, "tuf/timestamp.json")
    for path, data in place.paths.items():
        assert await get(cache, path) == data
    newest = place.publisher.metadata_for("lab")
    for name, data in newest.items():
        if not name.startswith("channels/"):
            assert await get(cache, f"tuf/{name}") == data
