"""What delivery does on the hub: signs metadata and publishes, cheapest change first.

Laws: files are written payload, role metadata, snapshot, timestamp, each synced before the
next, so that a crash between any two leaves the old repository valid; one writer at a time;
with ``trust: builder`` the hub cannot add a release that no builder signed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, TargetFile, Targets

from edgewise.delivery import trust
from edgewise.delivery.contents import (
    Named,
    named_by_part,
    named_by_target,
    named_by_tree,
)
from edgewise.delivery.evidence import Signers
from edgewise.delivery.media import validity
from edgewise.delivery.ports import ObjectStore
from edgewise.delivery.repository import KeyLine, Repository
from edgewise.model.errors import BadUsage, Conflict, NotFound, TryLater, Untrusted
from edgewise.model.names import Digest
from edgewise.protocol import limits
from edgewise.protocol.api import Builds, BuildsUpload
from edgewise.protocol.channel import Channel, NodeRecord, Signed
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.content import (
    Artifact,
    artifact_target,
    channel_target,
    release_target,
)
from edgewise.protocol.delta import DeltaList
from edgewise.protocol.media import MEDIA, Media, MediaReply, MediaRequest
from edgewise.runtime.clock import Clock


class AwaitingBuilder(TryLater):
    """The release is compiled and waits for a builder's signature (`edgewise release sign`)."""


async def _no_list(channel: Channel) -> bytes:
    return b""


class Publisher:
    """The TUF repository of one hub. Open with ``Publisher.open``."""

    def __init__(self, repository: Repository, objects: ObjectStore, clock: Clock) -> None:
        self._tuf = repository
        self._objects = objects
        self._clock = clock
        self._lock = asyncio.Lock()
        self._channels: dict[str, bytes] = {}
        self._artifacts: dict[tuple[str, str], Artifact] = {}
        self._evidence = Signers(objects)
        self._signers: dict[tuple[str, str], frozenset[str]] = {}
        self.admit: Callable[[Artifact, frozenset[str]], None] = lambda artifact, signers: None
        """Raises Forbidden for a new artifact, with the builder keys that signed its
        provenance, that may not be published."""
        self._bundles: dict[str, dict[str, bytes]] = {}
        self._shared: dict[str, bytes] = {}
        self.listing: Callable[[Channel], Awaitable[bytes]] = _no_list
        """The encoded ``DeltaList`` that goes with a channel, or nothing. Its files lie synced
        where nodes fetch before this names them."""
        self.content_urls: tuple[str, ...] = ()
        """Named by every channel that is published from now on."""

    @classmethod
    async def open(
        cls,
        files: trust.MetadataFiles,
        keys: trust.TrustKeys,
        objects: ObjectStore,
        *,
        clock: Clock,
        mode: Literal["hub", "builder"] | None = "hub",
    ) -> Publisher:
        """Load the repository, or make it with new keys. ``mode`` None: leave it as it is.

        Raises NeedsPerson when the online key is not here, or the mode changed and the
        targets key that has to sign this is not here.
        """
        repository = Repository(files, keys, mode)
        await asyncio.to_thread(repository.open, clock.now())
        publisher = cls(repository, objects, clock)
        for path, target in repository.targets("channels").items():
            data = await objects.get(trust.target_digest(target), at_most=limits.CHANNEL)
            publisher._channels[path.removeprefix("channels/").removesuffix(".json")] = data
        await publisher._load_artifacts()
        publisher._changed()
        return publisher

    # What others read

    @property
    def mode(self) -> Literal["hub", "builder"]:
        """Whether the hub signs builds itself."""
        return self._tuf.mode

    @property
    def channels_key(self) -> str:
        """Identifier of the key that signs channels and node records."""
        return self._tuf.online_id

    @property
    def root(self) -> bytes:
        """The newest root metadata: what a node gets when it joins."""
        return self._tuf.bytes["root"]

    def metadata_for(self, fleet: str) -> dict[str, bytes]:
        """What a node of ``fleet`` would fetch next, for ``SyncReply.metadata``.

        The same dict until something is published: do not change it. It carries the newest
        root (so that nobody has to ask for a newer one) and ``builds`` only when it is at
        most ``trust.BUNDLED_BUILDS`` bytes.
        """
        bundle = self._bundles.get(fleet)
        if bundle is None:
            bundle = dict(self._shared)
            if fleet in self._channels:
                bundle[channel_target(fleet)] = self._channels[fleet]
            self._bundles[fleet] = bundle
        return bundle

    def trust_metadata(self) -> dict[str, bytes]:
        """What leads a node from the root that it joined with to the present channels key."""
        metadata = {"timestamp.json": self._tuf.bytes["timestamp"]}
        for role in ("snapshot", "targets"):
            metadata[f"{self._tuf.roles[role].signed.version}.{role}.json"] = self._tuf.bytes[role]
        return metadata | self._tuf.root_chain()

    def _changed(self) -> None:
        """Compose anew what every reply carries; in the loop, never while it is written."""
        shared = {"timestamp.json": self._tuf.bytes["timestamp"]}
        for role in ("root", "snapshot", "targets", "channels", "builds"):
            data = self._tuf.bytes.get(role)
            if data and (role != "builds" or len(data) <= trust.BUNDLED_BUILDS):
                shared[f"{self._tuf.roles[role].signed.version}.{role}.json"] = data
        self._shared = shared
        self._bundles.clear()

    def fleets(self) -> tuple[str, ...]:
        """Fleets with a published channel."""
        return tuple(self._channels)

    def channel(self, fleet: str) -> Channel | None:
        """The published channel."""
        data = self._channels.get(fleet)
        return decode(data, Channel, what=fleet, at_most=limits.CHANNEL) if data else None

    def artifacts(self) -> Mapping[tuple[str, str], Artifact]:
        """(name, version) to every published artifact."""
        return self._artifacts

    def signers(self) -> Mapping[tuple[str, str], frozenset[str]]:
        """(name, version) of each artifact with provenance to the builder keys that signed it."""
        return self._signers

    def published(self) -> Mapping[str, TargetFile]:
        """What builders signed: target path to target."""
        found: Mapping[str, TargetFile] = self._tuf.targets("builds")
        return found

    def builds(self) -> Builds:
        """``builds`` as it stands: what a builder signs the successor of."""
        keys = trust.delegated_keys(self._tuf.roles["targets"].signed, "builds")
        return Builds(self._tuf.bytes.get("builds", b""), tuple(sorted(keys)), self._tuf.mode)

    def is_signed(self, release: str) -> bool:
        """Whether a builder signed this release."""
        return release_target(release) in self._tuf.targets("builds")

    def sign_record(self, record: NodeRecord) -> Signed:
        """The record, signed with the channels key (about 0.1 ms)."""
        return self._tuf.sign("node-record/1", encode(record))

    def sign_bundles(self, payload: bytes) -> Signed:
        """Encoded trust bundles, signed with the channels key."""
        return self._tuf.sign("bundle/1", payload)

    async def media_deltas(self, request: MediaRequest) -> str:
        """The digest of a list of those deltas and packs that a bundle shall carry, for
        ``media`` to name; empty where none of them has been made.

        It is a list of its own: what the channel's names and the bundle does not have would be
        looked for in vain.
        """
        wanted = {*request.bases} | ({""} if request.packs else set())
        channel = self.channel(request.fleet)
        if channel is None or not wanted:
            return ""
        stable = request.release or channel.stable
        data = await self.listing(msgspec.structs.replace(channel, stable=stable, candidate=""))
        if not data:
            return ""
        listed = decode(data, DeltaList, what="list of deltas", at_most=limits.DELTA_LIST)
        refs = tuple(ref for ref in listed.deltas if ref.base in wanted)
        if not refs:
            return ""
        chosen = encode(DeltaList(refs))
        await self._objects.put(Digest.of(chosen).sha256, chosen)
        return Digest.of(chosen).sha256

    def media(self, request: MediaRequest, deltas: str = "") -> MediaReply:
        """An order for removable media, with what it takes to verify it; ``deltas`` is what
        ``media_deltas`` says.

        Raises NotFound for a fleet or release that there is not, Conflict for a release in
        quarantine or one that would lead back, BadUsage for a time that is too long.
        """
        valid = validity(request.valid_s)
        channel = self.channel(request.fleet)
        release = request.release or (channel.stable if channel else "")
        if channel is None or not release:
            raise NotFound(
                f"fleet {request.fleet} has no release", hint="`edgewise status` lists fleets"
            )
        listed = self._tuf.targets("builds")
        if release_target(release) not in listed:
            raise NotFound(
                f"no builder signed release {release[:12]}",
                hint="give the whole digest: `edgewise status -o json` has it",
            )
        if release in channel.quarantined:
            raise Conflict(f"release {release[:12]} is in quarantine: no node may start it")
        stable = listed.get(release_target(channel.stable))
        if stable and trust.added_in(listed[release_target(release)]) < trust.added_in(stable):
            raise Conflict(
                f"release {release[:12]} is older than {channel.stable[:12]}, which"
                f" {request.fleet} runs: bundles only lead forward",
                hint="leave --release out, or roll back first",
            )
        now = self._clock.now().replace(microsecond=0)
        order = Media(
            channel=msgspec.structs.replace(
                channel, stable=release, candidate="", wave=b"", stay=b"", rollout="", deltas=deltas
            ),
            timestamp=self._tuf.roles["timestamp"].signed.version,
            builds=self._tuf.roles["builds"].signed.version,
            builds_sha256=Digest.of(self._tuf.bytes["builds"]).sha256,
            issued=now,
            expires=now + valid,
        )
        metadata = {
            **self.metadata_for(request.fleet),
            **self._tuf.root_chain(),
            f"{order.builds}.builds.json": self._tuf.bytes["builds"],
            MEDIA: encode(self._tuf.sign("media/1", encode(order))),
        }
        return MediaReply(release, order.expires, metadata, deltas=deltas)

    def key_lines(self) -> tuple[KeyLine, ...]:
        """The signing keys and what should be done about them."""
        return self._tuf.key_lines(self._clock.now())

    # What changes the repository

    async def put_objects(self, objects: Mapping[str, bytes]) -> None:
        """Keep small documents. Raises Untrusted for one that is not what its name says."""
        missing = await self._objects.missing(objects)
        await self._objects.put_all({sha256: objects[sha256] for sha256 in missing})

    async def document(self, sha256: str, *, at_most: int) -> bytes:
        """A published object. Raises NotFound."""
        return await self._objects.get(sha256, at_most=at_most)

    async def publish_release(self, release: str, documents: Mapping[str, bytes]) -> None:
        """Keep a release's documents and make it known. Idempotent.

        Raises AwaitingBuilder with ``trust: builder`` until a builder has signed it.
        """
        await self.publish_releases({release: documents})

    async def publish_releases(
        self, releases: Mapping[str, Mapping[str, bytes]], *, builder_only: bool = False
    ) -> None:
        """``publish_release`` of several with one signature.

        ``builder_only``: the fleet repo says ``trust: builder``, so the hub signs nothing,
        whatever its own mode.
        """
        for documents in releases.values():
            await self.put_objects(documents)
        async with self._lock:
            waiting = [release for release in releases if not self.is_signed(release)]
            if not waiting:
                return
            if builder_only or self._tuf.mode == "builder":
                raise AwaitingBuilder(
                    f"release {waiting[0][:12]} waits for a builder's signature",
                    hint="run `edgewise release sign` in CI for this commit",
                )
            await self._add_builds({release_target(r): releases[r][r] for r in waiting})

    async def publish_channels(self, channels: Sequence[Channel]) -> None:
        """Make channels known, all with one signature. Repeating one changes nothing, also
        when there are more deltas or other URLs by now: those go with the next sequence.

        ``Channel.deltas`` and ``content_urls`` are filled in here. Raises Conflict for a channel
        that is older than the published one.
        """
        async with self._lock:
            changed: dict[str, bytes] = {}
            for channel in channels:
                before = self.channel(channel.fleet)
                if before is not None and _same(before, channel):
                    continue
                if before is not None and before.sequence >= channel.sequence:
                    raise Conflict(
                        f"channel {channel.fleet} is at {before.sequence} already,"
                        f" {channel.sequence} comes too late"
                    )
                names = await self.listing(channel)
                digest = Digest.of(names).sha256 if names else ""
                if names:
                    await self._objects.put(digest, names)
                filled = msgspec.structs.replace(
                    channel, deltas=digest, content_urls=self.content_urls
                )
                changed[channel.fleet] = encode(filled)
            if not changed:
                return
            targets = dict(self._tuf.targets("channels"))
            for fleet, data in changed.items():
                await self._objects.put(Digest.of(data).sha256, data)
                path = channel_target(fleet)
                targets[path] = trust.target_of(path, data)
            await self._commit({"channels": self._tuf.next_channels(targets, self._clock.now())})
            self._channels.update(changed)
            self._changed()

    async def accept_builds(self, upload: BuildsUpload) -> None:
        """Take what a builder signed; with ``trust: hub`` and no metadata, sign it ourselves.

        Raises Untrusted for a wrong signature, Conflict when it is not the next version or
        changes or drops what it must not, BadUsage with what is missing.
        """
        documents = {Digest.of(data).sha256: data for data in upload.documents}
        if not upload.metadata and self._tuf.mode == "hub":
            await self._accept_unsigned(documents)
            return
        offered = trust.parse(upload.metadata, Targets, what="builds.json")
        trust.verify(self._tuf.roles["targets"].signed, "builds", offered)
        async with self._lock:
            self._check_successor(offered.signed)
            await self.put_objects(documents)
            before = self._tuf.targets("builds")
            new = {
                path: (trust.target_digest(target), target.length)
                for path, target in offered.signed.targets.items()
                if path not in before
            }
            await self._require_objects(new)
            await self._commit({"builds": offered}, {"builds": upload.metadata})
            await self._load_artifacts()

    async def refresh(self) -> tuple[str, ...]:
        """Sign again what has used up a good part of its life; call it daily or oftener."""
        async with self._lock:
            done = await asyncio.to_thread(self._tuf.refresh, self._clock.now())
            self._changed()
            return done

    async def set_builders(self, keys: Sequence[Key]) -> None:
        """Say who may sign builds. Raises NeedsPerson when the targets key is offline."""
        async with self._lock:
            await asyncio.to_thread(self._tuf.set_builders, keys, self._clock.now())
            self._signers = await self._evidence.of(self._artifacts, self._tuf.builder_keys())
            self._changed()

    async def add_builders(self, keys: Sequence[Key]) -> None:
        """Let these sign builds as well. Without a new one among them nothing is written."""
        known = self._tuf.builder_keys()
        ids = {key.keyid for key in known}
        new = [key for key in keys if key.keyid not in ids]
        if new:
            await self.set_builders([*known, *new])

    async def remove_builder(self, identifier: str) -> None:
        """Trust a builder no longer. Raises NotFound, BadUsage for the hub's own in its mode.

        When it signed the newest ``builds``, nodes take nothing new until another builder
        signs the next one.
        """
        known = self._tuf.builder_keys()
        gone = [key for key in known if trust.key_id(key).startswith(identifier)]
        if len(gone) != 1 or len(identifier) < 8:
            raise NotFound(
                f"{identifier!r} names {len(gone)} of {len(known)} builder keys",
                hint="`edgewise key ls` lists them; give at least 8 digits",
            )
        if self.mode == "hub" and len(known) == 1:
            raise BadUsage(
                "this is the last key that may sign builds",
                hint="add another first, or start the hub with --trust builder",
            )
        await self.set_builders([key for key in known if key not in gone])

    async def rotate(self, key: Literal["root", "online"]) -> None:
        """Replace a signing key; nodes follow by themselves.

        After ``online`` every node record has to be signed again (``sign_record``).
        Raises NeedsPerson when the root key (for online: or the targets key) is offline.
        """
        turn = self._tuf.rotate_root if key == "root" else self._tuf.rotate_online
        async with self._lock:
            await asyncio.to_thread(turn, self._clock.now())
            self._changed()

    async def reachable(self) -> frozenset[str]:
        """Every object that a published target names, for ``FileObjects.collect``."""
        found: set[str] = set()
        for role in ("builds", "channels"):
            for path, target in self._tuf.targets(role).items():
                digest = trust.target_digest(target)
                found.add(digest)
                if role == "builds":
                    content = await self._objects.get(digest, at_most=target.length)
                    found |= await self._walk(named_by_target(path, content), lacking=None)
        channels = [self.channel(fleet) for fleet in self._channels]
        found |= {channel.deltas for channel in channels if channel and channel.deltas}
        return frozenset(found)

    # Checks

    def _check_successor(self, offered: Targets) -> None:
        current = self._tuf.roles.get("builds")
        expected = (current.signed.version if current else 0) + 1
        if offered.version != expected:
            raise Conflict(
                f"builds is at version {expected - 1}, so {offered.version} does not follow",
                hint="fetch builds again, add to it, and sign that",
            )
        if offered.expires <= self._clock.now():
            raise Untrusted(f"builds {offered.version} expired on {offered.expires:%Y-%m-%d}")
        for path, target in self._tuf.targets("builds").items():
            kept = offered.targets.get(path)
            if kept is None and path in {release_target(r) for r in self._in_use()}:
                raise Conflict(f"{path} is what a fleet runs; it cannot be dropped yet")
            if kept is not None and kept.hashes != target.hashes:
                raise Conflict(
                    f"{path} is published with other content", hint="give it a new version"
                )

    async def _require_objects(self, new: Mapping[str, tuple[str, int]]) -> None:
        lacking: set[str] = set()
        for path, (digest, length) in new.items():
            if path.startswith("releases/") and path != release_target(digest):
                raise Untrusted(f"{path} names object {digest[:12]}")
            try:
                content = await self._objects.get(digest, at_most=length)
            except NotFound:
                lacking.add(digest)
                continue
            await self._walk(named_by_target(path, content), lacking=lacking)
            if path.startswith("artifacts/"):
                artifact = decode(content, Artifact, what=path, at_most=limits.PART)
                with contextlib.suppress(NotFound):  # it is among ``lacking`` then
                    signers = await self._evidence.check(artifact, self._tuf.builder_keys())
                    self.admit(artifact, signers)
        if lacking:
            some = ", ".join(sorted(d[:12] for d in lacking)[:20])
            raise BadUsage(
                f"{len(lacking)} objects that builds names are not here: {some}",
                hint="upload them first: `edgewise artifact publish` does",
            )

    async def _walk(self, named: Named, *, lacking: set[str] | None) -> set[str]:
        """Everything below; what is absent goes to ``lacking``, or raises NotFound."""
        found: set[str] = set()
        trees, files = set(named.trees), set(named.files)
        for kind, digests in (("part", set(named.parts)), ("tree", trees)):
            absent = await self._objects.missing(digests) if lacking is not None else frozenset()
            for digest in digests - absent:
                bound = limits.PART if kind == "part" else limits.TREE
                content = await self._objects.get(digest, at_most=bound)
                below = named_by_part(content) if kind == "part" else named_by_tree(content)
                trees |= below.trees
                files |= below.files
            if lacking is not None:
                lacking |= absent
            found |= digests
        if lacking is not None:
            lacking |= await self._objects.missing(files)
        return found | trees | files

    async def _accept_unsigned(self, documents: Mapping[str, bytes]) -> None:
        add: dict[str, bytes] = {}
        for data in documents.values():
            try:
                artifact = decode(data, Artifact, what="artifact", at_most=limits.PART)
            except Untrusted:
                continue  # a tree document, which the artifact names
            add[artifact_target(artifact.name, artifact.version)] = data
        if not add:
            raise BadUsage("the upload holds no artifact document")
        async with self._lock:
            before = self._tuf.targets("builds")
            for path, data in add.items():
                if path in before and not trust.matches(before[path], data):
                    raise Conflict(
                        f"{path} is published with other content", hint="give it a new version"
                    )
            await self.put_objects(documents)
            await self._require_objects(
                {path: (Digest.of(data).sha256, len(data)) for path, data in add.items()}
            )
            add = {path: data for path, data in add.items() if path not in before}
            if add:
                await self._add_builds(add)
                await self._load_artifacts()

    async def _load_artifacts(self) -> None:
        found: dict[tuple[str, str], Artifact] = {}
        for path, target in self._tuf.targets("builds").items():
            if path.startswith("artifacts/"):
                digest = trust.target_digest(target)
                data = await self._objects.get(digest, at_most=target.length)
                artifact = decode(data, Artifact, what=path, at_most=limits.PART)
                found[(artifact.name, artifact.version)] = artifact
        self._artifacts = found
        self._signers = await self._evidence.of(found, self._tuf.builder_keys())

    def _in_use(self) -> frozenset[str]:
        channels = [self.channel(fleet) for fleet in self._channels]
        named = {digest for c in channels if c for digest in (c.stable, c.candidate)}
        return frozenset(named - {""})

    async def _add_builds(self, add: Mapping[str, bytes]) -> None:
        current = self._tuf.roles.get("builds")
        payload = trust.successor_of_builds(
            current.signed if current else None, self._clock.now(), add, self._in_use()
        )
        builder = self._tuf.offline_key("builder")
        await self._commit({"builds": trust.signed(payload, [builder])})

    async def _commit(
        self, changed: Mapping[str, Metadata[Any]], as_signed: Mapping[str, bytes] | None = None
    ) -> None:
        await asyncio.to_thread(self._tuf.commit, changed, self._clock.now(), as_signed)
        self._changed()


def _same(one: Channel, other: Channel) -> bool:
    """Whether two channels say the same, apart from what the publisher fills in."""
    left = {"deltas": "", "content_urls": ()}
    return msgspec.structs.replace(one, **left) == msgspec.structs.replace(other, **left)
