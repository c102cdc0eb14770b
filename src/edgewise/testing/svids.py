"""An issuer of workload identities in one process: the hub's own desk, without a network."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from msgspec import structs

from edgewise.backends.pki.authority import Authority
from edgewise.backends.pki.certificates import make_key
from edgewise.backends.pki.jwt import JwtKeyFiles
from edgewise.host.svids import NodeSvids, Sources
from edgewise.identity.names import Organisation
from edgewise.identity.workloads import Desk
from edgewise.model.errors import Forbidden, TryLater
from edgewise.protocol.bundles import DomainBundle, TrustBundles
from edgewise.protocol.channel import NodeRecord
from edgewise.protocol.content import WorkloadRegistration
from edgewise.protocol.installed import Installed, InstalledIdentity
from edgewise.protocol.tasks import SvidAsk, SvidIssued
from edgewise.protocol.workload import WorkloadReply, WorkloadRequest, X509Wanted
from edgewise.runtime.clock import Clock
from edgewise.testing.chance import SeededChance
from edgewise.testing.log import ListLog

ORGANISATION = Organisation("acme")
NODE = ORGANISATION.node("eu", "kiosk-1")
FOREIGN = "partner.example"


class DeskInProcess:
    """``host.svids.Keys`` and ``JwtLine`` for one node; counts what it is asked."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.clock = clock
        self.authority = Authority.open_or_create(folder / "pki", "acme", clock)
        self.keyring = JwtKeyFiles(folder / "jwt", clock)
        self.record = NodeRecord("kiosk-1", 1, "shops")
        self.away = False
        """Nobody answers."""
        self.refuses: frozenset[str] = frozenset()
        """Paths for which it has no record yet."""
        self.requests: list[WorkloadRequest] = []
        self.bundles = TrustBundles(1, {})
        self.publish()
        self.desk = Desk(ORGANISATION, self.authority, self.keyring, lambda: self.bundles)

    def publish(self, *more_roots: bytes) -> None:
        """New bundles, with other roots beside the authority's own."""
        jwt = {key.kid: key.spki for key in self.keyring.keys("eu")}
        roots = (*self.authority.roots, *more_roots)
        foreign = DomainBundle((b"partner's root",))
        self.bundles = TrustBundles(
            self.bundles.sequence + 1,
            {"eu.acme": DomainBundle(roots, jwt), "us.acme": DomainBundle(roots)},
            {FOREIGN: foreign},
        )

    async def workloads(self, request: WorkloadRequest) -> WorkloadReply:
        """As the hub answers."""
        self.requests.append(request)
        if self.away:
            raise TryLater("the relay does not answer")
        named = {one.path for one in request.x509} | {one.path for one in request.jwt}
        refused = self.refuses & named
        if refused:
            raise Forbidden(f"kiosk-1 may not have {min(refused)}")
        return self.desk.answer(NODE, self.record, request, self.clock.now())

    async def svids(self, wanted: tuple[SvidAsk, ...]) -> tuple[SvidIssued, ...]:
        """As the worker does it."""
        keys = [make_key() for _ in wanted]
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        asked = []
        for one, key in zip(wanted, keys, strict=True):
            csr = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
            asked.append(X509Wanted(one.path, csr, one.dns, one.ttl_s))
        reply = await self.workloads(WorkloadRequest(tuple(asked)))
        return tuple(
            SvidIssued(
                svid.spiffe_id,
                svid.chain,
                key.private_bytes(
                    serialization.Encoding.DER,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                ),
                svid.not_before,
                svid.not_after,
            )
            for key, svid in zip(keys, reply.x509, strict=True)
        )


def registered(svids: NodeSvids, desk: DeskInProcess, *entries: WorkloadRegistration) -> None:
    """The node's release and its record name these, and no others."""
    granted = {entry.path: entry.dns for entry in entries}
    desk.record = structs.replace(
        desk.record, sequence=desk.record.sequence + 1, identities=granted
    )
    identities = tuple(InstalledIdentity("", entry) for entry in entries)
    svids.installed(Installed("r1", "kiosk-1", "linux/amd64", identities=identities))
    svids.recorded(desk.record)


def supply(desk: DeskInProcess, log: ListLog | None = None) -> NodeSvids:
    """The node's supply, fed by the desk. Run ``run`` beside it."""
    sources = Sources(
        keys=desk,
        line=desk,
        read_bundles=lambda: desk.bundles,
        clock=desk.clock,
        chance=SeededChance(),
        log=log or ListLog(),
    )
    return NodeSvids(sources, NODE.trust_domain)
