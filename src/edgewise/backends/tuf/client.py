"""A node's TUF client: python-tuf's own updater, fed from bytes that are already here.

Law: metadata that is forged, old, expired or for somebody else never becomes an order, and
never touches what is installed.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgewise.delivery import packing, trust
from edgewise.delivery.media import Offer, check_forward, check_time, open_offer
from edgewise.delivery.on_agent import read_all
from edgewise.delivery.ports import Source, Trust, Verified
from edgewise.model.errors import NeedsPerson, NotFound, TryLater, Untrusted
from edgewise.protocol import limits
from edgewise.protocol.bundles import TrustBundles
from edgewise.protocol.channel import Channel, NodeRecord, Signed
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.content import channel_target, object_path, release_target
from edgewise.protocol.media import MEDIA
from edgewise.runtime.clock import Clock
from edgewise.runtime.durable import disk_error, write_durably

T = TypeVar("T")

BUILT: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""No clock is right that shows less: this package did not exist. Moved at every release."""
ROUNDS: Final = 64
"""Files fetched for one verification; more would be 50 root rotations missed."""
LOCK_PAUSE: Final = timedelta(milliseconds=50)
LOCK_TRIES: Final = 1200
"""A minute: whoever checks holds the lock while missing metadata is fetched."""
FLEETS_REMEMBERED: Final = 8
"""Fleets whose channel sequence a node keeps when it is moved between them."""
_ROOT = re.compile(r"(\d+)\.root\.json")
_BUILDS = re.compile(r"\d+\.builds\.json")


class _Seen(msgspec.Struct):
    """What must never go backwards, kept apart from the TUF files and synced."""

    timestamp: int = 0
    clock: datetime | None = None
    """When the newest trusted timestamp was signed; never this node's own clock."""
    record: int = 0
    channels: dict[str, int] = {}
    bundles: int = 0
    media: int = 0
    """Timestamp of the newest removable media that were taken."""


class _Absent(DownloadError):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Bundle(FetcherInterface):
    """Metadata that is already here; says which file is not."""

    def __init__(self, files: Mapping[str, bytes], absent: set[str], *, has_roots: bool) -> None:
        self._files = files
        self._absent = absent
        self._has_roots = has_roots
        self._newest = max(
            (int(found[1]) for name in files if (found := _ROOT.fullmatch(name))), default=0
        )

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix("bundle:/")
        if name in self._files:
            return iter([self._files[name]])
        root = _ROOT.fullmatch(name)
        is_last_root = root is not None and self._has_roots and int(root[1]) > self._newest
        if name in self._absent or is_last_root:
            raise DownloadHTTPError(f"no {name}", 404)
        raise _Absent(name)


class NodeTrust:
    """A node's TUF client, in ``directory``, starting from the root it got when it joined."""

    def __init__(self, directory: Path, root: bytes, *, node: str, clock: Clock) -> None:
        self._directory = directory
        self._root = root
        self._node = node
        self._clock = clock
        directory.mkdir(parents=True, exist_ok=True)

    async def verify(
        self, metadata: Mapping[str, bytes], record: Signed | None, source: Source
    ) -> Verified:
        """See ``Trust.verify``."""
        async with self._alone():
            try:
                return await self._verify(metadata, record, source)
            except (Untrusted, TryLater):
                if not metadata:
                    raise
                # Once more without the hint: the source may be better than who sent it.
                return await self._verify({}, record, source)

    async def _verify(
        self, metadata: Mapping[str, bytes], record: Signed | None, source: Source
    ) -> Verified:
        seen = self._seen()
        message = record or self._kept_record()
        has_roots = any(_ROOT.fullmatch(name) for name in metadata)
        has_builds = any(_BUILDS.fullmatch(name) for name in metadata)

        def look(updater: Updater) -> tuple[NodeRecord | None, TargetFile | None]:
            updater.refresh()
            checked = self._check_record(message, seen, given=record is not None)
            if checked is None or not checked.fleet:
                return checked, None
            if has_builds:
                # Keeps it, verified: ``permission`` then needs no request of its own.
                updater.get_targetinfo(release_target("0" * 64))
            return checked, updater.get_targetinfo(channel_target(checked.fleet))

        checked, target = await self._run(dict(metadata), source, has_roots, look)
        version = self._timestamp(seen)
        channel = None
        if checked is not None and target is not None:
            channel = await self._channel(checked.fleet, target, metadata, source)
            if channel.sequence < seen.channels.get(channel.fleet, 0):
                raise Untrusted(
                    f"channel {channel.fleet} goes back from"
                    f" {seen.channels[channel.fleet]} to {channel.sequence}"
                )
        self._remember(seen, message if checked else None, checked, channel)
        return Verified(checked, channel, version)

    async def take(self, metadata: Mapping[str, bytes], record: Signed | None) -> Verified:
        """As ``verify``, for an order that a person brought on removable media.

        Never for what came over the network: whoever copied a stick could hide newer releases
        behind its long life.
        """
        async with self._alone():
            return self._take_offer(metadata, record)

    async def look_at(self, metadata: Mapping[str, bytes], record: Signed | None) -> Verified:
        """What ``take`` would return; nothing is kept. Raises as it does."""
        async with self._alone():
            return self._check_offer(metadata, record)[1]

    def _check_offer(
        self, metadata: Mapping[str, bytes], record: Signed | None
    ) -> tuple[Offer, Verified, Signed | None]:
        own = _read(self._directory / "root.json") or self._root
        offer = open_offer(metadata, own, _read(self._directory / "targets.json"))
        seen, channel = self._seen(), offer.channel
        check_time(offer.media, max(self._now(), offer.media.issued))
        message = record or self._kept_record()
        checked = self._check_record(message, seen, given=record is not None, keys=offer.keys)
        if checked is None:
            raise NeedsPerson(
                f"the hub has never said what {self._node} is, and the bundle does not either",
                hint="let it reach its hub or relay once, then export again",
            )
        if checked.fleet != channel.fleet:
            raise Untrusted(
                f"the bundle is for fleet {channel.fleet}, {self._node} is in"
                f" {checked.fleet or 'none'}"
            )
        if offer.media.timestamp < max(seen.timestamp, seen.media):
            raise Untrusted(
                f"the bundle was exported at {offer.media.timestamp}, this node has seen"
                f" {max(seen.timestamp, seen.media)}: it is too old",
                hint="export a new one",
            )
        if channel.sequence < seen.channels.get(channel.fleet, 0):
            raise Untrusted(f"channel {channel.fleet} goes back to {channel.sequence}")
        kept = _read(self._directory / "channel.json")
        if kept is not None:
            known = decode(kept, Channel, what="the kept channel", at_most=limits.CHANNEL)
            if known.fleet == channel.fleet:
                check_forward(offer, known.stable)
        return offer, Verified(checked, channel, offer.media.timestamp, True), message

    def _take_offer(self, metadata: Mapping[str, bytes], record: Signed | None) -> Verified:
        offer, verified, message = self._check_offer(metadata, record)
        wanted = re.compile(
            rf"\d+\.(root|targets)\.json|{offer.media.builds}\.builds\.json|{MEDIA}"
        )
        kept = {name: data for name, data in metadata.items() if wanted.fullmatch(name)}
        # One file, written in one step, before what has been seen moves on.
        self._write("media.json", msgspec.json.encode(kept))
        self._write("channel.json", encode(offer.channel))
        seen = self._seen()
        seen.media = offer.media.timestamp
        if seen.clock is None or offer.media.issued > seen.clock:
            seen.clock = offer.media.issued
        self._remember(seen, message, verified.record, verified.channel)
        return verified

    def _offered(self, release: str) -> int | None:
        """The length of the release, when media that are still good order it."""
        data = _read(self._directory / "media.json")
        if data is None:
            return None
        try:
            files = msgspec.json.decode(data, type=dict[str, bytes])
            own = _read(self._directory / "root.json") or self._root
            offer = open_offer(files, own, _read(self._directory / "targets.json"))
            check_time(offer.media, self._now())
        except (msgspec.DecodeError, Untrusted, TryLater):
            return None
        current = offer.media.timestamp >= self._seen().timestamp
        return offer.length if current and offer.channel.stable == release else None

    async def permission(self, release: str, source: Source) -> int:
        """See ``Trust.permission``."""
        path = release_target(release)
        async with self._alone():
            if (length := self._offered(release)) is not None:
                return length

        def look(updater: Updater) -> TargetFile | None:
            return updater.get_targetinfo(path)

        async with self._alone():
            try:
                newest = {"timestamp.json": (self._directory / "timestamp.json").read_bytes()}
                target = await self._run(newest, source, True, look)
            except (OSError, Untrusted, TryLater):
                target = await self._run({}, source, False, look)
        if target is None:
            raise Untrusted(f"no builder signed release {release[:12]}")
        if trust.target_digest(target) != release:
            raise Untrusted(f"{path} speaks of another release")
        return target.length

    def deltas(self) -> str:
        """See ``Trust.deltas``. The list only helps, so a damaged file is as good as none."""
        channel = self._kept_channel()
        return channel.deltas if channel is not None else ""

    def content_urls(self) -> tuple[str, ...]:
        """See ``Trust.content_urls``. They only help, too."""
        channel = self._kept_channel()
        return channel.content_urls if channel is not None else ()

    def _kept_channel(self) -> Channel | None:
        try:
            data = (self._directory / "channel.json").read_bytes()
            return decode(data, Channel, what="the channel", at_most=limits.CHANNEL)
        except (OSError, Untrusted):
            return None

    async def bundles(self, signed: Signed, source: Source) -> TrustBundles:
        """See ``Trust.bundles``."""
        async with self._alone():
            keys = self._channels_keys()
            if signed.key_id not in keys:
                await self._run({}, source, False, Updater.refresh)
                keys = self._channels_keys()
            trust.check_signed(signed, keys, purpose="bundle/1")
            found = decode(
                signed.payload, TrustBundles, what="trust bundles", at_most=limits.BUNDLES
            )
            seen = self._seen()
            if found.sequence < seen.bundles:
                raise Untrusted(f"trust bundles go back from {seen.bundles} to {found.sequence}")
            if found.sequence > seen.bundles:
                seen.bundles = found.sequence
                self._write("seen.json", msgspec.json.encode(seen))
            return found

    def _channels_keys(self) -> dict[str, Ed25519PublicKey]:
        data = _read(self._directory / "targets.json")
        if data is None:
            return {}
        try:
            targets = trust.parse(data, Targets, what="targets.json").signed
        except Untrusted:
            return {}  # torn by a power cut: python-tuf does not sync, and fetches it again
        return trust.delegated_keys(targets, "channels")

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """One user of the directory at a time, in this process and in others.

        A fetch asks for permission while the next channel is checked. python-tuf replaces
        ``root.json`` in two steps, and what we have seen is read, changed and written.
        """
        try:
            lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise disk_error(error, self._directory) from error
        try:
            for _ in range(LOCK_TRIES):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    await self._clock.sleep(LOCK_PAUSE)
                else:
                    break
            else:
                raise TryLater(f"another check of {self._directory} has not ended yet")
            self._sweep()
            yield
        finally:
            os.close(lock)

    def _sweep(self) -> None:
        """Files that python-tuf had not named yet when its process ended."""
        try:
            for left in self._directory.glob(f"{tempfile.gettempprefix()}*"):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, self._directory) from error

    async def _run(
        self,
        files: dict[str, bytes],
        source: Source,
        has_roots: bool,
        look: Callable[[Updater], T],
    ) -> T:
        absent: set[str] = set()
        for _ in range(ROUNDS):
            try:
                return look(self._updater(_Bundle(files, absent, has_roots=has_roots)))
            except _Absent as missing:
                name = missing.name
            except ExpiredMetadataError as error:
                raise self._stale(error) from error
            except (RepositoryError, DownloadError, ValueError) as error:
                raise Untrusted(f"release metadata does not verify: {error}") from error
            except OSError as error:
                raise disk_error(error, self._directory) from error
            try:
                files[name] = await read_all(source, f"tuf/{name}", at_most=limits.TUF_METADATA)
            except NotFound as error:
                if not _ROOT.fullmatch(name):
                    raise TryLater(f"the source has no {name} yet") from error
                absent.add(name)
        raise Untrusted(f"release metadata needs more than {ROUNDS} files")

    def _updater(self, bundle: _Bundle) -> Updater:
        config = UpdaterConfig(
            timestamp_max_length=limits.TUF_METADATA,
            snapshot_max_length=limits.TUF_METADATA,
            targets_max_length=limits.TUF_METADATA,
        )
        updater = Updater(
            str(self._directory), "bundle:/", fetcher=bundle, config=config, bootstrap=self._root
        )
        # python-tuf reads the machine's clock and has no argument for it; checked by
        # test_a_node_with_its_clock_at_1970_starts_from_what_it_knows.
        updater._trusted_set.reference_time = self._now()
        return updater

    def _now(self) -> datetime:
        """The clock floor: the newest of the clock, the build and the trusted timestamp."""
        return max(self._clock.now(), BUILT, self._seen().clock or BUILT)

    def _stale(self, error: ExpiredMetadataError) -> TryLater:
        now = self._now().isoformat(timespec="minutes")
        return TryLater(
            f"{error} at {now}, so no new release is accepted; what is installed keeps running",
            hint="check this node's clock, and that the hub runs and its relay reaches it",
        )

    def _check_record(
        self,
        message: Signed | None,
        seen: _Seen,
        *,
        given: bool,
        keys: Mapping[str, Ed25519PublicKey] | None = None,
    ) -> NodeRecord | None:
        if message is None:
            return None
        keys = self._channels_keys() if keys is None else keys
        if not given and message.key_id not in keys:
            return None  # the hub's key was replaced since: it will sign a new record
        trust.check_signed(message, keys, purpose="node-record/1")
        record = decode(message.payload, NodeRecord, what="node record", at_most=limits.RECORD)
        if record.node != self._node:
            raise Untrusted(f"a record for {record.node} was given to {self._node}")
        if record.sequence < seen.record:
            raise Untrusted(
                f"the record of {self._node} goes back from {seen.record} to {record.sequence}"
            )
        return record

    def _timestamp(self, seen: _Seen) -> int:
        data = (self._directory / "timestamp.json").read_bytes()
        stamp = trust.parse(data, Timestamp, what="timestamp.json").signed
        if stamp.version < seen.timestamp:
            raise Untrusted(f"timestamp goes back from {seen.timestamp} to {stamp.version}")
        when = trust.signed_at(stamp)
        if when is not None and (seen.clock is None or when > seen.clock):
            seen.clock = when
        seen.timestamp = stamp.version
        return stamp.version

    async def _channel(
        self, fleet: str, target: TargetFile, metadata: Mapping[str, bytes], source: Source
    ) -> Channel:
        digest = trust.target_digest(target)
        if target.length > limits.CHANNEL:
            raise Untrusted(f"channel {fleet} has {target.length} bytes")
        kept = self._directory / "channel.json"
        for data in (metadata.get(channel_target(fleet)), _read(kept)):
            if data is not None and trust.matches(target, data):
                break
        else:
            packed = await read_all(
                source, object_path(digest), at_most=packing.packed_bound(target.length)
            )
            data = packing.unpack(packed, digest, at_most=target.length)
        channel = decode(data, Channel, what=f"channel {fleet}", at_most=limits.CHANNEL)
        if channel.fleet != fleet:
            raise Untrusted(f"the channel of {channel.fleet} was given as that of {fleet}")
        if data != _read(kept):
            self._write("channel.json", data)
        return channel

    # What is kept

    def _seen(self) -> _Seen:
        data = _read(self._directory / "seen.json")
        if data is None:
            return _Seen()
        try:
            return msgspec.json.decode(data, type=_Seen)
        except msgspec.DecodeError as error:
            raise NeedsPerson(
                f"{self._directory / 'seen.json'} is damaged",
                hint="restore it, or join this node again",
            ) from error

    def _kept_record(self) -> Signed | None:
        data = _read(self._directory / "record.json")
        return decode(data, Signed, what="the kept record") if data is not None else None

    def _remember(
        self,
        seen: _Seen,
        message: Signed | None,
        record: NodeRecord | None,
        channel: Channel | None,
    ) -> None:
        if message is not None and record is not None:
            if encode(message) != _read(self._directory / "record.json"):
                self._write("record.json", encode(message))
            seen.record = record.sequence
        if channel is not None:
            seen.channels = {
                **{k: v for k, v in seen.channels.items() if k != channel.fleet},
                channel.fleet: channel.sequence,
            }
            for fleet in list(seen.channels)[:-FLEETS_REMEMBERED]:
                del seen.channels[fleet]
        data = msgspec.json.encode(seen)
        if data != _read(self._directory / "seen.json"):
            self._write("seen.json", data)

    def _write(self, name: str, data: bytes) -> None:
        try:
            write_durably(self._directory / name, data, mode=0o600)
        except OSError as error:
            raise disk_error(error, self._directory) from error


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _meets_its_port(client: NodeTrust) -> Trust:
    return client
