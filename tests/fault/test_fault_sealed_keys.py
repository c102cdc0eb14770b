"""A node with a TPM: what is on its disk opens nothing elsewhere, and no crash loses a key."""

import base64
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyrage
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.cli.agent import set_aside
from edgewise.host.notify import NotifySocket
from edgewise.host.tpm import Tpm, open_tpm
from edgewise.identity import on_agent, tpm_keys, tpm_sealing
from edgewise.identity.admission import JoinRules
from edgewise.identity.on_agent import ByTpm, Machine, MachineIdentity, join, renew
from edgewise.identity.tpm_session import SaltedSession
from edgewise.identity.tpm_structures import (
    EK_ECC,
    ENCRYPTED_OUT,
    STORAGE,
    parse_sealed,
    sealed_template,
)
from edgewise.model.documents import DeviceList
from edgewise.model.documents.joining import DeviceListSpec, DeviceRow, JoinSpec, TpmRules
from edgewise.model.documents.words import Metadata
from edgewise.model.errors import EdgewiseError, NeedsPerson, TryLater, Untrusted
from edgewise.net.tls import client_context
from edgewise.protocol.join import RenewReply
from edgewise.protocol.sync import SyncRequest
from edgewise.protocol.tasks import OwnKey
from edgewise.roles.node_certificate import Upstream
from edgewise.roles.worker import InProcessWorker
from edgewise.runtime.credentials import CredentialFiles, keys_at_rest
from edgewise.testing.clock import ManualClock
from edgewise.testing.proving import NOW, Door, ProvingHub
from edgewise.testing.swtpm import SwTpm, missing
from edgewise.testing.tpm import MemoryTpm

NODE = Machine("node", "n1")
BY = ByTpm("here", bytes(range(32)))


@pytest.fixture
def hub(tmp_path: Path) -> ProvingHub:
    return ProvingHub(tmp_path / "hub")


@pytest.fixture
def chips(tmp_path: Path) -> Iterator[Callable[[str], SwTpm]]:
    """Software TPMs by name."""
    if why := missing():
        pytest.fail(why)
    made: list[SwTpm] = []

    def start(name: str) -> SwTpm:
        made.append(SwTpm(tmp_path / name))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.stop()


async def joined(
    hub: ProvingHub, open_any: Any, by: ByTpm | None = BY, state: str = "node"
) -> MachineIdentity:
    """A node that joined with a token, and with its TPM unless ``by`` is None."""
    identity = hub.machine(f"{state}/identity", open_any)
    if by is not None:
        with open_any(by.place) as tpm, tpm.endorsement_key(EK_ECC) as ek:
            digest = hashlib.sha256(tpm_keys.spki(ek.public)).hexdigest()
        listed = DeviceList(
            api_version="edgewise.dev/v1",
            metadata=Metadata(name="kiosks"),
            spec=DeviceListSpec(devices=(DeviceRow(name="n1", ek=digest, region="eu"),)),
        )
        hub.rules = JoinRules.of(JoinSpec(tpm=TpmRules()), [listed])
    token = await hub.token() if by is None else hub.invitation
    await join(identity, token, NODE, Door(hub, identity), by)
    return identity


def content(folder: Path) -> bytes:
    """Every byte of every file."""
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def in_plain(folder: Path) -> list[str]:
    """Private keys that lie somewhere below: PEM, DER in any encoding, age."""
    data = content(folder)
    found = [w.decode() for w in (b"PRIVATE KEY", b"AGE-SECRET-KEY") if w in data.upper()]
    texts = re.findall(rb"[A-Za-z0-9+/=\s]{80,}", data)
    decoded = [base64.b64decode(text, validate=False) for text in texts if len(text) % 4 == 0]
    # The start of an EC key in PKCS#8 (RFC 5208, RFC 5915).
    start = bytes.fromhex("020100301306072a8648ce3d020106082a8648ce3d030107")
    return found + ["DER" for one in (data, *decoded) if start in one]


def fits(identity: MachineIdentity) -> bool:
    """Whether certificate and key are of one moment."""
    own = identity.own_key()
    assert own is not None
    key = serialization.load_der_private_key(own.key, None)
    return key.public_key() == x509.load_der_x509_certificate(own.chain[0]).public_key()


async def test_no_private_key_is_readable_anywhere_below_the_state(hub: ProvingHub) -> None:
    identity = await joined(hub, MemoryTpm(b"one").open)
    first = identity.own_key()
    await renew(identity, Door(hub, identity))
    assert in_plain(identity.directory.parent) == []
    assert keys_at_rest(identity.directory) == "tpm"
    assert fits(identity)
    assert identity.own_key() != first
    assert not list(identity.directory.glob("*.key"))


async def test_the_search_for_plain_keys_finds_those_of_a_node_without_a_tpm(
    hub: ProvingHub,
) -> None:
    identity = await joined(hub, None, by=None)
    assert in_plain(identity.directory.parent)[:2] == ["PRIVATE KEY", "AGE-SECRET-KEY"]
    assert keys_at_rest(identity.directory) == "file"
    assert identity.own_key() is None
    assert keys_at_rest(identity.directory / "nothing") == ""


async def test_a_copied_disk_on_another_machine_neither_speaks_nor_opens_secrets(
    hub: ProvingHub, chips: Callable[[str], SwTpm], tmp_path: Path
) -> None:
    own, thiefs = chips("own"), chips("thief")
    identity = await joined(hub, open_tpm, ByTpm(own.place, bytes(32)))
    recipient = identity.age_identity().to_public()
    secret = pyrage.encrypt(b"the secret", [recipient])
    shutil.copytree(identity.directory, tmp_path / "copy")
    copy = MachineIdentity(tmp_path / "copy", open_tpm)
    described = msgspec.json.decode((copy.directory / "tpm.json").read_bytes())
    (copy.directory / "tpm.json").write_bytes(
        msgspec.json.encode({**described, "place": thiefs.place})
    )
    attempts: list[Callable[[], Any]] = [
        copy.own_key,
        copy.age_identity,
        lambda: copy.open_sealed(secret),
        lambda: copy.sign("receipt/1", b"done"),
        lambda: client_context(copy.credentials),
    ]
    for attempt in attempts:
        with pytest.raises(NeedsPerson):
            attempt()
    with pytest.raises(EdgewiseError):
        await on_agent.rejoin(copy, Door(hub, copy))
    assert in_plain(copy.directory) == []
    # Also with the other half of the check turned off: the chip itself refuses the blob.
    sealed = msgspec.json.decode((copy.directory / "seal.json").read_bytes())
    with open_tpm(thiefs.place) as tpm, tpm.own_key(STORAGE) as other:
        sealed["parent"] = base64.b64encode(other.public.wire).decode()
    (copy.directory / "seal.json").write_bytes(msgspec.json.encode(sealed))
    with pytest.raises(NeedsPerson, match="refuses command 0x157"):
        copy.own_key()
    own.stop()
    own.start()
    assert fits(identity)
    assert identity.open_sealed(secret) == b"the secret"


async def test_a_cleared_tpm_is_said_plainly_with_the_next_move(
    hub: ProvingHub, chips: Callable[[str], SwTpm]
) -> None:
    chip = chips("own")
    identity = await joined(hub, open_tpm, ByTpm(chip.place, bytes(32)))
    chip.clear()
    for attempt in (identity.own_key, identity.age_identity):
        with pytest.raises(NeedsPerson, match="another TPM, or it was cleared") as caught:
            attempt()
        assert "edgewise node forget" in caught.value.hint
        assert "--anew" in caught.value.hint
    chip.stop()
    with pytest.raises(NeedsPerson, match="there is no TPM at"):
        identity.own_key()


class Keys:
    """A worker whose TPM is away until it is not."""

    def __init__(self, worker: InProcessWorker | None) -> None:
        self.worker = worker

    async def own_key(self) -> OwnKey:
        if self.worker is None:
            raise NeedsPerson("there is no TPM at /dev/tpmrm0")
        return await self.worker.own_key()


async def test_a_node_without_its_key_is_out_of_touch_and_heals(
    hub: ProvingHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    chip = MemoryTpm(b"one")
    identity = await joined(hub, chip.open)
    state = identity.directory.parent
    monkeypatch.setattr("edgewise.roles.worker.open_tpm", chip.open)
    keys, clock = Keys(None), ManualClock(NOW)
    line = Upstream(state, clock, keys)
    locked: list[EdgewiseError] = []
    opened: list[str] = []
    line.on_locked, line.on_opened = locked.append, opened.append
    for _ in range(2):
        with pytest.raises(NeedsPerson):
            await line.exchange(SyncRequest(), timedelta(seconds=1))
    with pytest.raises(TryLater):
        assert line.client
    line.retrusted()  # other roots meanwhile: nothing to reconnect
    with pytest.raises(NeedsPerson):
        await line.renewed()
    assert len(locked) == 2  # the second poll came too soon to start a worker again
    keys.worker = InProcessWorker(state)
    with pytest.raises(NeedsPerson):
        await line.exchange(SyncRequest(), timedelta(seconds=1))
    clock.advance(timedelta(seconds=61))
    with pytest.raises(TryLater, match=r"127\.0\.0\.1"):  # the key is open; nobody is there
        await line.exchange(SyncRequest(), timedelta(seconds=1))
    assert opened == [""]
    await line.renewed()
    assert opened == ["", ""]
    assert line.client.endpoint.urls == identity.card().urls
    line.retrusted()
    await line.close()


async def test_a_sealed_pair_serves_tls_and_one_that_does_not_fit_is_named(hub: ProvingHub) -> None:
    identity = await joined(hub, MemoryTpm(b"one").open)
    own = identity.own_key()
    assert own is not None
    client_context(identity.credentials, own=own)
    await renew(identity, Door(hub, identity))
    fresh = identity.own_key()
    assert fresh is not None
    with pytest.raises(NeedsPerson, match="does not fit its sealed key"):
        client_context(identity.credentials, own=msgspec.structs.replace(fresh, key=own.key))


# Power cuts


class Cut(BaseException):
    """The power goes off."""


class Power:
    """Goes off at the n-th change of the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        for place, name in ((os, "replace"), (os, "fsync"), (Path, "unlink")):
            monkeypatch.setattr(place, name, self._watched(getattr(place, name)))

    def _watched(self, real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.left == 0:
                raise Cut
            self.left -= 1
            return real(*arguments, **named)

        return call


async def test_a_power_cut_at_any_write_of_a_renewal_leaves_old_or_new(
    hub: ProvingHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    identity = await joined(hub, MemoryTpm(b"one").open)
    power, cuts = Power(monkeypatch), 0
    while True:
        power.left = cuts
        try:
            await renew(identity, Unlocked(hub, identity))
        except Cut:
            power.left = -1
            assert fits(identity)
            assert in_plain(identity.directory) == []
            cuts += 1
        else:
            break
    assert cuts > 8
    power.left = -1
    assert fits(identity)


class Unlocked(Door):
    """A hub whose lineages do not mind many lost answers."""

    async def renew(self, request: Any) -> Any:
        card = self._identity().card()
        issued = self.hub.authority.issue(card.id, request.csr)
        return RenewReply(issued.chain, self.hub.authority.roots)


async def made_plain(hub: ProvingHub, chip: MemoryTpm) -> MachineIdentity:
    """As a node was that joined with its TPM before keys were sealed."""
    identity = await joined(hub, chip.open)
    files, own = identity.credentials, identity.own_key()
    age = identity.age_identity()
    assert own is not None
    for path in identity.directory.glob("seal*"):
        path.unlink()
    for path in identity.directory.glob("*.sealed"):
        path.unlink()
    key = serialization.load_der_private_key(own.key, None)
    files.replace(key_pem=on_agent.key_pem(key), chain=own.chain)  # type: ignore[arg-type]
    (identity.directory / "age.key").write_text(f"{age}\n")
    return identity


async def test_an_upgraded_node_seals_its_keys_whenever_the_power_fails(
    hub: ProvingHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chip = MemoryTpm(b"one")
    before = await made_plain(hub, chip)
    (before.directory / "enrolment.key").write_text("-----BEGIN PRIVATE KEY-----")
    (before.directory / "svid.key.next").write_text("-----BEGIN PRIVATE KEY-----")
    age = str(before.age_identity())
    power, cuts, whole = Power(monkeypatch), 0, False
    while not whole:
        power.left = -1
        identity = MachineIdentity(tmp_path / f"cut {cuts}", chip.open)
        shutil.copytree(before.directory, identity.directory)
        power.left = cuts
        try:
            identity.seal()
            whole = True
        except Cut:
            cuts += 1
        power.left = -1
        own = identity.own_key()
        assert own is not None or client_context(identity.credentials)
        assert str(identity.age_identity()) == age
        assert identity.credentials.exist
        identity.seal()
        assert fits(identity)
        assert str(identity.age_identity()) == age
        assert in_plain(identity.directory) == []
    assert cuts > 12
    assert len(in_plain(before.directory)) > 2


async def test_a_node_whose_tpm_seals_nothing_keeps_its_plain_key_and_says_why(
    hub: ProvingHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    chip = MemoryTpm(b"one")
    identity = await made_plain(hub, chip)
    worker = InProcessWorker(identity.directory.parent)

    def away(place: str) -> Any:
        raise NeedsPerson(f"there is no TPM at {place}")

    monkeypatch.setattr("edgewise.roles.worker.open_tpm", away)
    assert await worker.own_key() == OwnKey(None, "there is no TPM at here")
    monkeypatch.setattr("edgewise.roles.worker.open_tpm", chip.open)
    found = await worker.own_key()
    assert (found.problem, found.svid) == ("", identity.own_key())
    monkeypatch.setattr("edgewise.roles.worker.open_tpm", away)
    with pytest.raises(NeedsPerson):
        await worker.own_key()


# A TPM that was cleared: join again


async def test_an_identity_is_set_aside_once_and_only_without_an_agent(
    hub: ProvingHub, tmp_path: Path
) -> None:
    identity = await joined(hub, MemoryTpm(b"one").open)
    state = identity.directory.parent
    (state / "releases").mkdir()
    agent = NotifySocket(state, lambda pid: None)
    agent.open()
    with pytest.raises(NeedsPerson, match="an agent runs"):
        set_aside(state)
    agent.close()
    set_aside(state)
    assert not CredentialFiles(state / "identity").exist
    assert CredentialFiles(state / "identity.before").exist
    set_aside(state)  # the join did not end: what was set aside stays
    assert CredentialFiles(state / "identity.before").exist
    assert (state / "releases").exists()


# The wire, and files that somebody changed


class Tap:
    """Sees everything that crosses the bus, and may change an answer."""

    def __init__(self, wire: Any) -> None:
        self.wire, self.seen, self.change = wire, b"", False

    def exchange(self, command: bytes) -> bytes:
        answer: bytes = self.wire.exchange(command)
        self.seen += command + answer
        if self.change and command[6:10] == b"\0\0\1\x5e":  # TPM2_Unseal
            answer = answer[:20] + bytes([answer[20] ^ 1]) + answer[21:]
        return answer

    def close(self) -> None:
        self.wire.close()


def session(key: Any) -> SaltedSession:
    return SaltedSession(key, os.urandom)


def test_a_tap_on_the_bus_sees_no_key_and_changes_none(chips: Callable[[str], SwTpm]) -> None:
    chip, secret = chips("own"), os.urandom(32)
    with open_tpm(chip.place) as tpm:
        tap = Tap(tpm._wire)
        tapped = Tpm(tap)
        sealed = tapped.seal(secret, session)
        assert tapped.unseal(sealed, session) == secret
        assert len(tap.seen) > 1000
        assert secret not in tap.seen
        tap.change = True
        with pytest.raises(Untrusted, match="changed on its way"):
            tapped.unseal(sealed, session)
        tap.change = False
        for _ in range(6):  # nothing stayed loaded
            assert tapped.unseal(sealed, session) == secret


def vault(chip: MemoryTpm | None = None) -> tpm_sealing.Vault:
    return tpm_sealing.make("here", (chip or MemoryTpm(b"one")).open, os.urandom)


VAULT = vault()
WRAPPED = VAULT.wrap("svid.key", b"a key")


def test_a_sealed_file_opens_under_its_own_name_alone() -> None:
    assert VAULT.unwrap("svid.key", WRAPPED) == b"a key"
    with pytest.raises(NeedsPerson, match=r"age\.key is damaged"):
        VAULT.unwrap("age.key", WRAPPED)
    with pytest.raises(NeedsPerson):
        vault().unwrap("svid.key", WRAPPED)  # another key of the same TPM


@given(
    at=st.integers(0, len(WRAPPED) - 1), value=st.integers(1, 255), cut=st.integers(0, len(WRAPPED))
)
@settings(max_examples=150, deadline=None)
def test_a_changed_or_cut_file_is_damaged(at: int, value: int, cut: int) -> None:
    changed = WRAPPED[:at] + bytes([WRAPPED[at] ^ value]) + WRAPPED[at + 1 :]
    for data in (changed, WRAPPED[:cut] if cut < len(WRAPPED) else WRAPPED + b"x", bytes(5000)):
        with pytest.raises(NeedsPerson, match="damaged"):
            VAULT.unwrap("svid.key", data)


@given(data=st.one_of(st.binary(max_size=80), st.binary(min_size=32, max_size=32)))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_sealed_object_of_ours_or_untrusted(data: bytes) -> None:
    assert parse_sealed(sealed_template(data.ljust(32, b"\0")[:32]))
    for bad in (data, sealed_template(data) + b"x", sealed_template(data + bytes(33))):
        with pytest.raises(Untrusted):
            parse_sealed(bad)


async def test_a_seal_file_that_was_changed_ends_in_an_error_that_is_named(hub: ProvingHub) -> None:
    identity = await joined(hub, MemoryTpm(b"one").open)
    path = identity.directory / "seal.json"
    good = path.read_bytes()
    for at in range(0, len(good), 7):
        for bad in (good[:at], good[:at] + b"~" + good[at + 1 :], good[:at] + b"A" + good[at:]):
            path.write_bytes(bad)
            with pytest.raises(EdgewiseError):
                identity.own_key()
    path.write_bytes(good)
    assert fits(identity)


@given(parameters=st.binary(max_size=60), area=st.binary(max_size=100))
@settings(max_examples=150, deadline=None)
def test_an_answer_without_the_sessions_proof_is_untrusted(parameters: bytes, area: bytes) -> None:
    with MemoryTpm(b"one").own_key(STORAGE) as key:
        made = session(key.public)
    made.begun(bytes(32))
    with pytest.raises(Untrusted):
        made.incoming(0x15E, parameters, area, ENCRYPTED_OUT)
