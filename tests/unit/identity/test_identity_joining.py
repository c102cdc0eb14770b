"""Joining, joining again, renewing and rejoining: what is let in and what is kept out."""

import shutil
from dataclasses import replace
from datetime import timedelta

import msgspec
import pytest
from identity_of import TUF_ROOT, DirectLine, Hub

from edgewise.identity.on_agent import Machine, MachineIdentity, join, rejoin, renew
from edgewise.identity.signatures import signature_holds
from edgewise.model.errors import (
    BadUsage,
    Conflict,
    EdgewiseError,
    Forbidden,
    NeedsPerson,
    NotFound,
    Untrusted,
)
from edgewise.model.names import SpiffeId
from edgewise.protocol.join import JoinReply, JoinRequest, RejoinRequest, Token

KIOSK = Machine("node", "kiosk-1", "linux/amd64")


async def joined(hub: Hub, name: str = "kiosk-1", **terms: object) -> MachineIdentity:
    identity = hub.machine(name)
    await join(identity, await hub.token(**terms), Machine("node", name), DirectLine(hub, identity))
    return identity


async def test_a_node_with_a_token_gets_its_identity_and_its_labels(hub: Hub) -> None:
    identity = await joined(hub, labels={"type": "pos"})
    card = identity.card()
    assert card.spiffe_id == "spiffe://eu.acme/node/kiosk-1"
    assert card.hub_id == "spiffe://hub.acme/hub"
    assert identity.credentials.exist
    assert identity.tuf_root == TUF_ROOT
    assert (identity.directory / "svid.key").stat().st_mode & 0o777 == 0o600
    enrolled = await hub.register.get("kiosk-1")
    assert enrolled is not None
    assert enrolled.labels == {"type": "pos"}
    assert enrolled.age_recipient.startswith("age1")
    assert enrolled.key == identity.enrolment_key().spki


@pytest.mark.parametrize("field", ["age_recipient", "name", "platform", "csr"])
async def test_a_relay_cannot_change_a_join_that_it_passes_on(hub: Hub, field: str) -> None:
    identity = hub.machine("kiosk-1")

    class Between(DirectLine):
        async def join(self, request: JoinRequest) -> JoinReply:
            other = {"age_recipient": "age1m", "name": "kiosk-2", "platform": "x", "csr": b"x"}
            return await super().join(msgspec.structs.replace(request, **{field: other[field]}))

    with pytest.raises(Untrusted, match="not signed by the enrolment key"):
        await join(identity, await hub.token(), KIOSK, Between(hub, identity))


async def test_a_lost_reply_burns_nothing_even_when_the_token_expires_meanwhile(hub: Hub) -> None:
    identity = hub.machine("kiosk-1")
    token = await hub.token()
    line = DirectLine(hub, identity, lose=2)
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            await join(identity, token, KIOSK, line)
    assert not identity.credentials.exist
    hub.clock.advance(timedelta(days=2))
    card = await join(identity, token, KIOSK, line)
    assert card.spiffe_id == "spiffe://eu.acme/node/kiosk-1"
    kept = await hub.register.token(token.identifier)
    assert kept is not None
    assert list(kept.bound.values()) == ["kiosk-1"]


async def test_a_used_token_is_nothing_for_another_key(hub: Hub) -> None:
    token = await hub.token()
    first, second = hub.machine("kiosk-1"), hub.machine("kiosk-2")
    await join(first, token, KIOSK, DirectLine(hub, first))
    with pytest.raises(Forbidden, match="taken by other keys"):
        await join(second, token, Machine("node", "kiosk-2"), DirectLine(hub, second))
    assert await hub.register.get("kiosk-2") is None
    assert "spent" in hub.reasons


async def test_a_token_for_three_lets_three_keys_in_and_no_fourth(hub: Hub) -> None:
    token = await hub.token(uses=3)
    for number in range(3):
        machine = hub.machine(f"kiosk-{number}")
        await join(machine, token, Machine("node", f"kiosk-{number}"), DirectLine(hub, machine))
    fourth = hub.machine("kiosk-9")
    with pytest.raises(Forbidden):
        await join(fourth, token, Machine("node", "kiosk-9"), DirectLine(hub, fourth))


async def test_a_name_stays_with_its_key_until_it_is_forgotten(hub: Hub) -> None:
    await joined(hub)
    thief = hub.machine("thief")
    with pytest.raises(Conflict, match="belongs to a node with another key"):
        await join(thief, await hub.token(), KIOSK, DirectLine(hub, thief))
    await hub.register.forget("kiosk-1")
    await join(thief, await hub.token(), KIOSK, DirectLine(hub, thief))


async def test_a_forgotten_node_needs_a_new_token(hub: Hub) -> None:
    identity = hub.machine("kiosk-1")
    token = await hub.token()
    await join(identity, token, KIOSK, DirectLine(hub, identity))
    await hub.register.forget("kiosk-1")
    with pytest.raises(Forbidden, match="was forgotten"):
        await join(identity, token, KIOSK, DirectLine(hub, identity))
    with pytest.raises(Forbidden, match="not enrolled"):
        await renew(identity, DirectLine(hub, identity))
    await join(identity, await hub.token(), KIOSK, DirectLine(hub, identity))


async def test_every_refusal_has_its_own_reason(hub: Hub) -> None:
    identity = hub.machine("kiosk-1")
    line = DirectLine(hub, identity)
    good = await hub.token()
    relay = replace(KIOSK, role="relay", urls=("https://127.0.0.1:2",))
    wrong_secret = msgspec.structs.replace(good, secret="guess")
    attempts: list[tuple[Token, Machine, type[EdgewiseError]]] = [
        (wrong_secret, KIOSK, Forbidden),
        (msgspec.structs.replace(good, identifier="no"), KIOSK, Forbidden),
        (good, relay, Forbidden),
    ]
    for token, machine, kind in attempts:
        with pytest.raises(kind):
            await join(identity, token, machine, line)
    short = await hub.token(ttl_s=60)
    hub.clock.advance(timedelta(seconds=60))
    with pytest.raises(Forbidden, match="expired"):
        await join(identity, short, KIOSK, line)
    hub.clock.advance(timedelta(seconds=-60))
    line.via = SpiffeId.parse("spiffe://us.acme/relay/r1")
    with pytest.raises(Forbidden, match="region"):
        await join(identity, good, KIOSK, line)
    line.via = None
    await join(identity, good, KIOSK, line)
    with pytest.raises(Forbidden, match="joined with the token as kiosk-1"):
        await join(identity, good, Machine("node", "kiosk-2"), line)
    await hub.register.quarantine("kiosk-1", "stolen")
    with pytest.raises(Forbidden, match="quarantined: stolen"):
        await join(identity, good, KIOSK, line)
    reasons = [r for r in hub.reasons if r not in ("token", "repeat")]
    assert reasons == [
        "unknown-token",
        "unknown-token",
        "wrong-role",
        "expired",
        "wrong-region",
        "other-name",
        "quarantined",
    ]


async def test_a_forged_proof_is_refused_whatever_the_token(hub: Hub) -> None:
    identity = hub.machine("kiosk-1")
    token = await hub.token()
    line = DirectLine(hub, identity)
    await join(identity, token, KIOSK, line)
    sent = line.sent[0]
    assert isinstance(sent, JoinRequest)
    other = hub.machine("other").enrolment_key().spki
    for forged in (
        msgspec.structs.replace(sent, proof=b"x"),
        msgspec.structs.replace(sent, csr=sent.csr + b"\0"),
        msgspec.structs.replace(sent, enrolment_key=other),
        msgspec.structs.replace(sent, enrolment_key=b"not a key"),
    ):
        with pytest.raises(Untrusted):
            await hub.enroller.join(forged)


@pytest.mark.parametrize("name", ["", "../etc", "A", "a.b", "x" * 64, "a\n"])
async def test_a_name_that_is_no_label_never_gets_into_a_certificate(hub: Hub, name: str) -> None:
    identity = hub.machine("m")
    with pytest.raises(BadUsage):
        await join(identity, await hub.token(), Machine("node", name), DirectLine(hub, identity))


@pytest.mark.parametrize(
    "terms",
    [
        {"region": "hub"},
        {"region": "E U"},
        {"uses": 0},
        {"uses": 10**9},
        {"ttl_s": 0.0},
        {"ttl_s": 1e12},
        {"labels": {"-bad": "x"}},
        {"labels": {f"k{i}": "v" for i in range(65)}},
    ],
)
async def test_a_token_with_senseless_terms_is_not_made(hub: Hub, terms: dict[str, object]) -> None:
    with pytest.raises(BadUsage):
        await hub.token(**terms)


async def test_a_token_through_a_relay_carries_the_relays_urls(hub: Hub) -> None:
    relay = hub.machine("relay-1")
    urls = ("https://127.0.0.1:77",)
    await join(
        relay,
        await hub.token(role="relay"),
        Machine("relay", "relay-1", urls=urls),
        DirectLine(hub, relay),
    )
    assert (await hub.token(via="relay-1")).urls == urls
    with pytest.raises(NotFound):
        await hub.token(via="nobody")
    with pytest.raises(BadUsage, match="region"):
        await hub.token(via="relay-1", region="us")


async def test_an_answer_with_another_tuf_root_or_another_root_is_not_taken(hub: Hub) -> None:
    identity = hub.machine("kiosk-1")
    token = await hub.token()

    class LyingRelay(DirectLine):
        change: dict[str, object] = {}

        async def join(self, request: JoinRequest) -> JoinReply:
            return msgspec.structs.replace(await super().join(request), **self.change)

    other = Hub(hub.directory / "other")
    line = LyingRelay(hub, identity)
    for change in (
        {"tuf_root": b"evil"},
        {"roots": other.authority.roots},
        {"spiffe_id": "spiffe://eu.acme/node/kiosk-2"},
        {"spiffe_id": "nonsense"},
        {"chain": ()},
        {"chain": (b"junk",)},
    ):
        line.change = change
        with pytest.raises(Untrusted):
            await join(identity, token, KIOSK, line)
        assert not identity.credentials.exist
    line.change = {}
    await join(identity, token, KIOSK, line)


async def test_a_renewal_changes_key_and_certificate_and_nothing_else(hub: Hub) -> None:
    identity = await joined(hub)
    before = identity.card()
    key = identity.credentials.key.read_bytes()
    hub.clock.advance(timedelta(days=23))
    after = await renew(identity, DirectLine(hub, identity))
    assert after.not_after == before.not_after + timedelta(days=23)
    assert after.serial != before.serial
    assert identity.credentials.key.read_bytes() != key
    assert (after.spiffe_id, after.urls) == (before.spiffe_id, before.urls)


async def test_a_lost_renewal_is_simply_repeated(hub: Hub) -> None:
    identity = await joined(hub)
    line = DirectLine(hub, identity, lose=3)
    for _ in range(3):
        with pytest.raises(ConnectionResetError):
            await renew(identity, line)
        hub.clock.advance(timedelta(hours=1))
    await renew(identity, line)
    hub.clock.advance(timedelta(days=20))
    await renew(identity, line)


async def test_two_machines_with_one_identity_are_noticed_and_locked(hub: Hub) -> None:
    identity = await joined(hub)
    told: list[str] = []

    async def locked(name: str) -> None:
        told.append(name)

    hub.enroller.locked = locked
    copy = MachineIdentity(hub.directory / "copy")
    shutil.copytree(identity.directory, copy.directory)
    hub.clock.advance(timedelta(days=20))
    await renew(identity, DirectLine(hub, identity))
    hub.clock.advance(timedelta(days=1))
    await renew(copy, DirectLine(hub, copy))
    hub.clock.advance(timedelta(days=20))
    with pytest.raises(Forbidden, match="two machines use this identity"):
        await renew(identity, DirectLine(hub, identity))
    with pytest.raises(Forbidden, match="quarantined"):
        await renew(copy, DirectLine(hub, copy))
    assert told == [identity.card().id.name], "so that relays and records hear of it at once"


async def test_a_node_that_was_away_for_a_year_rejoins_with_its_enrolment_key(hub: Hub) -> None:
    identity = await joined(hub)
    hub.clock.advance(timedelta(days=400))
    card = await rejoin(identity, DirectLine(hub, identity))
    assert card.validity.holds(hub.clock.now())
    await renew(identity, DirectLine(hub, identity))


async def test_a_rejoin_works_when_the_certificate_is_lost(hub: Hub) -> None:
    identity = await joined(hub)
    identity.credentials.chain.unlink()
    await rejoin(identity, DirectLine(hub, identity))
    assert identity.credentials.exist


async def test_a_replayed_rejoin_is_refused(hub: Hub) -> None:
    identity = await joined(hub)
    line = DirectLine(hub, identity)
    await rejoin(identity, line)
    sent = line.sent[-1]
    assert isinstance(sent, RejoinRequest)
    with pytest.raises(Untrusted, match="used before"):
        await hub.enroller.rejoin(sent)
    hub.restart()
    with pytest.raises(Untrusted, match="since it started"):
        await hub.enroller.rejoin(sent)


async def test_a_nonce_that_is_too_old_is_refused(hub: Hub) -> None:
    identity = await joined(hub)

    class Slow(DirectLine):
        async def rejoin(self, request: RejoinRequest) -> JoinReply:
            self.hub.clock.advance(timedelta(minutes=3))
            return await super().rejoin(request)

    with pytest.raises(Untrusted, match="expired"):
        await rejoin(identity, Slow(hub, identity))


async def test_a_rejoin_without_the_enrolment_key_is_refused(hub: Hub) -> None:
    identity = await joined(hub)
    (identity.directory / "enrolment.key").unlink()
    with pytest.raises(Untrusted, match="enrolment key"):
        await rejoin(identity, DirectLine(hub, identity))
    assert "forged-rejoin" in hub.reasons


async def test_rejoins_are_counted_and_a_person_has_to_look_at_the_sixth(hub: Hub) -> None:
    identity = await joined(hub)
    for _ in range(5):
        await rejoin(identity, DirectLine(hub, identity))
    with pytest.raises(NeedsPerson, match="may not rejoin before"):
        await rejoin(identity, DirectLine(hub, identity))
    hub.clock.advance(timedelta(days=31))
    await rejoin(identity, DirectLine(hub, identity))


async def test_a_node_that_moved_to_another_region_cannot_renew_but_rejoins(hub: Hub) -> None:
    identity = await joined(hub)
    enrolled = await hub.register.get("kiosk-1")
    assert enrolled is not None
    hub.register.enrolled["kiosk-1"] = replace(enrolled, region="us")
    with pytest.raises(Forbidden, match="region us now"):
        await renew(identity, DirectLine(hub, identity))
    card = await rejoin(identity, DirectLine(hub, identity))
    assert card.spiffe_id == "spiffe://us.acme/node/kiosk-1"


async def test_a_receipt_is_signed_by_the_enrolment_key_for_its_purpose(hub: Hub) -> None:
    identity = await joined(hub)
    signed = identity.sign("receipt/1", b"payload")
    key = identity.enrolment_key().spki
    assert signature_holds(key, signed)
    other = hub.machine("other").enrolment_key().spki
    assert not signature_holds(other, signed)
    for change in ({"payload": b"other"}, {"purpose": "bundle/1"}, {"signature": b""}):
        assert not signature_holds(key, msgspec.structs.replace(signed, **change))
