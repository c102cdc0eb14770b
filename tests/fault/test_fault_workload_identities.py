"""Workloads' identities and trust bundles, through a real relay and past it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from msgspec import structs
from relay_region import Node, RelayProcess, SecureHub, eventually, join_node, region

from edgewise.backends.pki.certificates import make_key
from edgewise.identity import jwt_svid
from edgewise.identity.bundles import read_bundles
from edgewise.model.errors import Forbidden, TryLater, Untrusted
from edgewise.protocol.bundles import TrustBundles
from edgewise.protocol.channel import Signed
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.sync import SyncReply, SyncRequest
from edgewise.protocol.workload import JwtWanted, WorkloadReply, WorkloadRequest, X509Wanted
from edgewise.roles.worker import InProcessWorker

TILL = "/app/shops/till"
Place = tuple[SecureHub, RelayProcess]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with region(tmp_path) as both:
        yield both


def csr() -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(make_key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


async def ask(node: Node, *, jwt: bool = False, path: str = TILL) -> WorkloadReply:
    request = WorkloadRequest((X509Wanted(path, csr()),))
    if jwt:
        request = WorkloadRequest(jwt=(JwtWanted(path, ("db",)),))
    answer = await node.client.request("POST", "/v1/workloads", encode(request))
    return decode(answer.body, WorkloadReply, what="reply")


async def works(node: Node, *, jwt: bool = False) -> bool:
    try:
        return bool(await ask(node, jwt=jwt))
    except TryLater:
        return False


async def joined(place: Place, folder: Path, name: str = "kiosk") -> Node:
    hub, relay = place
    node = await join_node(folder, name, await hub.token(region="eu", via="frankfurt"))

    async def known() -> bool:
        return bool((await relay.health())["nodes_known"])

    await eventually(known)
    return node


async def bundles_of(node: Node, has: int = 0) -> Signed | None:
    request = SyncRequest(bundles=has, hold_s=0.0)
    reply = await node.line.exchange(request, timedelta(seconds=5))
    return reply.bundles if reply is not None else None


async def test_a_relay_gives_workloads_their_identities_while_the_hub_is_away(
    place: Place, tmp_path: Path
) -> None:
    hub, _ = place
    node = await joined(place, tmp_path)
    await eventually(lambda: works(node, jwt=True))
    await hub.away()
    made = (await ask(node)).x509[0]
    assert made.spiffe_id == "spiffe://eu.acme/app/shops/till"
    assert len(made.chain) == 2
    token = (await ask(node, jwt=True)).jwt[0].token
    signed = await bundles_of(node)
    assert signed is not None
    own = read_bundles(signed).own
    assert jwt_svid.verified(token, own, "db", datetime.now(UTC)).audience == ("db",)
    with pytest.raises(Forbidden, match="may not have"):
        await ask(node, path="/app/shops/other")


async def test_a_relays_jwt_key_is_in_its_own_regions_bundle_and_in_no_other(
    place: Place, tmp_path: Path
) -> None:
    hub, _ = place
    await join_node(tmp_path, "far", await hub.token(region="us"))
    node = await joined(place, tmp_path)
    await eventually(lambda: works(node, jwt=True))
    token = (await ask(node, jwt=True)).jwt[0].token
    assert hub.bundles.current is not None
    own = hub.bundles.current.own
    kid = jwt_svid.read(token).key_id
    assert [name for name, domain in own.items() if kid in domain.jwt] == ["eu.acme"]
    stolen = structs.replace(own["us.acme"], jwt=own["eu.acme"].jwt)
    jwt_svid.verified(token, {"eu.acme": stolen}, "db", datetime.now(UTC))
    with pytest.raises(Untrusted, match="not known here"):
        jwt_svid.verified(token, {"us.acme": own["us.acme"]}, "db", datetime.now(UTC))


async def test_quarantine_stops_issuing_at_the_relay_within_one_poll(
    place: Place, tmp_path: Path
) -> None:
    hub, _ = place
    node = await joined(place, tmp_path)
    await ask(node)
    await hub.records.forget("kiosk")
    hub.board._relays.wake()

    async def refused() -> bool:
        try:
            await ask(node)
        except Forbidden:
            return True
        return False

    await eventually(refused, 3.0)


async def test_a_quarantined_relays_jwt_key_leaves_the_bundle(place: Place, tmp_path: Path) -> None:
    hub, _ = place

    def keys() -> int:
        assert hub.bundles.current is not None
        return len(hub.bundles.current.own["eu.acme"].jwt)

    await eventually(lambda: keys() == 2)
    before = hub.people.known["frankfurt"]
    hub.people.known["frankfurt"] = before.__class__(
        "frankfurt", "relay", "eu", before.key, {}, before.joined, quarantined="stolen"
    )
    await hub.bundles.membership("frankfurt", hub.people.get("frankfurt"))
    assert keys() == 1


async def test_bundles_survive_a_relays_restart_and_reach_a_node_unchanged(
    place: Place, tmp_path: Path
) -> None:
    hub, relay = place
    node = await joined(place, tmp_path)
    await eventually(lambda: works(node, jwt=True))
    await hub.away()
    await relay.stop()
    await relay.start()
    signed = await bundles_of(node)
    assert signed == hub.bundles.signed
    assert signed is not None
    assert await bundles_of(node, read_bundles(signed).sequence) is None
    assert await bundles_of(node, -1) is None


async def test_the_worker_believes_only_bundles_that_the_channels_key_signed(
    place: Place, tmp_path: Path
) -> None:
    await place[0].announce(1)
    node = await joined(place, tmp_path)
    await eventually(lambda: works(node, jwt=True))
    signed = await bundles_of(node)
    assert signed is not None
    state = tmp_path / "state"
    state.mkdir()
    (tmp_path / "kiosk").rename(state / "identity")
    worker = InProcessWorker(state)
    found = read_bundles(signed)
    news = await worker.verify(SyncReply(bundles=signed))
    assert news.bundles == found.sequence
    kept = decode((state / "identity" / "bundles.json").read_bytes(), TrustBundles, what="kept")
    assert kept == found
    forged = structs.replace(found, sequence=found.sequence + 1)
    for bad, why in (
        (Signed("bundle/1", encode(forged), signed.key_id, signed.signature), "is wrong"),
        (Signed("node-record/1", signed.payload, signed.key_id, signed.signature), "expected"),
        (Signed("bundle/1", signed.payload, "0" * 64, signed.signature), "unknown key"),
    ):
        with pytest.raises(Untrusted, match=why):
            await worker.verify(SyncReply(bundles=bad))
    older = structs.replace(found, sequence=found.sequence - 1)
    replayed = place[0].publisher.sign_bundles(encode(older))
    with pytest.raises(Untrusted, match="go back"):
        await worker.verify(SyncReply(bundles=replayed))
    assert kept == decode(
        (state / "identity" / "bundles.json").read_bytes(), TrustBundles, what="kept"
    )
