"""The worker: what a node does with keys, signatures and compression, in a short life.

The resident agent starts ``python -m edgewise.roles.worker STATE`` and asks it task after
task (protocol.tasks); it ends soon after the last, so the memory of cryptography, TUF and
zstd is used only while it is needed. ``InProcessWorker`` is the same without a process, for
tests and benchmarks that hold many agents.
"""

from __future__ import annotations

import asyncio
import os
import platform as machine_platform
import select
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, assert_never

import msgspec

from edgewise.backends.files import recompress
from edgewise.backends.files.node_store import NodeStore
from edgewise.backends.tuf.client import NodeTrust
from edgewise.delivery import on_agent as delivery
from edgewise.delivery.on_agent import Terms
from edgewise.delivery.ports import Source, Verified
from edgewise.host.heap import return_large_buffers
from edgewise.host.link import is_metered
from edgewise.host.tpm import open_tpm
from edgewise.identity import on_agent as identity
from edgewise.identity.on_agent import ByFactory, ByTpm, Machine, MachineIdentity
from edgewise.identity.rotation import clock_is_wrong
from edgewise.model.errors import EdgewiseError, NeedsPerson
from edgewise.model.names import Platform
from edgewise.net.client import Client, Endpoint
from edgewise.net.joining import HeldMetadata, ask_for_trust, by_identity, by_token
from edgewise.net.sources import Origin, Sources, plain_origin, urls_in
from edgewise.net.tls import client_context, small_tls_buffers
from edgewise.net.workload_line import WorkloadLine
from edgewise.protocol.attest import AttestReply
from edgewise.protocol.channel import NodeRecord, Signed
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.installed import Installed
from edgewise.protocol.join import Token
from edgewise.protocol.media import MEDIA
from edgewise.protocol.report import Receipt
from edgewise.protocol.sync import SyncReply
from edgewise.protocol.tasks import (
    LINGER_S,
    AttestTask,
    Done,
    FetchTask,
    JoinTask,
    OpenTask,
    OwnKey,
    OwnKeyTask,
    Progress,
    RenewTask,
    RetrustTask,
    Said,
    SignTask,
    SvidAsk,
    SvidIssued,
    SvidsTask,
    Task,
    VerifyTask,
    failed_of,
)
from edgewise.rollout.node_ports import Crypto, News
from edgewise.runtime.chance import Chance, SystemChance
from edgewise.runtime.clock import Clock, SystemClock

CONTENT_URLS: Final = "content-urls"
"""Below the state directory: plain file servers that are asked first, one URL a line."""


def this_platform() -> str:
    """``linux/amd64`` for the machine we run on."""
    return str(Platform.of_machine(machine_platform.system(), machine_platform.machine()))


@dataclass
class _LazySource:
    """Content over HTTP, once something is asked for: most replies carry all they need, and
    a TLS context costs as much as checking one."""

    make: Callable[[], Sources]
    _sources: Sources | None = None

    async def read(
        self, path: str, *, at_most: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        self._sources = self._sources or self.make()
        pieces = self._sources.read(path, at_most=at_most, start=start, end=end)
        async with aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                yield piece

    async def close(self) -> None:
        """Close the connections, if there are any."""
        if self._sources is not None:
            await self._sources.close()


@dataclass
class InProcessWorker:
    """``rollout.node_ports.Crypto`` for the node whose state lies in ``state``."""

    state: Path
    clock: Clock = field(default_factory=SystemClock)
    chance: Chance = field(default_factory=SystemChance)
    platform: str = field(default_factory=this_platform)

    @property
    def identity(self) -> MachineIdentity:
        """Keys and certificates."""
        return MachineIdentity(self.state / "identity", open_tpm)

    def _client(self) -> Client:
        card = self.identity.card()
        check_time = not clock_is_wrong(self.clock.now(), card.validity)
        mine = self.identity
        tls = client_context(mine.credentials, check_time=check_time, own=mine.own_key())
        # Many small files are bound by round trips, so a fetch uses more connections.
        return Client(Endpoint(card.urls, tls, card.expects), self.clock, 8)

    def _sources(self) -> Sources:
        """Plain file servers, where the node was told of any, then its relay or hub.

        Those that the channel names are for whoever talks to the hub itself: a site with a relay
        has it so that each byte crosses the line once.
        """
        plain = [plain_origin(url, self.clock) for url in urls_in(self.state / CONTENT_URLS)]
        client, hub = self._client(), self.identity.card().hub_id
        known: list[tuple[str, ...]] = []

        def announced() -> tuple[str, ...]:
            if client.peer is None or str(client.peer) != hub:
                return ()
            if not known:
                known.append(self._trust().content_urls())
            return known[0]

        return Sources((*plain, Origin("relay", client)), self.clock, announced=announced)

    @asynccontextmanager
    async def _source(self) -> AsyncIterator[Source]:
        source = _LazySource(self._sources)
        try:
            yield source
        finally:
            await source.close()

    def _trust(self) -> NodeTrust:
        return NodeTrust(
            self.state / "trust",
            self.identity.tuf_root,
            node=self.identity.card().name,
            clock=self.clock,
        )

    async def verify(self, reply: SyncReply) -> News:
        """See ``Crypto.verify``."""
        bundles = 0
        async with self._source() as source:
            checked = Verified(None, None, 0)
            if MEDIA in reply.metadata:  # the agent lets it through from its own disk only
                checked = await self._trust().take(reply.metadata, reply.record)
            elif reply.metadata or reply.record is not None or reply.bundles is None:
                checked = await self._trust().verify(reply.metadata, reply.record, source)
            if reply.bundles is not None:
                found = await self._trust().bundles(reply.bundles, source)
                identity.trust(self.identity, found)
                bundles = found.sequence
        return News(checked.record, checked.channel, bundles, checked.offline)

    async def fetch(
        self, release: str, record: NodeRecord, progress: Callable[[float], None]
    ) -> Installed:
        """See ``Crypto.fetch``."""

        def tell(done: int, total: int) -> None:
            progress(done / total if total else 1.0)

        async with self._source() as source:
            return await delivery.fetch(
                release,
                record,
                Terms(
                    self.platform,
                    tell,
                    recompression=recompress,
                    metered=is_metered(self.state),
                    clock=self.clock,
                ),
                trust=self._trust(),
                store=NodeStore(self.state),
                source=source,
            )

    async def sign(self, receipts: tuple[Receipt, ...]) -> tuple[Signed, ...]:
        """See ``Crypto.sign``."""
        return tuple(self.identity.sign("receipt/1", encode(receipt)) for receipt in receipts)

    async def open_sealed(self, sealed: str) -> dict[str, str]:
        """File names and texts of a sealed object. Raises Untrusted, NeedsPerson."""
        data = NodeStore(self.state).document(sealed)
        if data is None:
            raise NeedsPerson(
                f"the sealed object {sealed[:12]} is not in the store",
                hint="it comes back with the next release that this node fetches",
            )
        plain = self.identity.open_sealed(data)
        return decode(plain, dict[str, str], what="a secret", at_most=4 << 20)

    async def renew(self, *, rejoin: bool) -> None:
        """A new certificate, by the present one or by the enrolment key."""
        mine = self.identity
        own = None if rejoin else mine.own_key()
        doorway = by_identity(mine.card(), mine.credentials, self.clock, expired=rejoin, own=own)
        try:
            await (identity.rejoin if rejoin else identity.renew)(mine, doorway)
        finally:
            await doorway.close()

    async def own_key(self) -> OwnKey:
        """The node's own key, sealed from now on where it has a TPM.

        Raises NeedsPerson and TryLater for a sealed key that cannot be opened. A key that lies
        there in plain still serves when it cannot be sealed: an upgrade must lose no node.
        """
        mine, problem = self.identity, ""
        try:
            mine.seal()
        except EdgewiseError as error:
            if mine.credentials.sealed_key.exists():
                raise
            problem = str(error)
        return OwnKey(mine.own_key(), problem)

    async def svids(self, wanted: tuple[SvidAsk, ...]) -> tuple[SvidIssued, ...]:
        """X509-SVIDs of workloads, for keys that are made here and kept nowhere."""
        client = self._client()
        try:
            return await identity.svids(self.identity, wanted, WorkloadLine(client))
        finally:
            await client.close()

    async def retrust(self) -> bool:
        """Ask whom to trust, over a connection that proves nothing; whether that changed.

        What is answered is verified by the TUF root that came with the join. Raises Untrusted
        for bundles that the hub did not sign, or older ones than were seen.
        """
        reply = await ask_for_trust(self.identity.card().urls, self.clock)
        if reply.bundles is None:
            return False
        trusted = self._trust()
        found = await trusted.bundles(reply.bundles, HeldMetadata(reply.metadata))
        return identity.trust(self.identity, found)

    async def join(self, task: JoinTask) -> None:
        """Join with a token, a TPM or a factory certificate; repeating it is harmless."""
        parsed = Token.parse(task.token)
        doorway = await by_token(parsed, self.clock)
        by: ByTpm | ByFactory | None = None
        if task.tpm:
            by = ByTpm(task.tpm, self.chance.token(32))
        elif task.factory is not None:
            by = ByFactory(*map(Path, task.factory))
        machine = Machine("node", task.name, self.platform)
        try:
            await identity.join(self.identity, parsed, machine, doorway, by)
        finally:
            await doorway.close()

    async def attest(self) -> AttestReply:
        """Say anew what was booted."""
        mine = self.identity
        own = mine.own_key()
        doorway = by_identity(mine.card(), mine.credentials, self.clock, own=own)
        try:
            return await identity.attest(mine, doorway)
        finally:
            await doorway.close()


async def perform(task: Task, worker: InProcessWorker, say: Callable[[Said], None]) -> Any:
    """One task; returns its answer. Raises EdgewiseError."""
    match task:
        case VerifyTask(reply):
            return await worker.verify(reply)
        case FetchTask(release, record):
            return await worker.fetch(release, record, lambda share: say(Progress(share)))
        case SignTask(receipts):
            return await worker.sign(receipts)
        case OpenTask(sealed):
            return await worker.open_sealed(sealed)
        case RenewTask(rejoin):
            return await worker.renew(rejoin=rejoin)
        case RetrustTask():
            return await worker.retrust()
        case JoinTask():
            return await worker.join(task)
        case AttestTask():
            return await worker.attest()
        case SvidsTask(wanted):
            return await worker.svids(wanted)
        case OwnKeyTask():
            return await worker.own_key()
        case _:
            assert_never(task)


def main(state: Path) -> int:
    """Answer task after task, until there is none for a while or nobody is left to ask."""
    small_tls_buffers()
    return_large_buffers()
    encoder = msgspec.json.Encoder()
    worker = InProcessWorker(state)

    def say(line: Said) -> None:
        sys.stdout.buffer.write(encoder.encode(line) + b"\n")
        sys.stdout.buffer.flush()

    for line in questions(sys.stdin.fileno()):
        task: Task = msgspec.json.decode(line, type=Task)
        try:
            answer = asyncio.run(perform(task, worker, say))
        except EdgewiseError as error:
            say(failed_of(error))
        else:
            say(Done(encoder.encode(answer)))
    return 0


def questions(source: int) -> Iterator[bytes]:
    """The lines that come on a descriptor; ends with it, or LINGER_S after the last answer."""
    pending = b""
    while True:
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            yield line
        if not select.select([source], [], [], LINGER_S)[0]:
            return
        data = os.read(source, 1 << 20)
        if not data:
            return
        pending += data


def _meets_its_port(worker: InProcessWorker) -> Crypto:
    return worker


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
