"""What delivery does on a relay: a pull-through cache that believes nobody.

Laws: objects and deltas are kept as ``Shelf`` says; a metadata file only when the keys that
the root names signed it; the timestamp only moves forward; when the hub
is away, what is here is served. A relay that is lied to keeps nothing of it, and asks again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from datetime import timedelta
from typing import Any, Final

from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from edgewise.delivery import pins, trust
from edgewise.delivery.ports import NotHere, Served, Shelf, Source
from edgewise.model.errors import NotFound, TryLater, Untrusted
from edgewise.model.names import Digest
from edgewise.protocol import limits
from edgewise.protocol.channel import Channel, Signed
from edgewise.protocol.codec import encode
from edgewise.protocol.content import channel_target
from edgewise.runtime.clock import Clock

FRESH: Final = timedelta(seconds=5)
"""How long a timestamp is handed out before the hub is asked again; its long poll tells a
relay of changes at once (``offer``), so this only bounds the polling of others."""
ROOTS_AT_ONCE: Final = 256
"""Root versions followed in one go; python-tuf's own bound."""
_METADATA = re.compile(r"tuf/([1-9][0-9]{0,8})\.([a-z0-9-]{1,40})\.json")


class Cache:
    """TUF metadata by itself; objects and deltas on its ``shelf``."""

    def __init__(
        self,
        shelf: Shelf,
        files: trust.MetadataFiles,
        upstream: Source,
        *,
        root: bytes,
        clock: Clock,
    ) -> None:
        self._shelf = shelf
        self._files = files
        self._upstream = upstream
        self._clock = clock
        self._flying: dict[str, asyncio.Future[None]] = {}
        self._asked = float("-inf")
        self._bundles: dict[str, dict[str, bytes]] = {}
        self._builds: tuple[int, Mapping[str, TargetFile]] = (0, {})
        self._root = trust.parse(root, Root, what="root.json")
        while (following := files.read(f"{self._root.signed.version + 1}.root.json")) is not None:
            self._root = trust.follow_root(self._root, following)
        if files.read(f"{self._root.signed.version}.root.json") is None:
            files.write(f"{self._root.signed.version}.root.json", root)

    @property
    def root(self) -> bytes:
        """The newest verified root."""
        return self._files.read(f"{self._root.signed.version}.root.json") or b""

    @property
    def stored_bytes(self) -> int:
        """Bytes of objects and deltas kept."""
        return self._shelf.stored_bytes

    @property
    def fetched_bytes(self) -> int:
        """Bytes of objects and deltas that came from above since the start."""
        return self._shelf.fetched_bytes

    def pin(self, channels: Iterable[Channel]) -> None:
        """What these channels lead to goes last; themselves and their releases stay."""
        named = tuple(channels)
        releases, lists = pins.roots(named)
        documents = {Digest.of(encode(channel)).sha256 for channel in named}
        self._shelf.pin(documents | releases | lists, releases, lists)

    async def open(
        self, path: str, start: int = 0, end: int | None = None, *, here: bool = False
    ) -> Served:
        """``path`` (``objects/...``, ``deltas/...`` or ``tuf/...``), verified as far as it can
        be before its bytes are read.

        Many callers at once cause one download. ``start`` and ``end`` say what will be read.
        With ``here`` nothing is fetched: raises NotHere. Raises NotFound for a path that is
        not content or that the hub does not have, TryLater when the hub is away, Untrusted
        when what it sent does not verify.
        """
        if not path.startswith("tuf/"):
            return await self._shelf.open(path, start, end, here=here)
        if path != "tuf/timestamp.json" and not _METADATA.fullmatch(path):
            raise NotFound(f"{path[:100]!r} is not a path of content")
        name = path.removeprefix("tuf/")
        if not here:
            await self.ensure(path)
        data = self._files.read(name)
        if data is None:
            raise NotHere(f"{path[:100]} is not here")
        found = bytes(data)
        return Served(len(found), Digest.of(found).sha256, lambda s, e: _yielding(found[s:e]))

    async def ensure(self, path: str) -> None:
        """Have all of ``path`` on the disk, verified. Raises as ``open``, and NeedsPerson when
        there is no room for it."""
        if path == "tuf/timestamp.json":
            await self._fresh()
        elif found := _METADATA.fullmatch(path):
            if self._files.read(path.removeprefix("tuf/")) is None:
                await self._once(path, lambda: self._fetch_metadata(int(found[1]), found[2]))
        elif path.startswith("tuf/"):
            raise NotFound(f"{path[:100]!r} is not a path of content")
        else:
            await self._shelf.ensure(path)

    async def offer(self, metadata: Mapping[str, bytes]) -> None:
        """Take what the hub pushed (``RelayNews.metadata``), verified like a download.

        Raises Untrusted for what does not verify; what came before it is kept.
        """
        by_role = {
            name: found for name in metadata if (found := _METADATA.fullmatch(f"tuf/{name}"))
        }
        order = {"root": 0, "snapshot": 1, "targets": 2}
        for name in sorted(by_role, key=lambda n: (order.get(by_role[n][2], 3), by_role[n][1])):
            version, role = int(by_role[name][1]), by_role[name][2]
            if self._files.read(name) is not None:
                continue
            if role == "root" and version > self._root.signed.version + 1:
                await self._follow_roots()
            else:
                await self._take(version, role, metadata[name], metadata)
        for name, data in metadata.items():
            if name.startswith("channels/"):
                await self._shelf.put(Digest.of(data).sha256, data)
        if "timestamp.json" in metadata:
            self._take_timestamp(metadata["timestamp.json"])
            self._asked = self._clock.monotonic()

    async def trust_metadata(self) -> dict[str, bytes]:
        """As ``Publisher.trust_metadata``, of what is here."""
        whole = await self._compose("")
        wanted = ("timestamp.json", ".snapshot.json", ".targets.json")
        found = {name: data for name, data in whole.items() if name.endswith(wanted)}
        for version in range(2, self._root.signed.version + 1):
            if (data := self._files.read(f"{version}.root.json")) is not None:
                found[f"{version}.root.json"] = data
        return found

    async def check(self, signed: Signed) -> None:
        """Raises Untrusted unless the hub's present channels key signed it."""
        keys = trust.delegated_keys(await self._delegator({}), "channels")
        if signed.key_id not in keys:  # the key was replaced, and nothing else has said so
            await self._once("timestamp", self._fetch_timestamp)
            keys = trust.delegated_keys(await self._delegator({}), "channels")
        trust.check_signed(signed, keys, purpose=signed.purpose)

    async def bundle(self, fleet: str) -> dict[str, bytes]:
        """What a node of ``fleet`` would fetch next, as ``Publisher.metadata_for`` gives it.

        Only what is here. The same dict until the timestamp changes: do not change it.
        """
        if fleet not in self._bundles:
            if len(self._bundles) > 1000:
                self._bundles.clear()
            self._bundles[fleet] = await self._compose(fleet)
        return self._bundles[fleet]

    async def read(
        self, path: str, *, at_most: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """The relay as a source, of whatever it serves."""
        served = await self.open(path, start, end)
        end = served.size if end is None else min(end, served.size)
        if end - start > at_most:
            raise Untrusted(f"{path} is longer than {at_most} bytes")
        if start < end:
            async with aclosing(served.read(start, end)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    yield piece

    async def published(self) -> Mapping[str, TargetFile]:
        """What builders signed: target path to target, as the newest timestamp here has it.

        Raises TryLater, Untrusted as ``ensure``; empty before anything was published.
        """
        await self.ensure("tuf/timestamp.json")
        bundle = self._parsed("timestamp.json", Timestamp)
        snapshot_name = f"{bundle.signed.snapshot_meta.version}.snapshot.json" if bundle else ""
        await self.ensure(f"tuf/{snapshot_name}")
        snapshot = self._parsed(snapshot_name, Snapshot)
        about = snapshot.signed.meta.get("builds.json") if snapshot else None
        if about is None:
            return {}
        if self._builds[0] != about.version:
            await self.ensure(f"tuf/{about.version}.builds.json")
            found = self._parsed(f"{about.version}.builds.json", Targets)
            self._builds = (about.version, found.signed.targets if found else {})
        return self._builds[1]

    async def _once(self, key: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work``, or wait for whoever runs it now and share how it ends."""
        while (running := self._flying.get(key)) is not None:
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                if not running.cancelled():
                    raise  # we were cancelled ourselves
        mine = asyncio.get_running_loop().create_future()
        self._flying[key] = mine
        try:
            await work()
        except Exception as error:
            mine.set_exception(error)
            mine.exception()  # nobody may be waiting; the caller gets it below
            raise
        except BaseException:
            mine.cancel()  # one of those that wait takes over
            raise
        else:
            mine.set_result(None)
        finally:
            del self._flying[key]

    # Metadata

    async def _fresh(self) -> None:
        here = self._files.read("timestamp.json") is not None
        if here and self._clock.monotonic() - self._asked < FRESH.total_seconds():
            return
        try:
            await self._once("timestamp", self._fetch_timestamp)
        except (TryLater, Untrusted, NotFound):
            if not here:
                raise
            # The hub is away or wrong: what was verified before is as good as it was.

    async def _fetch_timestamp(self) -> None:
        await self._follow_roots()
        self._take_timestamp(await self._download("timestamp.json"))
        self._asked = self._clock.monotonic()

    def _take_timestamp(self, data: bytes) -> None:
        offered = trust.parse(data, Timestamp, what="timestamp.json")
        trust.verify(self._root.signed, "timestamp", offered)
        kept = self._parsed("timestamp.json", Timestamp)
        if kept is not None and offered.signed.version <= kept.signed.version:
            if offered.signed.version < kept.signed.version:
                raise Untrusted(
                    f"timestamp goes back from {kept.signed.version} to {offered.signed.version}"
                )
            return
        self._files.write("timestamp.json", data)
        self._bundles.clear()

    async def _follow_roots(self) -> None:
        for _ in range(ROOTS_AT_ONCE):
            version = self._root.signed.version + 1
            try:
                data = await self._download(f"{version}.root.json")
            except NotFound:
                return
            await self._take(version, "root", data, {})

    async def _fetch_metadata(self, version: int, role: str) -> None:
        if role == "root" and version != self._root.signed.version + 1:
            await self._follow_roots()
            if self._files.read(f"{version}.root.json") is None:
                raise NotFound(f"there is no root {version}")
            return
        await self._take(version, role, await self._download(f"{version}.{role}.json"), {})

    async def _take(
        self, version: int, role: str, data: bytes, beside: Mapping[str, bytes]
    ) -> None:
        name = f"{version}.{role}.json"
        if role == "root":
            self._root = trust.follow_root(self._root, data)
        else:
            kind: Any = Snapshot if role == "snapshot" else Targets
            offered: Metadata[Any] = trust.parse(data, kind, what=name)
            if offered.signed.version != version:
                raise Untrusted(f"{name} holds version {offered.signed.version}")
            if role in ("snapshot", "targets"):
                trust.verify(self._root.signed, role, offered)
            else:
                trust.verify(await self._delegator(beside), role, offered)
        self._files.write(name, data)
        if role != "root" and version > 32:
            self._files.remove(f"{version - 32}.{role}.json")

    async def _delegator(self, beside: Mapping[str, bytes]) -> Targets:
        """The targets that ``beside`` carries (already verified and kept), else the current."""
        for name in beside:
            if name.endswith(".targets.json") and (kept := self._parsed(name, Targets)):
                targets: Targets = kept.signed
                return targets
        stamp = self._parsed("timestamp.json", Timestamp)
        if stamp is None:
            await self._fresh()
            stamp = self._parsed("timestamp.json", Timestamp)
        if stamp is None:
            raise TryLater("no timestamp yet")
        snapshot_name = f"{stamp.signed.snapshot_meta.version}.snapshot.json"
        await self.ensure(f"tuf/{snapshot_name}")
        snapshot = self._parsed(snapshot_name, Snapshot)
        if snapshot is None:
            raise TryLater(f"{snapshot_name} is gone")
        targets_name = f"{snapshot.signed.meta['targets.json'].version}.targets.json"
        await self.ensure(f"tuf/{targets_name}")
        current = self._parsed(targets_name, Targets)
        if current is None:
            raise TryLater(f"{targets_name} is gone")
        delegator: Targets = current.signed
        return delegator

    async def _compose(self, fleet: str) -> dict[str, bytes]:
        stamp = self._parsed("timestamp.json", Timestamp)
        if stamp is None:
            return {}
        bundle = {"timestamp.json": self._files.read("timestamp.json") or b""}
        snapshot_name = f"{stamp.signed.snapshot_meta.version}.snapshot.json"
        names = [f"{self._root.signed.version}.root.json", snapshot_name]
        snapshot = self._parsed(snapshot_name, Snapshot)
        meta = snapshot.signed.meta if snapshot else {}
        names += [f"{about.version}.{role}" for role, about in meta.items()]
        for name in names:
            data = self._files.read(name)
            if data and not (name.endswith(".builds.json") and len(data) > trust.BUNDLED_BUILDS):
                bundle[name] = data
        if "channels.json" in meta:
            channels = self._parsed(f"{meta['channels.json'].version}.channels.json", Targets)
            target = channels.signed.targets.get(channel_target(fleet)) if channels else None
            if target is not None and self._shelf.has(trust.target_digest(target)):
                bundle[channel_target(fleet)] = await self._shelf.get(
                    trust.target_digest(target), at_most=target.length
                )
        return bundle

    def _parsed(self, name: str, kind: Any) -> Metadata[Any] | None:
        data = self._files.read(name)
        return trust.parse(data, kind, what=name) if data is not None else None

    async def _download(self, name: str) -> bytes:
        chunks = self._upstream.read(f"tuf/{name}", at_most=limits.TUF_METADATA)
        return b"".join([chunk async for chunk in chunks])


async def _yielding(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _meets_its_port(cache: Cache) -> Source:
    return cache
