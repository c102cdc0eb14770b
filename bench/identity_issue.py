"""What issuing costs end to end, and how a region's renewals spread. Called by identity.py."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from edgewise.backends.pki.authority import Authority, RegionalAuthority
from edgewise.backends.pki.certificates import Key, Signer, make_key
from edgewise.backends.pki.jwt import JwtKeyFiles
from edgewise.identity.names import Organisation
from edgewise.identity.on_relay import RegionalEnroller
from edgewise.identity.rotation import Validity, renew_at
from edgewise.identity.workloads import Desk
from edgewise.protocol.bundles import DomainBundle, TrustBundles
from edgewise.protocol.channel import NodeRecord
from edgewise.protocol.codec import encode
from edgewise.protocol.join import RenewRequest
from edgewise.protocol.workload import JwtWanted, WorkloadReply, WorkloadRequest, X509Wanted
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.enrolments import MemoryEnrolments
from edgewise.testing.log import ListLog

ACME = Organisation("acme")
TILL = "/app/shops/till"
SVIDS, TOKENS = 6000, 6000
NODES = 10_000
LIVES = 3
START = datetime(2026, 1, 1, tzinfo=UTC)


def csr_of(key: Key) -> bytes:
    """As a node makes it."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def relay_of(hub: Authority, clock: ManualClock) -> RegionalAuthority:
    """A relay's CA, as the hub signed it."""
    key = make_key()
    chain = hub.issue_regional("eu", csr_of(key), ("https://relay.example",))
    signer = Signer(x509.load_der_x509_certificate(chain[0]), key, chain[1:])
    return RegionalAuthority(ACME, "eu", signer, hub.roots, clock)


def issuing(directory: Path) -> dict[str, float]:
    """Requests as bytes to answers as bytes: decode, authorise, parse, sign, encode. One core."""
    clock = ManualClock(START)
    hub = Authority.open_or_create(directory / "pki", "acme", clock)
    keyring = JwtKeyFiles(directory / "jwt", clock)
    jwt = {key.kid: key.spki for key in keyring.keys("eu")}
    bundles = TrustBundles(1, {"eu.acme": DomainBundle(hub.roots, jwt)})
    desk = Desk(ACME, relay_of(hub, clock), keyring, lambda: bundles)
    csrs = [csr_of(make_key()) for _ in range(50)]
    decoder = msgspec.json.Decoder(WorkloadRequest)

    def run(bodies: list[bytes], count: int) -> float:
        began = time.process_time()
        for number in range(count):
            name = f"n{number}"  # nodes of their own: none of them asks too often
            record = NodeRecord(name, 1, "shops", identities={TILL: ()})
            request = decoder.decode(bodies[number % len(bodies)])
            reply: WorkloadReply = desk.answer(ACME.node("eu", name), record, request, clock.now())
            encode(reply)
        return count / (time.process_time() - began)

    x509_bodies = [encode(WorkloadRequest((X509Wanted(TILL, csr),))) for csr in csrs]
    jwt_bodies = [encode(WorkloadRequest(jwt=(JwtWanted(TILL, ("db",)),)))]
    return {
        "svids_per_core_s": run(x509_bodies, SVIDS),
        "jwt_svids_per_core_s": run(jwt_bodies, TOKENS),
    }


async def renewals(directory: Path) -> dict[str, float]:
    """A region whose nodes all joined in the same minute, over three lifetimes of virtual time.

    Every renewal is done by the relay's enroller, with its own CA, on the manual clock.
    """
    clock, chance = ManualClock(START), SeededChance(1)
    hub = Authority.open_or_create(directory / "pki", "acme", clock)
    relay: Any = relay_of(hub, clock)
    lineages = MemoryEnrolments()
    nothing: Any = None
    enroller = RegionalEnroller(
        ACME, "eu", relay, nothing, lineages, lambda name: "", clock, ListLog()
    )
    csr = csr_of(make_key())
    # A node draws its moment once, when its agent starts (roles.node_certificate).
    fractions = [chance.fraction() for _ in range(NODES)]
    serials = [""] * NODES
    due: list[tuple[datetime, int]] = []
    first = hub.issue(ACME.node("eu", "n"), csr)
    for number in range(NODES):
        begun = Validity(first.not_before, first.not_after)
        heapq.heappush(due, (renew_at(begun, fractions[number]), number))
    at: Counter[int] = Counter()
    began = time.process_time()
    for _ in range(NODES * LIVES):
        moment, number = heapq.heappop(due)
        clock.advance(max(moment - clock.now(), moment - moment))
        node = ACME.node("eu", f"n{number}")
        await enroller.renew(node, RenewRequest(csr), serials[number])
        serials[number] = lineages.lineages[node.name].issued
        at[int((moment - START).total_seconds())] += 1
        validity = Validity(clock.now(), clock.now() + begun.lifetime)
        heapq.heappush(due, (renew_at(validity, fractions[number]), number))
    spent = time.process_time() - began
    return {
        "renewals_peak_per_s": float(max(at.values())),
        "renewals_mean_per_s": sum(at.values()) / (max(at) - min(at)),
        "renewals_per_core_s": NODES * LIVES / spent,
    }


def figures(directory: Path) -> dict[str, float]:
    """Both."""
    found = issuing(directory / "issuing")
    return found | asyncio.run(renewals(directory / "renewals"))
