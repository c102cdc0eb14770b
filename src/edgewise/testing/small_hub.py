"""A hub for one node, over real mutual TLS on loopback: real TUF, real certificates.

No rollout, no git: a test says what the channel holds. For tests and the benchmark of the
agent, where the whole hub would only be in the way.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Mapping
from pathlib import Path

import msgspec
from aiohttp import web

from edgewise.backends.files.objects import FileObjects
from edgewise.backends.files.trees import scan
from edgewise.backends.pki.authority import Authority
from edgewise.backends.pki.certificates import Hosts
from edgewise.backends.tuf.repository import FileKeys, FileMetadata
from edgewise.delivery.on_hub import Publisher
from edgewise.identity.on_agent import Machine, MachineIdentity, join
from edgewise.model.errors import Forbidden
from edgewise.model.names import Digest, Platform, SpiffeId
from edgewise.net.tls import server_context
from edgewise.protocol.attest import JoinChallenge, JoinChallengeRequest
from edgewise.protocol.channel import Bitmap, Channel, NodeRecord, Signed
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.content import (
    FilesConfig,
    NodeSettings,
    PartRef,
    ProcessApp,
    Release,
    SealedSecret,
    TreeRef,
)
from edgewise.protocol.egress import EgressRules
from edgewise.protocol.join import (
    JoinReply,
    JoinRequest,
    RejoinChallenge,
    RejoinRequest,
    RenewReply,
    RenewRequest,
    Token,
)
from edgewise.protocol.report import Observation, Receipt
from edgewise.protocol.sync import SyncReply, SyncRequest
from edgewise.runtime.clock import Clock, SystemClock
from edgewise.runtime.credentials import CredentialFiles

NODE = SpiffeId("eu.acme", "/node/n1")
HUB = SpiffeId("hub.acme", "/hub")
PLATFORM = str(Platform.of_machine(platform.system(), platform.machine()))

DocumentedPart = ProcessApp | FilesConfig | SealedSecret | EgressRules
_KINDS = {ProcessApp: "app", FilesConfig: "config", SealedSecret: "secret", EgressRules: "egress"}


class SmallHub:
    """``await SmallHub.start(directory)``, ``await hub.enrol(state)``, then ``publish``."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.directory = directory
        self.clock = clock
        self.authority = Authority.open_or_create(directory / "pki", "acme", clock)
        self.objects = FileObjects(directory / "content")
        self.publisher: Publisher
        self.url = ""
        self.observations: list[Observation] = []
        self.receipts: list[Receipt] = []
        self.sealed: dict[str, str] = {}
        self.hold_s = 60.0
        self._record = 0
        self._sequence = 0
        self._news = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @classmethod
    async def start(cls, directory: Path, clock: Clock | None = None) -> SmallHub:
        """Listen on a free loopback port."""
        hub = cls(directory, clock or SystemClock())
        tuf = directory / "content" / "tuf"
        hub.publisher = await Publisher.open(
            FileMetadata(tuf), FileKeys(directory / "keys"), hub.objects, clock=hub.clock
        )
        credentials = CredentialFiles(directory / "hub")
        hub.authority.issue_hub(credentials, Hosts(addresses=("127.0.0.1",)))
        app = web.Application(client_max_size=1 << 20)
        app.router.add_post("/v1/sync", hub._sync)
        app.router.add_static("/v1/content/", directory / "content")
        hub._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await hub._runner.setup()
        site = web.TCPSite(hub._runner, "127.0.0.1", 0, ssl_context=server_context(credentials))
        await site.start()
        port = hub._runner.addresses[0][1]
        hub.url = f"https://127.0.0.1:{port}"
        return hub

    async def close(self) -> None:
        """Stop listening; held polls break off."""
        if self._runner is not None:
            await self._runner.cleanup()

    # The node

    async def enrol(self, state: Path) -> None:
        """Give the node in ``state`` its identity."""
        token = Token((self.url,), self.authority.root_sha256, "t", "s")
        await join(
            MachineIdentity(state / "identity"), token, Machine("node", "n1", PLATFORM), self
        )

    async def join(self, request: JoinRequest) -> JoinReply:
        issued = self.authority.issue(NODE, request.csr)
        return JoinReply(
            spiffe_id=str(NODE),
            chain=issued.chain,
            roots=self.authority.roots,
            tuf_root=self.publisher.root,
            urls=(self.url,),
            hub_id=str(HUB),
            region="eu",
        )

    async def join_challenge(self, request: JoinChallengeRequest) -> JoinChallenge:
        raise Forbidden("a small hub enrols one node, once")

    async def challenge(self) -> RejoinChallenge:
        raise Forbidden("a small hub enrols one node, once")

    async def rejoin(self, request: RejoinRequest) -> JoinReply:
        raise Forbidden("a small hub enrols one node, once")

    async def renew(self, request: RenewRequest) -> RenewReply:
        raise Forbidden("a small hub enrols one node, once")

    # What it should run

    async def tree(self, directory: Path) -> TreeRef:
        """Keep a directory's files; a part names the result."""
        tree = scan(directory)
        for entry in tree.entries:
            if entry.kind == "file":
                await self.objects.put(entry.sha256, (directory / entry.path).read_bytes())
        data = encode(tree)
        digest = Digest.of(data).sha256
        await self.objects.put(digest, data)
        files = [entry for entry in tree.entries if entry.kind == "file"]
        return TreeRef(digest, sum(entry.size for entry in files), len(files))

    async def publish(
        self, *parts: DocumentedPart, settings: NodeSettings | None = None, stable: str = ""
    ) -> str:
        """Publish a release as the candidate for the node; returns its digest."""
        documents: dict[str, bytes] = {}
        refs = []
        for part in parts:
            data = encode(part)
            digest = Digest.of(data).sha256
            documents[digest] = data
            kind = _KINDS[type(part)]
            refs.append(PartRef(kind, part.name, (), {"": digest}))  # type: ignore[arg-type]
        refs.sort(key=lambda ref: (ref.kind, ref.name))
        release = encode(Release("f", tuple(refs), settings or NodeSettings()))
        digest = Digest.of(release).sha256
        await self.publisher.publish_release(digest, {**documents, digest: release})
        self._record += 1
        await self.direct(stable=stable, candidate=digest)
        return digest

    async def direct(
        self, *, stable: str, candidate: str, quarantined: tuple[str, ...] = ()
    ) -> None:
        """Publish a channel and wake the node."""
        self._sequence += 1
        channel = Channel(
            fleet="f",
            sequence=self._sequence,
            stable=stable,
            candidate=candidate,
            wave=Bitmap.of([0]).data if candidate else b"",
            quarantined=quarantined,
            rollout=f"r{self._sequence}",
        )
        await self.publisher.publish_channels([channel])
        news, self._news = self._news, asyncio.Event()
        news.set()

    def seal(self, source: str, sealed: str) -> None:
        """Name the sealed object of a secret in the node's record."""
        self.sealed[source] = sealed

    # The long poll

    async def _sync(self, call: web.Request) -> web.Response:
        request = decode(await call.read(), SyncRequest, what="a poll", at_most=1 << 20)
        if request.observation is not None:
            self.observations.append(request.observation)
        for signed in request.receipts:
            receipt = msgspec.json.decode(signed.payload, type=Receipt)
            if receipt not in self.receipts:
                self.receipts.append(receipt)
        behind = request.channel < self._sequence
        if request.hold_s and not request.receipts and not behind:
            try:
                async with asyncio.timeout(self.hold_s):
                    await self._news.wait()
            except TimeoutError:
                return web.Response(status=204)
            behind = True
        if not behind and not request.receipts:
            return web.Response(status=204)
        metadata: Mapping[str, bytes] = self.publisher.metadata_for("f") if behind else {}
        last = max((_sequence(signed) for signed in request.receipts), default=0)
        reply = SyncReply(self._signed_record(), dict(metadata), last, self.hold_s)
        return web.Response(body=encode(reply), content_type="application/json")

    def _signed_record(self) -> Signed:
        return self.publisher.sign_record(
            NodeRecord("n1", self._record, "f", 0, {}, dict(self.sealed))
        )


def _sequence(signed: Signed) -> int:
    return msgspec.json.decode(signed.payload, type=Receipt).sequence
