"""A region without its hub for weeks and months, played in virtual time with the real parts:
the relay's own authority, its enroller and desk, and the node's renewal rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from edgewise.backends.pki.authority import Authority, RegionalAuthority
from edgewise.backends.pki.certificates import Key, Signer, make_key
from edgewise.backends.pki.jwt import JwtKeyFiles
from edgewise.identity import jwt_svid
from edgewise.identity.names import Organisation
from edgewise.identity.on_relay import RegionalEnroller
from edgewise.identity.ports import Issued
from edgewise.identity.rotation import Validity, renew_at
from edgewise.identity.workloads import Desk
from edgewise.model.errors import EdgewiseError, Forbidden, TryLater
from edgewise.protocol.bundles import DomainBundle, TrustBundles
from edgewise.protocol.channel import NodeRecord
from edgewise.protocol.join import JoinReply, JoinRequest, RejoinRequest, RenewRequest
from edgewise.protocol.workload import JwtWanted, WorkloadRequest, X509Wanted
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.enrolments import MemoryEnrolments
from edgewise.testing.log import ListLog

ACME = Organisation("acme")
START = datetime(2026, 1, 1, tzinfo=UTC)
TILL = "/app/shops/till"
NODES = 20
HOUR = timedelta(hours=1)


def csr_of(key: Key) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


CSR = csr_of(make_key())


class NoHub:
    """The relay's line to a hub that is away."""

    async def join(self, request: JoinRequest) -> JoinReply:
        raise TryLater("the hub does not answer")

    async def challenge(self) -> object:
        raise TryLater("the hub does not answer")

    async def rejoin(self, request: RejoinRequest) -> JoinReply:
        raise TryLater("the hub does not answer")

    async def renew(self, request: RenewRequest) -> object:
        raise TryLater("the hub does not answer")


class Region:
    """Relay frankfurt and its nodes, from the moment when the hub went away."""

    def __init__(self, directory: Path) -> None:
        self.clock = ManualClock(START)
        self.hub = Authority.open_or_create(directory / "pki", "acme", self.clock)
        self.gone: set[str] = set()
        self.keyring = JwtKeyFiles(directory / "jwt", self.clock)
        jwt = {key.kid: key.spki for key in self.keyring.keys("eu")}
        self.bundles = TrustBundles(1, {"eu.acme": DomainBundle(self.hub.roots, jwt)})
        authority = self.sign_again()
        self.desk = Desk(ACME, authority, self.keyring, lambda: self.bundles)
        self.enroller = RegionalEnroller(
            ACME,
            "eu",
            authority,
            NoHub(),  # type: ignore[arg-type]
            MemoryEnrolments(),
            lambda name: "it was quarantined" if name in self.gone else "",
            self.clock,
            ListLog(),
        )
        self.chance = SeededChance(7)
        self.nodes = {f"n{i}": Node(self, f"n{i}") for i in range(NODES)}

    def sign_again(self) -> RegionalAuthority:
        """What the hub does for a relay that renews."""
        key = make_key()
        chain = self.hub.issue_regional("eu", csr_of(key), ("https://127.0.0.9:1",))
        signer = Signer(x509.load_der_x509_certificate(chain[0]), key, chain[1:])
        return RegionalAuthority(ACME, "eu", signer, self.hub.roots, self.clock)

    def back(self) -> None:
        """The hub is back: the relay gets a new CA."""
        self.enroller.issuer = self.desk.issuer = self.sign_again()

    async def live(self, duration: timedelta, tick: timedelta = HOUR) -> None:
        """Let time pass; every node does at each tick what is due."""
        end = self.clock.now() + duration
        while self.clock.now() < end:
            self.clock.advance(tick)
            for node in self.nodes.values():
                await node.tick()


class Node:
    """A node by its rules: renew at the jittered half, try again, never stop."""

    def __init__(self, region: Region, name: str) -> None:
        self.region = region
        self.id = ACME.node("eu", name)
        self.record = NodeRecord(name, 1, "shops", identities={TILL: ()})
        self.fraction = region.chance.fraction()
        self.keep(region.hub.issue(self.id, CSR))
        self.workload = Validity(START, START)
        self.renewals = 0
        self.problems: set[str] = set()

    def keep(self, issued: Issued) -> None:
        self.validity = Validity(issued.not_before, issued.not_after)
        self.serial = issued.serial

    @property
    def is_well(self) -> bool:
        now = self.region.clock.now()
        return self.validity.holds(now) and self.workload.holds(now)

    async def tick(self) -> None:
        now = self.region.clock.now()
        if now >= renew_at(self.validity, self.fraction) and self.validity.holds(now):
            await self.attempt(self.renew())
        if self.validity.holds(now):  # mTLS: without a certificate it cannot even ask
            await self.attempt(self.ask())

    async def attempt(self, work: object) -> None:
        try:
            await work  # type: ignore[misc]
        except EdgewiseError as error:
            self.problems.add(f"{type(error).__name__}: {error}")

    async def renew(self) -> None:
        reply = await self.region.enroller.renew(self.id, RenewRequest(CSR), self.serial)
        leaf = x509.load_der_x509_certificate(reply.chain[0])
        self.validity = Validity(leaf.not_valid_before_utc, leaf.not_valid_after_utc)
        self.serial = f"{leaf.serial_number:x}"
        self.renewals += 1

    async def ask(self) -> None:
        request = WorkloadRequest((X509Wanted(TILL, CSR),))
        desk, now = self.region.desk, self.region.clock.now()
        made = desk.answer(self.id, self.record, request, now).x509[0]
        self.workload = Validity(made.not_before, made.not_after)


@pytest.fixture
def region(tmp_path: Path) -> Region:
    return Region(tmp_path)


async def test_a_region_without_its_hub_for_ten_weeks_lacks_nothing(region: Region) -> None:
    for _ in range(10):
        await region.live(timedelta(days=7), tick=timedelta(minutes=59) * 6)
        for node in region.nodes.values():
            await node.tick()
            assert node.is_well
            assert node.problems == set()
    assert all(node.renewals >= 2 for node in region.nodes.values())
    token = (
        region.desk.answer(
            region.nodes["n0"].id,
            region.nodes["n0"].record,
            WorkloadRequest(jwt=(JwtWanted(TILL, ("db",)),)),
            region.clock.now(),
        )
        .jwt[0]
        .token
    )
    # A key that the hub has never heard of signs nothing: the one that it knows goes on.
    assert len(region.keyring.keys("eu")) > 1
    jwt_svid.verified(token, region.bundles.own, "db", region.clock.now())


async def test_when_the_relays_ca_ends_everything_says_why_and_heals_when_the_hub_is_back(
    region: Region,
) -> None:
    day = timedelta(days=1)
    await region.live(timedelta(days=364), tick=day)
    assert all(node.validity.holds(region.clock.now()) for node in region.nodes.values())
    await region.live(timedelta(days=3), tick=day)
    for node in region.nodes.values():
        assert not node.is_well
        # Its last certificates ended with the CA above them, and no later.
        assert node.validity.not_after <= START + timedelta(days=365)
        assert node.problems == set()
        with pytest.raises(TryLater, match="CA of this relay ended"):
            await node.renew()
        with pytest.raises(TryLater, match="CA of this relay ended"):
            await node.ask()
    region.back()
    for node in region.nodes.values():
        # Expired: it rejoins at the hub with its enrolment key (identity.on_hub).
        node.keep(region.hub.issue(node.id, CSR))
        node.problems.clear()
        await node.tick()
        assert node.is_well
        assert node.problems == set()


async def test_who_was_quarantined_before_the_hub_went_away_stays_out(region: Region) -> None:
    region.gone.add("n3")
    await region.live(timedelta(days=60), tick=timedelta(days=1))
    out = region.nodes["n3"]
    assert not out.validity.holds(region.clock.now())
    assert any(problem.startswith("Forbidden") for problem in out.problems)
    with pytest.raises(Forbidden):
        await out.renew()
    assert all(n.validity.holds(region.clock.now()) for m, n in region.nodes.items() if m != "n3")


async def test_renewals_of_a_region_that_joined_at_once_spread_and_do_not_clump(
    region: Region,
) -> None:
    """The spread that bench/identity.py measures for ten thousand nodes."""
    due = sorted(renew_at(n.validity, n.fraction) for n in region.nodes.values())
    lifetime = region.nodes["n0"].validity.lifetime
    assert due[-1] - due[0] > lifetime * 0.1
    assert due[0] >= START + lifetime * 0.39
    assert due[-1] <= START + lifetime * 0.61
