"""Fill the cache of a relay from a bundle, while the relay is stopped.

The bundle takes the hub's place: what it has goes the way of everything that a hub sends, with
the same checks, so that the relay's nodes are served without any network beyond it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgewise.backends.files.bundle import Bundle
from edgewise.backends.files.cache_files import CacheFiles
from edgewise.backends.files.objects import FileObjects
from edgewise.backends.files.shelf import FileShelf
from edgewise.backends.files.space import Space, SpaceTerms
from edgewise.backends.sqlite.relay import SqliteRelayMemory, open_relay_database
from edgewise.backends.tuf.repository import FileMetadata
from edgewise.delivery import packing, trust
from edgewise.delivery.media import check_time, open_offer
from edgewise.delivery.on_relay import Cache
from edgewise.delivery.plan import RESERVE
from edgewise.delivery.ports import Opened
from edgewise.delivery.view import View, read_view
from edgewise.identity.on_agent import MachineIdentity
from edgewise.model.errors import NeedsPerson, NotFound, Untrusted
from edgewise.protocol import limits
from edgewise.protocol.content import channel_target, object_path
from edgewise.protocol.delta import delta_path
from edgewise.protocol.media import MEDIA
from edgewise.protocol.sync import RelayNews
from edgewise.rollout.fanout import learn
from edgewise.rollout.relay_ports import RelayMemory
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import StreamLog

_SLACK: Final = 1 << 30
"""Above what is here and comes: filling evicts nothing; the relay's own limit does, later."""


@dataclass(frozen=True, slots=True)
class Cached:
    """What a relay has of a bundle."""

    fleet: str
    release: str
    objects: int
    size: int
    """Bytes of all that came, packed."""
    fresh: bool
    """Whether nodes take the metadata from the relay; else each needs the bundle itself."""
    deltas: int = 0
    """Deltas and packs: what they bring is not in it whole."""


async def import_on_relay(
    state: Path,
    bundle: Bundle,
    clock: Clock,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    dry_run: bool = False,
) -> Cached:
    """Fill the cache of a relay that is stopped, as if the hub had spoken to it.

    Raises NeedsPerson when the relay runs or its disk is too small, Untrusted for what does not
    verify or is older than what it has; what verified before that is kept.
    """
    identity = MachineIdentity(state / "identity")
    if not identity.credentials.exist:
        raise NeedsPerson(f"{state} holds no joined relay", hint="name its directory: --state")
    database = open_relay_database(state / "relay.db")
    try:
        memory = SqliteRelayMemory(database)
        filling = Filling(state / "content", memory, identity.tuf_root, clock, progress)
        return await filling.fill(bundle, dry_run=dry_run)
    finally:
        database.close()


@dataclass(frozen=True, slots=True)
class Filling:
    """A relay's directories, opened while it is stopped."""

    content: Path
    memory: RelayMemory
    root: bytes
    """The root metadata that it joined with."""
    clock: Clock
    progress: Callable[[int, int], None] = lambda done, total: None

    async def fill(self, bundle: Bundle, *, dry_run: bool = False) -> Cached:
        """See ``import_on_relay``."""
        files, now = bundle.metadata(), self.clock.now()
        objects = FileObjects(self.content)
        disk = CacheFiles(self.content)
        limit = sum(size for _, size in (*bundle.objects(), *bundle.deltas())) + _SLACK
        limit += sum(file.size for file in disk.kept())
        log = StreamLog(self.clock, "relay", lowest="warning")
        space = Space(disk, SpaceTerms(limit), self.clock, log)
        sizes = {object_path(sha256): size for sha256, size in bundle.objects()}
        deltas = {delta_path(sha256): size for sha256, size in bundle.deltas()}
        sizes |= deltas
        shelf = FileShelf(space, _Given(bundle, sizes), log)
        metadata = FileMetadata(self.content / "tuf")
        cache = Cache(shelf, metadata, bundle, root=self.root, clock=self.clock)
        order = open_offer(files, cache.root, None)
        check_time(order.media, max(now, order.media.issued))
        view = read_view(lambda path: files.get(path.removeprefix("tuf/")), now, self.root)
        missing = await objects.missing(sha256 for sha256, _ in bundle.objects())
        total = sum(size for sha256, size in bundle.objects() if sha256 in missing)
        total += sum(size for path, size in deltas.items() if not disk.exists(path))
        _check_room(self.content, total)
        channel = order.channel
        found = Cached(
            channel.fleet, channel.stable, len(missing), total, not view.expired, len(deltas)
        )
        if dry_run:
            return found
        await cache.offer({name: data for name, data in files.items() if name != MEDIA})
        done = 0
        for sha256, size in bundle.objects():
            if sha256 in missing:
                await cache.ensure(object_path(sha256))
                done += size
                self.progress(done, total)
        for path, size in deltas.items():
            await cache.ensure(path)
            done += size
            self.progress(min(done, total), total)
        await _learn(self.memory, bundle, view, channel.fleet)
        return found


@dataclass(frozen=True, slots=True)
class _Given:
    """The bundle in the hub's place (``delivery.ports.Upstream``)."""

    bundle: Bundle
    sizes: dict[str, int]
    """Packed bytes by path."""

    def read(
        self, path: str, *, at_most: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        return self.bundle.read(path, at_most=at_most, start=start, end=end)

    @asynccontextmanager
    async def open(
        self, path: str, *, at_most: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[Opened]:
        if path not in self.sizes:
            raise NotFound(f"the bundle has no {path}")
        pieces = self.read(path, at_most=at_most, start=start, end=end)
        async with aclosing(pieces):  # type: ignore[type-var]
            yield Opened(self.sizes[path], pieces)

    def blame(self, path: str, why: str) -> None:
        """There is nobody else to ask."""


async def _learn(memory: RelayMemory, bundle: Bundle, view: View, fleet: str) -> None:
    path = channel_target(fleet)
    target = view.target(path)
    if target is None:
        raise Untrusted(f"the bundle's channels do not name {fleet}")
    digest = trust.target_digest(target)
    bound = packing.packed_bound(limits.CHANNEL)
    packed = bundle.small(object_path(digest), bound)
    channel = packing.unpack(packed, digest, at_most=limits.CHANNEL)
    known = await memory.known()
    news = RelayNews({path: channel}, records=dict(bundle.records()), cursor=known.cursor)
    _, change = learn(known, news)
    await memory.learn(change)


def _check_room(folder: Path, needed: int) -> None:
    about = os.statvfs(folder)
    free = about.f_bavail * about.f_frsize
    if free < needed + RESERVE:
        raise NeedsPerson(
            f"{folder} has {free:,} bytes free, the bundle needs {needed:,} and a reserve of"
            f" {RESERVE:,}",
            hint="free space there; nothing was changed",
        )
