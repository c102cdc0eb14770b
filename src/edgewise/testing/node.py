"""A node without a machine, a network or cryptography: for tests of the node half."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import timedelta

from edgewise.model.errors import EdgewiseError, NeedsPerson, NotFound, TryLater
from edgewise.protocol.channel import Channel, NodeRecord, Signed
from edgewise.protocol.codec import encode
from edgewise.protocol.installed import Installed
from edgewise.protocol.media import MEDIA
from edgewise.protocol.report import Receipt
from edgewise.protocol.sync import SyncReply, SyncRequest
from edgewise.rollout.node_ports import (
    Body,
    Crypto,
    Kept,
    Line,
    Look,
    News,
    NodeMemory,
    Releases,
)


@dataclass
class MemoryReleases:
    """Releases in a dict, with the two links."""

    kept: dict[str, Installed] = field(default_factory=dict)
    current: str = ""
    before: str = ""
    collected: list[frozenset[str]] = field(default_factory=list)

    def staged(self, release: str) -> Installed | None:
        return self.kept.get(release)

    def active(self) -> Installed | None:
        return self.kept.get(self.current)

    def previous(self) -> Installed | None:
        return self.kept.get(self.before) if self.before != self.current else None

    def activate(self, release: str) -> Installed:
        if release not in self.kept:
            raise NotFound(f"release {release} is not on this node")
        if release != self.current:
            self.before, self.current = self.current, release
        return self.kept[release]

    def put_back(self) -> Installed:
        if self.previous() is None:
            raise NeedsPerson("there is no previous release")
        self.current = self.before
        return self.kept[self.current]

    def free_bytes(self) -> int:
        return 1 << 30

    def collect(self, keep: Collection[str] = ()) -> int:
        self.collected.append(frozenset(keep))
        return 0


@dataclass
class MemoryBody:
    """Runs nothing; notes what it was told."""

    runs: list[str] = field(default_factory=list)
    updates: list[str] = field(default_factory=list)
    verdicts: dict[str, str] = field(default_factory=dict)
    """Release to why it does not settle; it settles by default."""
    refuses: dict[str, str] = field(default_factory=dict)
    """Release to why it cannot be applied."""
    settling: asyncio.Event | None = None
    """When set, ``settle`` waits for it."""
    confirmed: int = 0

    async def run(self, installed: Installed | None) -> None:
        self.runs.append(installed.release if installed else "")

    async def update(self, installed: Installed, was: Installed | None) -> None:
        if why := self.refuses.get(installed.release):
            raise NeedsPerson(why)
        self.updates.append(installed.release)
        self.runs.append(installed.release)

    async def settle(self, installed: Installed, was: Installed | None) -> str:
        if self.settling is not None:
            await self.settling.wait()
        return self.verdicts.get(installed.release, "")

    def confirm(self) -> None:
        self.confirmed += 1

    def look(self) -> Look:
        return Look("Healthy", ())

    def in_use(self) -> frozenset[str]:
        return frozenset()


@dataclass
class MemoryCrypto:
    """Believes what ``MemoryLine`` sends, and fetches from ``offered``."""

    line: MemoryLine
    releases: MemoryReleases
    offered: dict[str, Installed] = field(default_factory=dict)
    errors: list[EdgewiseError] = field(default_factory=list)
    """Raised by the next fetches, first one first."""
    fetching: asyncio.Event | None = None
    """When set, a fetch waits for it."""
    fetched: list[str] = field(default_factory=list)
    carried: Channel | None = None
    """What removable media say, when they come."""

    async def verify(self, reply: SyncReply) -> News:
        if MEDIA in reply.metadata:
            return News(self.line.record, self.carried, offline=True)
        return News(self.line.record, self.line.channel)

    async def fetch(
        self, release: str, record: NodeRecord, progress: Callable[[float], None]
    ) -> Installed:
        self.fetched.append(release)
        if self.fetching is not None:
            await self.fetching.wait()
        if self.errors:
            raise self.errors.pop(0)
        progress(1.0)
        self.releases.kept[release] = self.offered[release]
        return self.offered[release]

    async def sign(self, receipts: tuple[Receipt, ...]) -> tuple[Signed, ...]:
        return tuple(Signed("receipt/1", encode(r), "k", b"s") for r in receipts)


@dataclass
class MemoryLine:
    """A hub of one node: ``say`` publishes, ``heard`` holds what the node said."""

    record: NodeRecord | None = None
    channel: Channel | None = None
    up: bool = True
    acknowledges: bool = True
    heard: list[SyncRequest] = field(default_factory=list)
    receipts: list[Signed] = field(default_factory=list)
    beside: dict[str, bytes] = field(default_factory=dict)
    """Further metadata in every reply that has some."""
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, channel: Channel, record: NodeRecord | None = None) -> None:
        """Publish, and wake the node."""
        self.channel = channel
        self.record = record or self.record
        news, self._news = self._news, asyncio.Event()
        news.set()

    def cut(self) -> None:
        """Break the line; polls that are held fail."""
        self.up = False
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _behind(self, request: SyncRequest) -> bool:
        record = 0 if self.record is None else self.record.sequence
        channel = 0 if self.channel is None else self.channel.sequence
        return request.record < record or request.channel < channel

    async def exchange(self, request: SyncRequest, hold: timedelta) -> SyncReply | None:
        if not self.up:
            raise TryLater("the line is cut")
        self.heard.append(request)
        if request.receipts and self.acknowledges:
            self.receipts += request.receipts
        while request.hold_s > 0 and not self._behind(request):
            await self._news.wait()
            if not self.up:
                raise TryLater("the line was cut")
        said = encode((self.channel, self.record))
        metadata = {"timestamp.json": said, **self.beside} if self._behind(request) else {}
        done = 0
        if request.receipts and self.acknowledges:
            done = max(_sequence(s) for s in request.receipts)
        return SyncReply(metadata=metadata, acknowledged=done)


def _sequence(signed: Signed) -> int:
    import msgspec

    return msgspec.json.decode(signed.payload, type=Receipt).sequence


@dataclass
class MemoryNode:
    """Memory that survives the agent. ``full`` makes saving fail; ``writes`` counts."""

    kept: Kept | None = None
    full: bool = False
    writes: int = 0
    before_write: Callable[[Kept], None] = lambda kept: None
    """Called before each write; raises to play a kill between two writes."""
    after_write: Callable[[Kept], None] = lambda kept: None

    def load(self) -> Kept | None:
        return self.kept

    def save(self, kept: Kept) -> None:
        if self.full:
            raise NeedsPerson("the disk is full")
        self.before_write(kept)
        self.kept = kept
        self.writes += 1
        self.after_write(kept)


def _meets_its_ports(
    line: MemoryLine, crypto: MemoryCrypto, releases: MemoryReleases
) -> tuple[Line, Crypto, Releases]:
    return line, crypto, releases


def _meets_more_ports(body: MemoryBody, memory: MemoryNode) -> tuple[Body, NodeMemory]:
    return body, memory
