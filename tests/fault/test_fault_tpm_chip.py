"""A real (software) TPM joins and attests; and answers of a TPM that are none."""

import hashlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgewise.host.tpm import LARGEST, Tpm, TpmRefused, open_tpm
from edgewise.identity import tpm_keys
from edgewise.identity.admission import JoinRules
from edgewise.identity.attestation import Unproven
from edgewise.identity.on_agent import ByTpm, Machine, attest, join
from edgewise.identity.signatures import signature_holds
from edgewise.identity.tpm_structures import AK, EK_ECC, EK_RSA, Public
from edgewise.model.documents import DeviceList
from edgewise.model.documents.joining import (
    DeviceListSpec,
    DeviceRow,
    JoinSpec,
    TpmRules,
)
from edgewise.model.documents.words import Metadata
from edgewise.model.errors import EdgewiseError, NeedsPerson, TryLater, Untrusted
from edgewise.testing.proving import Door, ProvingHub
from edgewise.testing.swtpm import Maker, SwTpm, missing

MAKER = Maker()


@pytest.fixture
def chip(tmp_path: Path) -> Iterator[SwTpm]:
    if why := missing():
        pytest.fail(why)
    made = SwTpm(tmp_path / "tpm")
    made.start()
    yield made
    made.stop()


def rules_for(chip: SwTpm, template: Public) -> JoinRules:
    digest = hashlib.sha256(tpm_keys.spki(chip.ek(template))).hexdigest()
    devices = DeviceList(
        api_version="edgewise.dev/v1",
        metadata=Metadata(name="all"),
        spec=DeviceListSpec(devices=(DeviceRow(name="kiosk-1", ek=digest, region="eu"),)),
    )
    return JoinRules.of(JoinSpec(tpm=TpmRules(manufacturer_roots=(MAKER.pem,))), [devices])


@pytest.mark.parametrize("template", [EK_ECC, EK_RSA], ids=["ecc", "rsa"])
async def test_a_node_with_a_real_tpm_joins_signs_and_attests_across_a_power_cut(
    chip: SwTpm, tmp_path: Path, template: Public
) -> None:
    MAKER.certify(chip, template)
    hub = ProvingHub(tmp_path, rules_for(chip, template))
    identity = hub.machine("state", open_tpm)
    door = Door(hub, identity)
    by = ByTpm(chip.place, bytes(range(32)))
    await join(identity, hub.invitation, Machine("node", ""), door, by)
    assert hub.register.enrolled["kiosk-1"].vouched == "CN=Test TPMs root"
    chip.stop()
    chip.start()
    signed = identity.sign("receipt/1", b"done")
    assert signature_holds(hub.register.enrolled["kiosk-1"].key, signed)
    assert (await attest(identity, door)).outcome == "Trusted"
    kept = hub.attestor.of("kiosk-1")
    assert kept.counters is not None
    assert kept.counters.resets == 2


async def test_a_cleared_tpm_says_so_and_joins_again_as_the_same_node(
    chip: SwTpm, tmp_path: Path
) -> None:
    MAKER.certify(chip)
    hub = ProvingHub(tmp_path, rules_for(chip, EK_ECC))
    identity = hub.machine("state", open_tpm)
    by = ByTpm(chip.place, bytes(range(32)))
    await join(identity, hub.invitation, Machine("node", ""), Door(hub, identity), by)
    chip.clear()
    with pytest.raises(NeedsPerson, match="makes another enrolment key"):
        identity.sign("receipt/1", b"done")
    fresh = hub.machine("fresh", open_tpm)
    await join(fresh, hub.invitation, Machine("node", ""), Door(hub, fresh), by)
    assert fresh.card().name == "kiosk-1"


async def test_a_real_tpm_of_an_unknown_maker_is_refused(chip: SwTpm, tmp_path: Path) -> None:
    Maker("Nobody").certify(chip, EK_RSA)
    hub = ProvingHub(tmp_path, JoinRules.of(rules_for(chip, EK_ECC).spec, []))
    identity = hub.machine("state", open_tpm)
    by = ByTpm(chip.place, bytes(range(32)))
    with pytest.raises(Unproven) as caught:
        await join(identity, hub.invitation, Machine("node", ""), Door(hub, identity), by)
    assert caught.value.reason == "unknown-maker"


def test_a_tpm_that_refuses_is_quoted_with_its_code(chip: SwTpm) -> None:
    with open_tpm(chip.place) as tpm, pytest.raises(TpmRefused, match="response code 0x18b"):
        tpm.read_nv(0x01C0000A)


def test_no_tpm_is_an_error_with_the_next_move(tmp_path: Path) -> None:
    for place in (str(tmp_path / "tpmrm0"), f"unix:{tmp_path / 'none'}"):
        with pytest.raises(NeedsPerson, match="there is no TPM") as caught, open_tpm(place):
            pass
        assert "--tpm-device" in caught.value.hint
    with pytest.raises(NeedsPerson, match="is no TPM"), open_tpm("udp:here:1"):
        pass


class Canned:
    """A wire that gives these answers, whatever is asked."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked = 0

    def exchange(self, command: bytes) -> bytes:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def close(self) -> None:
        """Nothing is open."""


def answer(body: bytes, *, tag: int = 0x8001, code: int = 0, size: int | None = None) -> bytes:
    length = 10 + len(body) if size is None else size
    return struct.pack(">HII", tag, length, code) + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x01\0\0",
        answer(b"", size=11),
        answer(bytes(LARGEST)),
        answer(b"\0" * 8),
        answer(b"\0\0\0\0\0\0\0\0\0\0\xff\xff", tag=0x8002),
        answer(b"", tag=0x00C4),
    ],
    ids=["nothing", "cut", "wrong-size", "oversized", "short-body", "short-list", "odd-tag"],
)
def test_an_answer_that_is_none_is_refused(data: bytes) -> None:
    tpm = Tpm(Canned(data))
    with pytest.raises(Untrusted):
        tpm.nv_indexes(range(0x01C00000, 0x01C00200))
    with pytest.raises(EdgewiseError), tpm.attestation_key(AK):
        pass


def test_a_certificate_that_never_ends_is_not_read_for_ever() -> None:
    public = struct.pack(">IHIH", 0x01C0000A, 0x000B, 0, 0) + struct.pack(">H", 60_000)
    tpm = Tpm(Canned(answer(struct.pack(">H", len(public)) + public + b"\0\0")))
    with pytest.raises(Untrusted, match="60000 bytes"):
        tpm.read_nv(0x01C0000A)


def test_a_busy_tpm_is_asked_again_and_not_for_ever() -> None:
    good = answer(b"\0" + struct.pack(">II", 1, 0))
    wire = Canned(answer(b"", code=0x922), answer(b"", code=0x908), good)
    assert Tpm(wire).nv_indexes(range(0, 1)) == ()
    assert wire.asked == 3
    stuck = Canned(answer(b"", code=0x922))
    with pytest.raises(TryLater, match="too busy"):
        Tpm(stuck).nv_indexes(range(0, 1))
    assert stuck.asked == 10


@pytest.mark.parametrize("code", [0x9A2, 0x98E, 0x1A2])
def test_a_password_on_the_tpm_is_named(code: int) -> None:
    with (
        pytest.raises(NeedsPerson, match="asks for a password"),
        Tpm(Canned(answer(b"", code=code))).attestation_key(AK),
    ):
        pass


def test_a_simulator_that_hangs_up_or_lies_about_the_length_is_refused(tmp_path: Path) -> None:
    for said, error in ((b"\x80\x01\0\0\0\x20", TryLater), (answer(b"", size=1 << 30), Untrusted)):
        path = tmp_path / f"s{len(said)}"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()

            def once(server: socket.socket = server, said: bytes = said) -> None:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(said)

            thread = threading.Thread(target=once)
            thread.start()
            with open_tpm(f"unix:{path}") as tpm, pytest.raises(error):
                tpm.nv_indexes(range(0, 1))
            thread.join()
