"""Any bytes from a TPM or from the network end in a value or in Untrusted, and in nothing else.

Each property has a sibling that shows that good input passes.
"""

import asyncio
import hashlib
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from edgewise.cli.device_list import read_rows
from edgewise.host.tpm import Tpm
from edgewise.identity import tpm_keys, tpm_node
from edgewise.identity.admission import JoinRules
from edgewise.identity.attestation import Unproven, judge_join
from edgewise.identity.chains import Broken, Device, judge_chain, padding_cut
from edgewise.identity.on_agent import ByTpm, Machine, join
from edgewise.identity.tpm_structures import (
    AK,
    EK_ECC,
    EK_RSA,
    parse_attested,
    parse_public,
    parse_signature,
)
from edgewise.model.documents.joining import JoinSpec, TpmRules
from edgewise.model.errors import BadUsage, EdgewiseError, Untrusted
from edgewise.protocol.attest import TpmProof
from edgewise.protocol.join import JoinRequest
from edgewise.testing.proving import NOW, Door, ProvingHub
from edgewise.testing.swtpm import Maker
from edgewise.testing.tpm import MemoryTpm

MAKER = Maker()
TPM = MemoryTpm(b"one")
with TPM.attestation_key(AK) as KEY:
    QUOTE, SIGNATURE = TPM.quote(KEY, b"n" * 32, [0, 7])
    CERTIFIED, _ = TPM.certify(KEY, KEY, b"n" * 32)
    GOOD = {
        parse_public: (KEY.public.wire, EK_RSA.wire, EK_ECC.wire),
        parse_attested: (QUOTE, CERTIFIED),
        parse_signature: (SIGNATURE, struct.pack(">HH", 0x14, 11) + b"\0\1x"),
    }
PARSERS = list(GOOD)


def mutations(good: bytes) -> st.SearchStrategy[bytes]:
    """Good bytes with some changed, cut off or put in between: deeper than random ones."""

    def apply(data: bytes, changes: list[tuple[int, int, str]]) -> bytes:
        for at, value, how in changes:
            where = at % (len(data) + 1)
            if how == "set":
                data = data[:where] + bytes([value]) + data[where + 1 :]
            elif how == "cut":
                data = data[:where]
            else:
                data = data[:where] + bytes([value]) * (value % 9) + data[where:]
        return data

    change = st.tuples(
        st.integers(0, 4096), st.integers(0, 255), st.sampled_from(["set", "cut", "put"])
    )
    return st.builds(apply, st.just(good), st.lists(change, min_size=1, max_size=4))


@pytest.mark.parametrize("parse", PARSERS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_structure_or_untrusted(parse: Any, data: st.DataObject) -> None:
    chosen = data.draw(st.sampled_from(GOOD[parse]))
    given_bytes = data.draw(st.one_of(st.binary(max_size=200), mutations(chosen)))
    try:
        found = parse(given_bytes)
    except Untrusted:
        return
    if parse is parse_public:
        assert found.wire == given_bytes  # read strictly: there is one way to write a key


@pytest.mark.parametrize("parse", PARSERS)
def test_good_structures_pass(parse: Any) -> None:
    for good in GOOD[parse]:
        parse(good)


@given(st.one_of(st.binary(max_size=200), mutations(KEY.public.wire)))
@settings(max_examples=150, deadline=None)
def test_any_key_is_a_key_or_untrusted(data: bytes) -> None:
    try:
        tpm_keys.spki(parse_public(data))
    except Untrusted:
        return


@given(st.one_of(st.binary(max_size=200), mutations(SIGNATURE)))
@settings(max_examples=150, deadline=None)
def test_no_other_signature_holds(data: bytes) -> None:
    try:
        holds = tpm_keys.signed_by(KEY.public, data, QUOTE)
    except Untrusted:
        return
    # r and s have one meaning, however many zeros stand before them.
    assert holds == (_numbers(data) == _numbers(SIGNATURE))


def _numbers(data: bytes) -> tuple[int, int]:
    found = parse_signature(data)
    return int.from_bytes(found.r, "big"), int.from_bytes(found.s, "big")


def test_the_good_signature_holds() -> None:
    assert tpm_keys.signed_by(KEY.public, SIGNATURE, QUOTE)


CERTIFICATE = MAKER.ek_certificate(tpm_keys.key_of(KEY.public))


@given(st.one_of(st.binary(max_size=300), mutations(CERTIFICATE)))
@settings(max_examples=150, deadline=None)
def test_any_certificate_is_a_device_or_broken(data: bytes) -> None:
    found = judge_chain([data, MAKER.middle_der], [MAKER.root], NOW)
    if isinstance(found, Device):
        assert padding_cut(data) == CERTIFICATE


def test_the_good_certificate_is_a_device_with_padding_and_without() -> None:
    for data in (CERTIFICATE, CERTIFICATE + bytes(500), CERTIFICATE + b"\xff" * 9):
        assert isinstance(judge_chain([data, MAKER.middle_der], [MAKER.root], NOW), Device)
    assert isinstance(judge_chain([CERTIFICATE], [MAKER.middle], NOW), Device)
    assert isinstance(judge_chain([CERTIFICATE], [MAKER.root], NOW), Broken)


class Canned:
    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def exchange(self, command: bytes) -> bytes:
        return self.answer

    def close(self) -> None:
        """Nothing is open."""


def framed(body: bytes, *, authorised: bool) -> bytes:
    head = struct.pack(">HII", 0x8002 if authorised else 0x8001, 10 + len(body), 0)
    return head + body


@given(body=st.binary(max_size=300), authorised=st.booleans(), whole=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_answer_of_a_tpm_is_a_value_or_one_of_our_errors(
    body: bytes, authorised: bool, whole: bool
) -> None:
    tpm = Tpm(Canned(framed(body, authorised=authorised) if whole else body))
    for ask in (
        lambda: tpm.nv_indexes(range(0, 1 << 32)),
        lambda: tpm.read_pcrs([0, 7]),
        lambda: tpm.read_nv(0x01C0000A),
        lambda: tpm_node.keys_of(tpm),
    ):
        try:
            ask()
        except EdgewiseError:
            continue


def made(tmp_path: Path) -> tuple[JoinRequest, bytes, Any]:
    """A good request, what its credential held, and the rules."""
    tpm = MemoryTpm(b"one")
    with tpm.endorsement_key(EK_ECC) as ek:
        tpm.memory[0x01C0000A] = MAKER.ek_certificate(tpm_keys.key_of(ek.public))
    tpm.memory[0x01C00100] = MAKER.middle_der
    rules = JoinRules.of(JoinSpec(tpm=TpmRules(manufacturer_roots=(MAKER.pem,))), [])
    hub = ProvingHub(tmp_path, rules)
    identity = hub.machine("m", tpm.open)

    async def once() -> JoinRequest:
        door = Door(hub, identity)
        token = await hub.token()
        by = ByTpm("here", bytes(32))
        await join(identity, token, Machine("node", "kiosk-1"), door, by)
        request: JoinRequest = door.sent[0]
        return request

    request = asyncio.run(once())
    assert request.tpm is not None
    return request, request.tpm.activated, rules


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[JoinRequest, bytes, Any]:
    return made(tmp_path_factory.mktemp("hub"))


def judged(good: tuple[JoinRequest, bytes, Any], tpm: TpmProof) -> None:
    request, expected, rules = good
    assert request.tpm is not None
    if (tpm.keys.ek, tpm.keys.ak) != (request.tpm.keys.ek, request.tpm.keys.ak):
        expected = b"another"  # the hub makes what is to be opened for these two keys alone
    judge_join(tpm, request.enrolment_key, request.csr, expected=expected, rules=rules, now=NOW)


def test_the_good_proof_holds(good: tuple[JoinRequest, bytes, Any]) -> None:
    assert good[0].tpm is not None
    judged(good, good[0].tpm)
    with pytest.raises(Unproven):
        judged(good, structs.replace(good[0].tpm, activated=b""))


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_proof_with_any_part_changed_is_refused_as_unproven(
    good: tuple[JoinRequest, bytes, Any], data: st.DataObject
) -> None:
    """Its certificate chain may hold more than is needed; every other byte counts."""
    assert good[0].tpm is not None
    whole = msgspec.to_builtins(good[0].tpm, builtin_types=(bytes,))
    path = data.draw(
        st.sampled_from(
            [
                ("keys", "ek"), ("keys", "ak"), ("activated",), ("enrolment",), ("certified",),
                ("certified_signature",), ("quote", "attested"), ("quote", "signature"),
            ]
        )
    )  # fmt: skip
    place = whole
    for step in path[:-1]:
        place = place[step]
    before = place[path[-1]]
    place[path[-1]] = data.draw(mutations(before))
    changed = msgspec.convert(whole, TpmProof)
    if changed == good[0].tpm or "signature" in path[-1]:
        return  # signatures have equals with leading zeros; see above
    with pytest.raises(Unproven):
        judged(good, changed)


@given(st.text(max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_csv_is_rows_or_bad_usage(text: str) -> None:
    try:
        rows = read_rows("name,ek,serial\n" + text, "n-{row}")
    except BadUsage:
        return
    assert rows


def test_a_suppliers_csv_becomes_rows() -> None:
    digest = hashlib.sha256(b"1").hexdigest()
    colons = ":".join(digest[i : i + 2].upper() for i in range(0, 64, 2))
    text = f"Name;EK SHA256;Serial;model\nk1;{colons};S1;x\n;;S2;\n"
    assert read_rows(text, "kiosk-{serial}") == [
        {"name": "k1", "ek": digest, "labels": {"model": "x", "serial": "S1"}},
        {"name": "kiosk-s2", "serial": "S2"},
    ]
