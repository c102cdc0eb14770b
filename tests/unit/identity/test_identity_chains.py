"""Chains of device certificates, and OpenSSL's opinion of the same ones."""

import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from edgewise.identity.chains import Broken, Device, judge_chain
from edgewise.runtime.credentials import pem_of

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


ROOT_KEY, MIDDLE_KEY, LOW_KEY, LEAF_KEY = key(), key(), key(), key()


@dataclass(frozen=True)
class Made:
    """How a certificate differs from a plain one."""

    ca: int | None = None
    """Its path length; None: a device; -1: no limit."""
    begins: datetime = NOW - timedelta(days=9)
    ends: datetime = NOW + timedelta(days=9)
    extra: tuple[x509.UnrecognizedExtension | x509.NameConstraints, ...] = ()
    signs: bool = True


def made(name: str, subject_key: Any, issuer: str, issuer_key: Any, **differs: Any) -> bytes:
    """A certificate (DER)."""
    how = Made(**differs)
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (name, issuer)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(subject_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(how.begins)
        .not_valid_after(how.ends)
    )
    if how.ca is not None:
        limit = None if how.ca < 0 else how.ca
        builder = builder.add_extension(x509.BasicConstraints(True, limit), critical=True)
        usage = [not how.signs, False, False, False, False, how.signs, False, False, False]
        builder = builder.add_extension(x509.KeyUsage(*usage), critical=True)
    for one in how.extra:
        builder = builder.add_extension(one, critical=True)
    certificate = builder.sign(issuer_key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.DER)


ROOT = made("root", ROOT_KEY, "root", ROOT_KEY, ca=-1)
MIDDLE = made("middle", MIDDLE_KEY, "root", ROOT_KEY, ca=0)
LEAF = made("leaf", LEAF_KEY, "middle", MIDDLE_KEY)
LOW = made("low", LOW_KEY, "middle", MIDDLE_KEY, ca=0)
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
LIMITED = x509.NameConstraints([x509.DNSName("acme")], None)
WEAK_KEY = rsa.generate_private_key(65537, 1024)

CASES: dict[str, tuple[list[bytes], str]] = {
    "good": ([LEAF, MIDDLE], ""),
    "in any order, with more than is needed": ([LEAF, ROOT, LOW, MIDDLE], ""),
    "issuer missing": ([LEAF], "unknown-maker"),
    "expired device": (
        [made("leaf", LEAF_KEY, "middle", MIDDLE_KEY, ends=NOW - timedelta(days=1)), MIDDLE],
        "outside-its-time",
    ),
    "device of the future": (
        [made("leaf", LEAF_KEY, "middle", MIDDLE_KEY, begins=NOW + timedelta(days=1)), MIDDLE],
        "outside-its-time",
    ),
    "expired authority": (
        [LEAF, made("middle", MIDDLE_KEY, "root", ROOT_KEY, ca=0, ends=NOW - timedelta(days=1))],
        "outside-its-time",
    ),
    "a device that issues": (
        [made("x", key(), "leaf", LEAF_KEY), LEAF, MIDDLE],
        "not-a-ca",
    ),
    "an authority that may not sign": (
        [LEAF, made("middle", MIDDLE_KEY, "root", ROOT_KEY, ca=0, signs=False)],
        "not-a-ca",
    ),
    "too long a path": ([made("x", key(), "low", LOW_KEY), LOW, MIDDLE], "not-a-ca"),
    "unknown critical extension": (
        [made("leaf", LEAF_KEY, "middle", MIDDLE_KEY, extra=(UNKNOWN,)), MIDDLE],
        "wrong-kind",
    ),
    "another key of the same name": (
        [made("leaf", LEAF_KEY, "middle", key()), MIDDLE],
        "unknown-maker",
    ),
    "another root of the same name": (
        [LEAF, made("middle", MIDDLE_KEY, "root", key(), ca=0)],
        "unknown-maker",
    ),
}


def judged(chain: list[bytes]) -> str:
    found = judge_chain(chain, [x509.load_der_x509_certificate(ROOT)], NOW)
    return found.flaw if isinstance(found, Broken) else ""


@pytest.mark.parametrize("name", CASES)
def test_a_chain_holds_or_breaks_for_its_own_reason(name: str) -> None:
    chain, flaw = CASES[name]
    assert judged(chain) == flaw


@pytest.mark.parametrize("name", CASES)
def test_openssl_agrees(name: str, tmp_path: Path) -> None:
    chain, flaw = CASES[name]
    files = {"root": [ROOT], "leaf": chain[:1], "others": chain[1:] or [ROOT]}
    for one, certificates in files.items():
        (tmp_path / one).write_text(pem_of(certificates))
    command = ["openssl", "verify", "-CAfile", "root", "-untrusted", "others"]
    command += ["-attime", str(int(NOW.timestamp())), "leaf"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode == 0) == (flaw == ""), done.stderr


def test_a_name_constraint_is_refused_because_it_is_not_applied() -> None:
    middle = made("middle", MIDDLE_KEY, "root", ROOT_KEY, ca=0, extra=(LIMITED,))
    assert judged([LEAF, middle]) == "wrong-kind"


def test_a_weak_key_signs_nothing() -> None:
    middle = made("middle", WEAK_KEY, "root", ROOT_KEY, ca=0)
    assert judged([made("leaf", LEAF_KEY, "middle", WEAK_KEY), middle]) == "unknown-maker"


def test_an_authority_in_the_middle_may_be_the_end_of_the_chain() -> None:
    anchor = x509.load_der_x509_certificate(MIDDLE)
    assert isinstance(judge_chain([LEAF], [anchor], NOW), Device)
    assert isinstance(judge_chain([LEAF], [], NOW), Broken)


def test_a_circle_of_authorities_ends() -> None:
    one, two = key(), key()
    circle = [
        made("leaf", LEAF_KEY, "one", one),
        made("one", one, "two", two, ca=-1),
        made("two", two, "one", one, ca=-1),
    ]
    assert judged(circle) == "unknown-maker"
    assert judged([LEAF] * 7) == "unreadable"
