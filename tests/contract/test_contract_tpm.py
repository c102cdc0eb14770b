"""What every TPM does, the one in memory and a real one (swtpm) alike."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgewise.host.tpm import open_tpm
from edgewise.identity import tpm_keys
from edgewise.identity.ports import OpenTpm
from edgewise.identity.tpm_session import SaltedSession
from edgewise.identity.tpm_structures import (
    AK,
    AK_REQUIRED,
    ATTEST_CERTIFY,
    ATTEST_QUOTE,
    EK_ECC,
    EK_RSA,
    KEY_REQUIRED,
    SEAL_LARGEST,
    SHA256,
    Public,
    enrolment_template,
    parse_attested,
    parse_public,
)
from edgewise.model.errors import BadUsage, EdgewiseError, NeedsPerson
from edgewise.testing.swtpm import SwTpm, missing
from edgewise.testing.tpm import MemoryTpm

EXTRA = hashlib.sha256(b"extra").digest()
UNIQUE = bytes(range(32))


class Chip:
    """One TPM, and what happens to it."""

    def __init__(self, made: MemoryTpm | SwTpm) -> None:
        self.made = made
        self.open: OpenTpm = made.open if isinstance(made, MemoryTpm) else open_tpm
        self.place = "here" if isinstance(made, MemoryTpm) else made.place

    def power_cycle(self) -> None:
        if isinstance(self.made, SwTpm):
            self.made.stop()
            self.made.start()
        else:
            self.made.resets += 1

    def write_nv(self, index: int, data: bytes) -> None:
        if isinstance(self.made, SwTpm):
            self.made.write_nv(index, data)
        else:
            self.made.memory[index] = data


@pytest.fixture(params=["memory", "swtpm"])
def chip(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chip]:
    if request.param == "memory":
        yield Chip(MemoryTpm(b"one"))
        return
    if why := missing():
        pytest.fail(why)
    real = SwTpm(tmp_path / "tpm")
    real.start()
    yield Chip(real)
    real.stop()


def test_the_same_template_is_the_same_key_also_after_a_power_cut(chip: Chip) -> None:
    def keys() -> list[Any]:
        with chip.open(chip.place) as tpm:
            with tpm.endorsement_key(EK_ECC) as ek, tpm.attestation_key(AK) as ak:
                found = [ek.public, ak.public]
            with tpm.own_key(enrolment_template(UNIQUE)) as own:
                return [*found, own.public]

    before = keys()
    chip.power_cycle()
    assert keys() == before
    assert all(parse_public(key.wire) == key for key in before)
    assert before[1].has(AK_REQUIRED)
    assert before[2].has(KEY_REQUIRED)


def test_another_start_value_is_another_key(chip: Chip) -> None:
    with chip.open(chip.place) as tpm:
        with tpm.own_key(enrolment_template(UNIQUE)) as one:
            first = one.public
        with tpm.own_key(enrolment_template(UNIQUE[::-1])) as two:
            assert two.public != first


def test_a_cleared_tpm_has_the_same_endorsement_key_and_other_keys(chip: Chip) -> None:
    with chip.open(chip.place) as tpm:
        with tpm.endorsement_key(EK_ECC) as ek, tpm.attestation_key(AK) as ak:
            lasting = (ek.public, ak.public)
        with tpm.own_key(enrolment_template(UNIQUE)) as own:
            before = own.public
    chip.made.clear()
    with chip.open(chip.place) as tpm:
        with tpm.endorsement_key(EK_ECC) as ek, tpm.attestation_key(AK) as ak:
            assert (ek.public, ak.public) == lasting
        with tpm.own_key(enrolment_template(UNIQUE)) as own:
            assert own.public != before


def test_a_credential_opens_for_the_key_that_it_names_and_for_no_other(chip: Chip) -> None:
    with (
        chip.open(chip.place) as tpm,
        tpm.endorsement_key(EK_ECC) as ek,
        tpm.attestation_key(AK) as ak,
    ):
        made = tpm_keys.make_credential(ek.public, ak.public.name, b"v" * 32, b"s" * 32)
        assert tpm.activate(ak, ek, made.blob, made.secret) == b"v" * 32
        other = tpm_keys.make_credential(ek.public, EK_ECC.name, b"v" * 32, b"s" * 32)
        with pytest.raises(EdgewiseError):
            tpm.activate(ak, ek, other.blob, other.secret)
        assert tpm.activate(ak, ek, made.blob, made.secret) == b"v" * 32


def test_a_quote_is_signed_carries_our_data_and_adds_up(chip: Chip) -> None:
    chip.made.extend(7, EXTRA)
    with chip.open(chip.place) as tpm, tpm.attestation_key(AK) as ak:
        attested, signature = tpm.quote(ak, EXTRA, [11, 7])
        values = tpm.read_pcrs([7, 11])
        assert tpm_keys.signed_by(ak.public, signature, attested)
        assert not tpm_keys.signed_by(ak.public, signature, attested + b"\0")
    said = parse_attested(attested)
    assert (said.kind, said.extra, said.selection) == (ATTEST_QUOTE, EXTRA, ((SHA256, (7, 11)),))
    assert said.digest == hashlib.sha256(values[7] + values[11]).digest()
    assert values[7] == hashlib.sha256(bytes(32) + EXTRA).digest()


def test_time_goes_on_in_quotes_and_a_power_cut_counts(chip: Chip) -> None:
    def said() -> Any:
        with chip.open(chip.place) as tpm, tpm.attestation_key(AK) as ak:
            return parse_attested(tpm.quote(ak, b"", [0])[0])

    first, second = said(), said()
    assert (second.resets, second.clock >= first.clock) == (first.resets, True)
    chip.power_cycle()
    assert said().resets == first.resets + 1


def test_a_certificate_names_the_key_that_is_inside(chip: Chip) -> None:
    with (
        chip.open(chip.place) as tpm,
        tpm.attestation_key(AK) as ak,
        tpm.own_key(enrolment_template(UNIQUE)) as own,
    ):
        attested, signature = tpm.certify(own, ak, EXTRA)
        assert tpm_keys.signed_by(ak.public, signature, attested)
        said = parse_attested(attested)
        assert (said.kind, said.name, said.extra) == (ATTEST_CERTIFY, own.public.name, EXTRA)


def test_the_enrolment_key_signs_what_it_is_given(chip: Chip) -> None:
    with chip.open(chip.place) as tpm, tpm.own_key(enrolment_template(UNIQUE)) as own:
        signature = tpm.sign(own, hashlib.sha256(b"receipt").digest())
        assert tpm_keys.signed_by(own.public, signature, b"receipt")
        assert not tpm_keys.signed_by(own.public, signature, b"another")


def test_memory_is_listed_and_read_whole(chip: Chip) -> None:
    content = bytes(range(256)) * 6
    chip.write_nv(0x01C0000A, content)
    chip.write_nv(0x01C00101, b"x")
    with chip.open(chip.place) as tpm:
        assert tpm.nv_indexes(range(0x01C00000, 0x01C00200)) == (0x01C0000A, 0x01C00101)
        assert tpm.nv_indexes(range(0x01C00100, 0x01C00200)) == (0x01C00101,)
        assert tpm.read_nv(0x01C0000A) == content


def test_a_real_tpm_opens_a_credential_for_its_rsa_key(tmp_path: Path) -> None:
    if why := missing():
        pytest.fail(why)
    real = SwTpm(tmp_path)
    real.start()
    with (
        open_tpm(real.place) as tpm,
        tpm.endorsement_key(EK_RSA) as ek,
        tpm.attestation_key(AK) as ak,
    ):
        made = tpm_keys.make_credential(ek.public, ak.public.name, b"secret", b"s" * 32)
        assert tpm.activate(ak, ek, made.blob, made.secret) == b"secret"
    real.stop()


def test_nothing_stays_loaded_however_often_a_real_tpm_is_used(tmp_path: Path) -> None:
    if why := missing():
        pytest.fail(why)
    real = SwTpm(tmp_path)
    real.start()
    for _ in range(8):  # it holds three keys and three sessions
        with (
            open_tpm(real.place) as tpm,
            tpm.endorsement_key(EK_ECC) as ek,
            tpm.attestation_key(AK) as ak,
        ):
            bad = tpm_keys.make_credential(ek.public, EK_ECC.name, b"v", b"s" * 32)
            with pytest.raises(EdgewiseError):
                tpm.activate(ak, ek, bad.blob, bad.secret)
    real.stop()


def session(key: Public) -> SaltedSession:
    return SaltedSession(key, os.urandom)


def test_what_is_sealed_opens_again_also_after_a_power_cut(chip: Chip) -> None:
    with chip.open(chip.place) as tpm:
        sealed = tpm.seal(b"k" * 32, session)
        assert tpm.unseal(sealed, session) == b"k" * 32
    chip.power_cycle()
    with chip.open(chip.place) as tpm:
        assert tpm.unseal(sealed, session) == b"k" * 32
        assert b"k" * 32 not in sealed.private
        longest = tpm.seal(bytes(range(SEAL_LARGEST)), session)
        assert tpm.unseal(longest, session) == bytes(range(SEAL_LARGEST))


def test_a_cleared_tpm_opens_nothing_that_was_sealed_before(chip: Chip) -> None:
    with chip.open(chip.place) as tpm:
        sealed = tpm.seal(b"k" * 32, session)
    chip.made.clear()
    with chip.open(chip.place) as tpm, pytest.raises(NeedsPerson, match="another TPM"):
        tpm.unseal(sealed, session)


def test_a_sealed_object_that_was_changed_is_refused(chip: Chip) -> None:
    with chip.open(chip.place) as tpm:
        sealed = tpm.seal(b"k" * 32, session)
        private = sealed.private[:-1] + bytes([sealed.private[-1] ^ 1])
        for bad in (replace(sealed, private=private), replace(sealed, public=b"\0\1")):
            with pytest.raises(EdgewiseError):
                tpm.unseal(bad, session)
        for size in (0, SEAL_LARGEST + 1):
            with pytest.raises(BadUsage):
                tpm.seal(bytes(size), session)
        assert tpm.unseal(sealed, session) == b"k" * 32
