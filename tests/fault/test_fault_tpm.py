"""Evidence of a TPM that does not hold: each kind is refused, with a reason of its own."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from msgspec import structs

from edgewise.identity import on_agent, tpm_keys, tpm_node
from edgewise.identity.admission import JoinRules
from edgewise.identity.attestation import Unproven, binding
from edgewise.identity.names import Organisation
from edgewise.identity.on_agent import ByTpm, Machine, MachineIdentity, attest, join
from edgewise.identity.on_relay import RegionalEnroller
from edgewise.identity.signatures import signature_holds
from edgewise.identity.tpm_structures import (
    AK,
    EK_ECC,
    EK_ECC_CERTIFICATE,
    RESTRICTED,
    Public,
    enrolment_template,
    parse_public,
)
from edgewise.model.documents import DeviceList
from edgewise.model.documents.joining import (
    AttestationRules,
    DeviceListSpec,
    DeviceRow,
    JoinSpec,
    PcrReference,
    TpmRules,
)
from edgewise.model.documents.words import Metadata
from edgewise.model.errors import EdgewiseError, Forbidden, NeedsPerson, Untrusted
from edgewise.model.names import SpiffeId
from edgewise.protocol.attest import JoinChallengeRequest, TpmKeys, TpmProof
from edgewise.protocol.join import JoinRequest, RenewReply, RenewRequest
from edgewise.testing.enrolments import MemoryEnrolments
from edgewise.testing.proving import Door, ProvingHub
from edgewise.testing.swtpm import Maker
from edgewise.testing.tpm import MemoryKey, MemoryTpm

MAKER = Maker()
P256 = ec.SECP256R1()
STRANGER = Maker("Another maker")
UNNAMED = Machine("node", "")


def chip(seed: bytes = b"one", maker: Maker | None = MAKER) -> MemoryTpm:
    """A TPM with the certificates that its maker gave it."""
    made = MemoryTpm(seed)
    if maker is not None:
        with made.endorsement_key(EK_ECC) as ek:
            key = tpm_keys.key_of(ek.public)
        made.memory[EK_ECC_CERTIFICATE] = maker.ek_certificate(key) + bytes(9)
        made.memory[0x01C00100] = maker.middle_der
    return made


def ek_of(tpm: MemoryTpm) -> str:
    """As device lists have it."""
    with tpm.endorsement_key(EK_ECC) as ek:
        return hashlib.sha256(tpm_keys.spki(ek.public)).hexdigest()


def rules(*rows: DeviceRow, roots: tuple[str, ...] = (MAKER.pem,), **more: Any) -> JoinRules:
    """As a commit would bring them."""
    listed = DeviceList(
        api_version="edgewise.dev/v1",
        metadata=Metadata(name="kiosks"),
        spec=DeviceListSpec(devices=rows),
    )
    spec = JoinSpec(tpm=TpmRules(manufacturer_roots=roots), attestation=AttestationRules(**more))
    return JoinRules.of(spec, [listed])


def row(tpm: MemoryTpm, name: str = "kiosk-1") -> DeviceRow:
    return DeviceRow(name=name, ek=ek_of(tpm), region="eu", labels={"type": "pos"})


@pytest.fixture
def hub(tmp_path: Path) -> ProvingHub:
    """A hub whose repo lists the TPM of ``chip()``."""
    return ProvingHub(tmp_path, rules(row(chip())))


BY = ByTpm("here", bytes(range(32)))


async def joined(hub: ProvingHub, tpm: MemoryTpm) -> tuple[MachineIdentity, Door]:
    identity = hub.machine("state", tpm.open)
    door = Door(hub, identity)
    await join(identity, hub.invitation, UNNAMED, door, BY)
    return identity, door


async def refused(hub: ProvingHub, tpm: MemoryTpm, state: str = "state") -> str:
    """The reason why a join was refused."""
    identity = hub.machine(state, tpm.open)
    with pytest.raises(Unproven) as caught:
        await join(identity, hub.invitation, UNNAMED, Door(hub, identity), BY)
    assert not identity.credentials.exist
    return caught.value.reason


class Meddler(Door):
    """A door that changes what goes through it, and signs it again as only the machine can."""

    def __init__(self, hub: ProvingHub, identity: MachineIdentity, change: Any) -> None:
        super().__init__(hub, identity)
        self.change = change

    async def join(self, request: JoinRequest) -> Any:
        assert request.tpm is not None
        return await super().join(structs.replace(request, tpm=self.change(request.tpm)))


async def meddled(hub: ProvingHub, change: Any) -> str:
    """The reason why a join with a changed proof was refused."""
    identity = hub.machine("state", chip().open)
    with pytest.raises(Unproven) as caught:
        await join(identity, hub.invitation, UNNAMED, Meddler(hub, identity, change), BY)
    return caught.value.reason


async def test_a_listed_tpm_joins_and_the_repo_names_it(hub: ProvingHub) -> None:
    identity, _ = await joined(hub, chip())
    card = identity.card()
    assert card.spiffe_id == "spiffe://eu.acme/node/kiosk-1"
    enrolled = hub.register.enrolled["kiosk-1"]
    assert (enrolled.method, enrolled.evidence) == ("tpm", f"ek:{ek_of(chip())}")
    assert (enrolled.labels, enrolled.vouched) == ({"type": "pos"}, "CN=Test TPMs root")
    assert not (identity.directory / "enrolment.key").exists()
    assert hub.register.attested["kiosk-1"].at == hub.clock.now()


async def test_what_the_tpm_signs_holds_and_nothing_without_it_signs(hub: ProvingHub) -> None:
    identity, _ = await joined(hub, chip())
    signed = identity.sign("receipt/1", b"done")
    key = hub.register.enrolled["kiosk-1"].key
    assert signature_holds(key, signed)
    thief = MachineIdentity(identity.directory, chip(b"another").open)
    with pytest.raises(NeedsPerson, match="another enrolment key"):
        thief.sign("receipt/1", b"done")


async def test_a_lost_reply_burns_nothing(hub: ProvingHub) -> None:
    identity = hub.machine("state", chip().open)
    door = Door(hub, identity, lose=2)
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            await join(identity, hub.invitation, UNNAMED, door, BY)
    await join(identity, hub.invitation, UNNAMED, door, BY)
    assert hub.reasons == ["tpm", "repeat", "repeat"]


async def test_a_machine_with_a_new_disk_is_the_same_node_and_counted(hub: ProvingHub) -> None:
    await joined(hub, chip())
    for number in range(5):
        fresh = hub.machine(f"disk-{number}", chip().open)
        unique = hashlib.sha256(bytes([number])).digest()
        await join(fresh, hub.invitation, UNNAMED, Door(hub), ByTpm("here", unique))
        assert fresh.card().name == "kiosk-1"
    last = hub.machine("one-too-many", chip().open)
    with pytest.raises(NeedsPerson, match="may not rejoin"):
        await join(last, hub.invitation, UNNAMED, Door(hub), ByTpm("here", b"u" * 32))


async def test_an_ek_from_an_unknown_maker_is_refused(hub: ProvingHub) -> None:
    hub.rules = rules()
    assert await refused(hub, chip(b"two", STRANGER)) == "unknown-maker"


async def test_a_genuine_tpm_that_nobody_listed_is_refused(hub: ProvingHub) -> None:
    identity = hub.machine("state", chip(b"two").open)
    with pytest.raises(Forbidden, match="no device list"):
        await join(identity, hub.invitation, UNNAMED, Door(hub, identity), BY)
    assert hub.reasons == ["not-listed"]


async def test_a_tpm_without_a_certificate_needs_its_key_in_the_list(hub: ProvingHub) -> None:
    bare = chip(b"bare", None)
    assert await refused(hub, bare) == "no-certificate"
    hub.rules = rules(row(bare, "kiosk-9"), roots=())
    identity, _ = await joined(hub, bare)
    assert identity.card().name == "kiosk-9"
    assert hub.register.enrolled["kiosk-9"].vouched == "its device list"


async def test_the_certificate_of_another_tpm_is_refused(hub: ProvingHub) -> None:
    two = chip(b"two")
    two.memory[EK_ECC_CERTIFICATE] = chip(b"one").memory[EK_ECC_CERTIFICATE]
    assert await refused(hub, two) == "other-certificate"


async def test_a_certificate_for_something_else_is_refused(hub: ProvingHub) -> None:
    two = chip(b"two")
    with two.endorsement_key(EK_ECC) as ek:
        key = tpm_keys.key_of(ek.public)
    served = MAKER.ek_certificate(key, usage=ExtendedKeyUsageOID.SERVER_AUTH)
    two.memory[EK_ECC_CERTIFICATE] = served
    assert await refused(hub, two) == "wrong-kind"


async def test_a_certificate_that_is_none_is_refused(hub: ProvingHub) -> None:
    two = chip(b"two")
    two.memory[EK_ECC_CERTIFICATE] = b"\x30\x82\x01\x00" + bytes(256)
    assert await refused(hub, two) == "unreadable"


async def test_a_replayed_activation_is_refused(hub: ProvingHub) -> None:
    _identity, door = await joined(hub, chip())
    [request] = door.sent
    with pytest.raises(Unproven, match="used before") as caught:
        await hub.enroller.join(request)
    assert caught.value.reason == "stale-challenge"


async def test_an_activation_after_its_time_or_of_another_process_is_refused(
    hub: ProvingHub,
) -> None:
    def later(proof: TpmProof) -> TpmProof:
        hub.clock.advance(timedelta(minutes=3))
        return proof

    assert await meddled(hub, later) == "stale-challenge"

    def restarted(proof: TpmProof) -> TpmProof:
        hub.restart()
        return proof

    assert await meddled(hub, restarted) == "stale-challenge"


async def test_a_machine_that_cannot_open_the_credential_is_refused(hub: ProvingHub) -> None:
    def guessed(proof: TpmProof) -> TpmProof:
        return structs.replace(proof, activated=b"g" * 32)

    assert await meddled(hub, guessed) == "not-activated"


async def test_the_credential_of_another_tpm_does_not_serve(hub: ProvingHub) -> None:
    """A man in the middle who lets another TPM open a credential of its own."""
    other = chip(b"two")

    def swapped(proof: TpmProof) -> TpmProof:
        with other.attestation_key(AK) as ak:
            keys = structs.replace(proof.keys, ak=ak.public.wire)
        return structs.replace(proof, keys=keys)

    assert await meddled(hub, swapped) == "not-activated"


class Altered(MemoryTpm):
    """A TPM, or an emulation, that makes another kind of attestation key."""

    attributes = AK.attributes

    @contextmanager
    def attestation_key(self, template: Public) -> Iterator[MemoryKey]:
        changed = replace(template, attributes=self.attributes)
        with super().attestation_key(changed) as key:
            yield key


async def test_an_ak_that_is_not_restricted_is_refused(hub: ProvingHub) -> None:
    tpm = Altered(b"one", memory=chip().memory)
    tpm.attributes = AK.attributes & ~RESTRICTED
    assert await refused(hub, tpm) == "weak-attestation-key"


async def test_an_ek_that_is_of_no_template_is_refused(hub: ProvingHub) -> None:
    def odd(proof: TpmProof) -> TpmProof:
        ek = parse_public(proof.keys.ek)
        changed = replace(ek, attributes=ek.attributes & ~RESTRICTED)
        return structs.replace(proof, keys=structs.replace(proof.keys, ek=changed.wire))

    assert await meddled(hub, odd) == "odd-endorsement-key"


async def test_an_enrolment_key_from_another_tpm_is_refused(hub: ProvingHub) -> None:
    """The key and its signatures are of chip two; the evidence is of chip one."""
    one, two = chip(b"one"), chip(b"two")

    class Split(MemoryTpm):
        @contextmanager
        def own_key(self, template: Public) -> Iterator[MemoryKey]:
            with two.own_key(template) as key:
                yield key

        def certify(self, subject: Any, key: Any, extra: bytes) -> tuple[bytes, bytes]:
            with one.own_key(enrolment_template(BY.unique)) as own:
                return super().certify(own, key, extra)

    assert await refused(hub, Split(b"one", memory=one.memory)) == "other-tpm"


async def test_a_certification_by_another_tpms_key_is_refused(hub: ProvingHub) -> None:
    two = chip(b"two")

    class Forging(MemoryTpm):
        def certify(self, subject: Any, key: Any, extra: bytes) -> tuple[bytes, bytes]:
            with two.attestation_key(AK) as ak:
                return two.certify(subject, ak, extra)

    assert await refused(hub, Forging(b"one", memory=chip().memory)) == "other-tpm"


async def test_an_enrolment_key_that_could_leave_its_tpm_is_refused(hub: ProvingHub) -> None:
    def loose(proof: TpmProof) -> TpmProof:
        key = parse_public(proof.enrolment)
        return structs.replace(proof, enrolment=replace(key, attributes=0x40040).wire)

    assert await meddled(hub, loose) == "weak-enrolment-key"


async def test_another_enrolment_key_than_the_one_that_joins_is_refused(hub: ProvingHub) -> None:
    def other(proof: TpmProof) -> TpmProof:
        with chip().own_key(enrolment_template(b"o" * 32)) as key:
            return structs.replace(proof, enrolment=key.public.wire)

    assert await meddled(hub, other) == "other-enrolment-key"


def with_quote(extra: bytes | None = None, pcrs: tuple[int, ...] | None = None, **more: Any) -> Any:
    """Changes the quote of a proof to another that the same TPM made."""

    def change(proof: TpmProof) -> TpmProof:
        tpm = chip()
        wanted = pcrs if pcrs is not None else tuple(proof.quote.values)
        bound = extra if extra is not None else b"n" * 32
        quote = tpm_node.quote("here", tpm.open, bound, wanted)
        return structs.replace(proof, quote=structs.replace(quote, **more))

    return change


async def test_a_quote_with_a_wrong_nonce_is_refused(hub: ProvingHub) -> None:
    assert await meddled(hub, with_quote()) == "wrong-nonce"


async def test_a_quote_over_fewer_pcrs_is_refused(hub: ProvingHub) -> None:
    class Few(MemoryTpm):
        def quote(self, key: Any, extra: bytes, pcrs: Any) -> tuple[bytes, bytes]:
            return super().quote(key, extra, [0])

        def read_pcrs(self, pcrs: Any) -> dict[int, bytes]:
            return super().read_pcrs([0])

    assert await refused(hub, Few(b"one", memory=chip().memory)) == "wrong-selection"


async def test_values_that_do_not_add_up_to_the_quote_are_refused(hub: ProvingHub) -> None:
    def lie(proof: TpmProof) -> TpmProof:
        values = {**proof.quote.pcrs, "7": b"\7" * 32}
        return structs.replace(proof, quote=structs.replace(proof.quote, pcrs=values))

    assert await meddled(hub, lie) == "wrong-digest"


async def test_a_quote_that_nobody_signed_is_refused(hub: ProvingHub) -> None:
    def forged(proof: TpmProof) -> TpmProof:
        quote = structs.replace(proof.quote, signature=proof.certified_signature)
        return structs.replace(proof, quote=quote)

    assert await meddled(hub, forged) == "forged-quote"


async def test_a_certification_is_no_quote(hub: ProvingHub) -> None:
    def disguised(proof: TpmProof) -> TpmProof:
        quote = structs.replace(
            proof.quote, attested=proof.certified, signature=proof.certified_signature
        )
        return structs.replace(proof, quote=quote)

    assert await meddled(hub, disguised) == "forged-quote"


@pytest.mark.parametrize("cut", [0, 1, 20, 60])
async def test_a_truncated_attestation_is_refused(hub: ProvingHub, cut: int) -> None:
    def short(proof: TpmProof) -> TpmProof:
        quote = structs.replace(proof.quote, attested=proof.quote.attested[:cut])
        return structs.replace(proof, quote=quote)

    assert await meddled(hub, short) == "malformed"


async def test_an_oversized_key_is_refused(hub: ProvingHub) -> None:
    def large(proof: TpmProof) -> TpmProof:
        return structs.replace(proof, enrolment=proof.enrolment + bytes(9000))

    assert await meddled(hub, large) == "malformed"


def reference(name: str, **pcrs: bytes) -> PcrReference:
    return PcrReference(name=name, pcrs={k.removeprefix("p"): v.hex() for k, v in pcrs.items()})


async def test_a_wrong_pcr_is_refused_and_named(hub: ProvingHub) -> None:
    good = reference("image-1", p7=b"\7" * 32, p11=bytes(32))
    hub.rules = rules(row(chip()), references=(good,))
    identity = hub.machine("state", chip().open)
    with pytest.raises(Unproven, match="PCR 7 is not as in any reference") as caught:
        await join(identity, hub.invitation, UNNAMED, Door(hub, identity), BY)
    assert caught.value.reason == "wrong-pcr"
    assert "kiosk-1" not in hub.register.enrolled
    tpm = chip()
    tpm.pcrs[7] = b"\7" * 32
    identity, _ = await joined(hub, tpm)
    assert hub.register.attested["kiosk-1"].reference == "image-1"


async def test_a_relay_of_another_region_cannot_let_it_in(hub: ProvingHub) -> None:
    identity = hub.machine("state", chip().open)
    door = Door(hub, identity, via=SpiffeId.parse("spiffe://us.acme/relay/r1"))
    with pytest.raises(Forbidden, match="belongs to region eu"):
        await join(identity, hub.invitation, UNNAMED, door, BY)


async def test_one_machine_has_one_name(hub: ProvingHub) -> None:
    await joined(hub, chip())
    again = hub.machine("again", chip().open)
    token = await hub.token()
    with pytest.raises(Forbidden, match="enrolled as kiosk-1 already"):
        await join(again, token, Machine("node", "kiosk-2"), Door(hub, again), BY)
    hub.rules = rules(row(chip(), "kiosk-3"))
    with pytest.raises(Forbidden, match="enrolled as kiosk-1 already"):
        await join(again, hub.invitation, UNNAMED, Door(hub, again), BY)


async def test_a_token_beside_a_genuine_tpm_lets_it_in_under_a_name_of_its_own(
    hub: ProvingHub,
) -> None:
    tpm = chip(b"two")
    identity = hub.machine("state", tpm.open)
    token = await hub.token(labels={"ring": "lab"})
    await join(identity, token, Machine("node", "bench-1"), Door(hub, identity), BY)
    enrolled = hub.register.enrolled["bench-1"]
    assert (enrolled.method, enrolled.evidence) == ("token", f"ek:{ek_of(tpm)}")
    assert enrolled.ak
    assert enrolled.labels == {"ring": "lab"}


# Attesting again


@pytest.fixture
def measured(hub: ProvingHub) -> ProvingHub:
    """A hub that knows one good boot, quarantines after an hour, and asks once a day."""
    hub.rules = rules(row(chip()), references=(reference("image-1", p11=bytes(32)),))
    return hub


async def test_a_node_attests_again_and_again(measured: ProvingHub) -> None:
    identity, door = await joined(measured, chip())
    for _ in range(3):
        measured.clock.advance(timedelta(hours=23))
        reply = await attest(identity, door)
        assert (reply.outcome, reply.reason) == ("Trusted", "")
        assert 20 * 3600 < reply.next_s <= 24 * 3600
    assert measured.attestor.of("kiosk-1").at == measured.clock.now()


async def test_another_boot_fails_and_is_quarantined_once_the_grace_is_over(
    measured: ProvingHub,
) -> None:
    tpm = chip()
    identity, door = await joined(measured, tpm)
    tpm.extend(11, b"evil".ljust(32))
    reply = await attest(identity, door)
    assert (reply.outcome, reply.reason) == ("Failing", "wrong-pcr")
    assert reply.next_s == 900
    await measured.attestor.look()
    assert measured.register.enrolled["kiosk-1"].quarantined == ""
    measured.clock.advance(timedelta(minutes=61))
    await measured.attestor.look()
    why = measured.register.enrolled["kiosk-1"].quarantined
    assert why.startswith("attestation: wrong-pcr: PCR 11")
    assert measured.changed == ["kiosk-1"]
    with pytest.raises(Forbidden, match="PCR 11"):
        await on_agent.renew(identity, door)
    with pytest.raises(Forbidden, match="PCR 11"):
        await on_agent.rejoin(identity, door)
    again = measured.machine("again", tpm.open)
    with pytest.raises((Forbidden, Unproven)):
        await join(again, measured.invitation, UNNAMED, Door(measured, again), BY)


async def test_a_planned_image_is_known_before_it_boots_and_locks_nobody_out(
    measured: ProvingHub,
) -> None:
    tpm = chip()
    identity, door = await joined(measured, tpm)
    tpm.extend(11, b"image two".ljust(32))
    both = (reference("image-1", p11=bytes(32)), reference("image-2", p11=tpm.pcrs[11]))
    measured.rules = rules(row(tpm), references=both)
    assert (await attest(identity, door)).outcome == "Trusted"
    assert measured.attestor.of("kiosk-1").reference == "image-2"


async def test_a_reference_that_comes_late_sets_the_node_free(measured: ProvingHub) -> None:
    tpm = chip()
    identity, door = await joined(measured, tpm)
    tpm.extend(11, b"image two".ljust(32))
    await attest(identity, door)
    measured.clock.advance(timedelta(hours=2))
    await attest(identity, door)
    assert measured.register.enrolled["kiosk-1"].quarantined
    measured.rules = rules(row(tpm), references=(reference("image-2", p11=tpm.pcrs[11]),))
    assert (await attest(identity, door)).outcome == "Trusted"
    assert measured.register.enrolled["kiosk-1"].quarantined == ""
    assert measured.changed == ["kiosk-1", "kiosk-1"]


async def test_a_persons_quarantine_is_not_lifted_by_a_good_quote(measured: ProvingHub) -> None:
    identity, door = await joined(measured, chip())
    await measured.register.quarantine("kiosk-1", "stolen")
    assert (await attest(identity, door)).outcome == "Trusted"
    assert measured.register.enrolled["kiosk-1"].quarantined == "stolen"


async def test_a_policy_may_only_report(measured: ProvingHub) -> None:
    tpm = chip()
    identity, door = await joined(measured, tpm)
    good = reference("image-1", p11=bytes(32))
    measured.rules = rules(row(tpm), references=(good,), on_failure="Report")
    tpm.extend(11, b"evil".ljust(32))
    await attest(identity, door)
    measured.clock.advance(timedelta(days=9))
    await measured.attestor.look()
    assert measured.register.enrolled["kiosk-1"].quarantined == ""
    assert measured.attestor.of("kiosk-1").reason == "wrong-pcr"
    assert "wrong-pcr" in measured.reasons


async def test_a_node_that_is_heard_of_and_does_not_attest_is_quarantined(
    measured: ProvingHub,
) -> None:
    await joined(measured, chip())
    for hours in range(30):
        measured.clock.advance(timedelta(hours=1))
        measured.heard["kiosk-1"] = measured.clock.now()
        await measured.attestor.look()
        late = hours + 1 > 25
        assert bool(measured.register.enrolled["kiosk-1"].quarantined) == late
    assert "not-attested" in measured.register.enrolled["kiosk-1"].quarantined


async def test_a_node_that_is_away_is_not_late_and_has_time_when_it_is_back(
    measured: ProvingHub,
) -> None:
    identity, door = await joined(measured, chip())
    measured.heard["kiosk-1"] = measured.clock.now()
    for _ in range(40):
        measured.clock.advance(timedelta(days=1))
        await measured.attestor.look()
    measured.heard["kiosk-1"] = measured.clock.now()
    await measured.attestor.look()
    measured.clock.advance(timedelta(minutes=20))
    await measured.attestor.look()
    assert (await attest(identity, door)).outcome == "Trusted"
    measured.clock.advance(timedelta(hours=2))
    await measured.attestor.look()
    assert measured.register.enrolled["kiosk-1"].quarantined == ""


async def test_a_replayed_quote_is_refused_and_changes_nothing(measured: ProvingHub) -> None:
    identity, door = await joined(measured, chip())
    await attest(identity, door)
    before = measured.attestor.of("kiosk-1")
    with pytest.raises(Unproven, match="used before"):
        await door.attest(door.sent[-1])
    nonce = (await door.attest_challenge(on_agent.AttestChallengeRequest("kiosk-1"))).nonce
    with pytest.raises(Unproven) as caught:
        await door.attest(structs.replace(door.sent[-2], nonce=nonce))
    assert caught.value.reason == "wrong-nonce"
    assert measured.attestor.of("kiosk-1") == before


async def test_nobody_can_make_anothers_node_fail(measured: ProvingHub) -> None:
    _identity, _door = await joined(measured, chip())
    other = SpiffeId.parse("spiffe://eu.acme/node/kiosk-2")
    with pytest.raises(Forbidden, match="cannot attest for"):
        await Door(measured, via=other).attest_challenge(on_agent.AttestChallengeRequest("kiosk-1"))
    relay = Door(measured, via=SpiffeId.parse("spiffe://eu.acme/relay/r1"))
    nonce = (await relay.attest_challenge(on_agent.AttestChallengeRequest("kiosk-1"))).nonce
    bound = on_agent.attest_binding(nonce, "kiosk-1")
    pcrs = measured.rules.pcrs
    forged = tpm_node.quote("here", chip(b"two").open, bound, pcrs)
    with pytest.raises(Unproven) as caught:
        await relay.attest(on_agent.AttestRequest("kiosk-1", nonce, forged))
    assert caught.value.reason == "forged-quote"
    assert measured.attestor.of("kiosk-1").failing_since is None


async def test_a_tpm_whose_counters_went_back_fails(measured: ProvingHub) -> None:
    tpm = chip()
    tpm.resets, tpm.clock = 40, 10**9
    identity, door = await joined(measured, tpm)
    tpm.resets = 39
    reply = await attest(identity, door)
    assert (reply.outcome, reply.reason) == ("Failing", "counters-went-back")
    tpm.resets, tpm.clock = 41, 10**9 - 10**6
    assert (await attest(identity, door)).reason == "counters-went-back"
    tpm.safe = False  # a power cut: the clock may be behind by an hour
    assert (await attest(identity, door)).outcome == "Trusted"


async def test_a_stolen_disk_cannot_attest(measured: ProvingHub) -> None:
    identity, _ = await joined(measured, chip())
    thief = MachineIdentity(identity.directory, chip(b"the thief's own").open)
    with pytest.raises(Unproven) as caught:
        await attest(thief, Door(measured, thief))
    assert caught.value.reason == "forged-quote"
    with pytest.raises(EdgewiseError):
        await on_agent.rejoin(thief, Door(measured, thief))


async def test_a_stolen_disk_cannot_renew_at_the_hub_nor_at_a_relay(measured: ProvingHub) -> None:
    identity, door = await joined(measured, chip())
    await on_agent.renew(identity, door)
    thief = MachineIdentity(identity.directory)  # it has svid.key, and no TPM
    regional = RegionalEnroller(
        Organisation("acme"), "eu", measured.authority, door, MemoryEnrolments(),
        lambda name: "", measured.clock, measured.log,
        lambda name: measured.register.enrolled[name].key,
    )  # fmt: skip

    class AtRelay(Door):
        async def renew(self, request: RenewRequest) -> RenewReply:
            return await regional.renew(identity.card().id, request)

    for line in (Door(measured, thief), AtRelay(measured, thief)):
        unsigned = RenewRequest(on_agent._request(ec.generate_private_key(P256), "x"))
        with pytest.raises(Untrusted, match="not signed by"):
            await line.renew(unsigned)
    await on_agent.renew(identity, AtRelay(measured, identity))


async def test_what_is_known_survives_the_hub(measured: ProvingHub) -> None:
    tpm = chip()
    identity, door = await joined(measured, tpm)
    tpm.extend(11, b"evil".ljust(32))
    await attest(identity, door)
    measured.restart()
    await measured.attestor.load()
    measured.clock.advance(timedelta(hours=2))
    await measured.attestor.look()
    assert "wrong-pcr" in measured.register.enrolled["kiosk-1"].quarantined


async def test_a_challenge_for_keys_that_are_none_is_refused(hub: ProvingHub) -> None:
    with pytest.raises(Untrusted):
        await hub.enroller.join_challenge(JoinChallengeRequest(TpmKeys(b"junk", b"junk")))
    assert binding("n", b"k", b"c") != binding("n", b"k", b"d")
