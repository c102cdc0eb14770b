"""A software TPM (Debian package swtpm) and a maker who certifies its endorsement keys."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgewise.host.tpm import SocketWire, Tpm
from edgewise.identity import tpm_keys
from edgewise.identity.chains import EK_USAGE
from edgewise.identity.tpm_structures import (
    EK_ECC,
    EK_ECC_CERTIFICATE,
    EK_RSA_CERTIFICATE,
    Public,
    sized,
)

PLATFORM = 0x4000000C
ENDLESS = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""IEEE 802.1AR, 7.3.1.10.2: a certificate without an end."""
BEGUN = datetime(2020, 1, 1, tzinfo=UTC)


def missing() -> str:
    """Why there is no software TPM here, or an empty text."""
    if shutil.which("swtpm") is None:
        return "swtpm is not installed: `make tools`, or apt-get install swtpm swtpm-tools"
    return ""


@dataclass
class SwTpm:
    """One chip: its state lies in ``directory`` and survives ``stop`` and ``start``."""

    directory: Path
    _process: subprocess.Popen[bytes] | None = None

    @property
    def place(self) -> str:
        """For ``host.tpm.open_tpm``."""
        return f"unix:{self.directory / 's'}"

    def start(self) -> None:
        """Power on: PCRs begin at zero. Returns once it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "s"
        path.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                "swtpm",
                "socket",
                "--tpm2",
                *("--tpmstate", f"dir={self.directory}"),
                *("--server", f"type=unixio,path={path}"),
                *("--flags", "not-need-init,startup-clear"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ends = time.monotonic() + 10
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(str(path))
                    return
            except OSError:
                if time.monotonic() > ends or self._process.poll() is not None:
                    raise
                time.sleep(0.005)

    def stop(self) -> None:
        """Power off."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    @contextmanager
    def talk(self) -> Iterator[Tpm]:
        """For what only a maker, a boot loader or an attacker does."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.directory / "s"))
            yield Tpm(SocketWire(connection))

    def extend(self, pcr: int, digest: bytes) -> None:
        """Measure something (TPM2_PCR_Extend, SHA-256)."""
        with self.talk() as tpm:
            values = (1).to_bytes(4, "big") + (0x000B).to_bytes(2, "big") + digest
            tpm._run(0x182, (pcr,), values, sessions=(0x40000009,))

    def write_nv(self, index: int, data: bytes) -> None:
        """Define an index that everybody may read, and fill it, as the maker does."""
        attributes = 1 << 0 | 1 << 16 | 1 << 18 | 1 << 25 | 1 << 30
        # PPWRITE, PPREAD, AUTHREAD, NO_DA, PLATFORMCREATE
        public = index.to_bytes(4, "big") + (0x000B).to_bytes(2, "big")
        public += attributes.to_bytes(4, "big") + sized(b"") + len(data).to_bytes(2, "big")
        with self.talk() as tpm:
            tpm._run(0x12A, (PLATFORM,), sized(b"") + sized(public), sessions=(0x40000009,))
            for start in range(0, len(data), 512):
                piece = sized(data[start : start + 512]) + start.to_bytes(2, "big")
                tpm._run(0x137, (PLATFORM, index), piece, sessions=(0x40000009,))

    def clear(self) -> None:
        """Change the owner (TPM2_Clear): its keys are gone, the endorsement key stays."""
        with self.talk() as tpm:
            tpm._run(0x126, (PLATFORM,), b"", sessions=(0x40000009,))

    def ek(self, template: Public = EK_ECC) -> Public:
        """The endorsement key."""
        with self.talk() as tpm, tpm.endorsement_key(template) as loaded:
            return loaded.public


@dataclass
class Maker:
    """A TPM maker or a factory: a root, an authority below it, and what it certifies."""

    name: str = "Test TPMs"
    root_key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP384R1())
    )
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def __post_init__(self) -> None:
        self.root = self._authority(f"{self.name} root", self.root_key.public_key(), None)
        self.middle = self._authority(f"{self.name} issuing", self.key.public_key(), self.root)

    @property
    def pem(self) -> str:
        """The root, for a Workspace."""
        return self.root.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def middle_der(self) -> bytes:
        """The authority between root and devices."""
        return self.middle.public_bytes(serialization.Encoding.DER)

    def ek_certificate(
        self, key: tpm_keys.PublicKey, *, usage: x509.ObjectIdentifier = EK_USAGE
    ) -> bytes:
        """As TPM makers do: no subject, and the model in a critical subjectAltName."""
        model = x509.Name(
            [
                x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.1"), "id:54455354"),
                x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.2"), "swtpm"),
                x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.3"), "id:00010002"),
            ]
        )
        names = x509.SubjectAlternativeName([x509.DirectoryName(model)])
        made = (
            self._blank(x509.Name([]), key)
            .add_extension(names, critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        return made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def device_certificate(self, key: ec.EllipticCurvePublicKey, serial: str) -> bytes:
        """An IDevID (IEEE 802.1AR, 8)."""
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.name)]
        if serial:
            attributes.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, serial))
        made = self._blank(x509.Name(attributes), key)
        return made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def certify(self, tpm: SwTpm, template: Public = EK_ECC) -> bytes:
        """Put a certificate, and its issuer's, where TPMs have them; returns it (DER)."""
        der = self.ek_certificate(tpm_keys.key_of(tpm.ek(template)))
        index = EK_ECC_CERTIFICATE if template == EK_ECC else EK_RSA_CERTIFICATE
        tpm.write_nv(index, der + bytes(100))  # as on chips: the index is larger
        tpm.write_nv(0x01C00100, self.middle_der)
        return der

    def _blank(self, subject: x509.Name, key: tpm_keys.PublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.middle.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(BEGUN)
            .not_valid_after(ENDLESS)
        )

    def _authority(
        self, name: str, key: ec.EllipticCurvePublicKey, issuer: x509.Certificate | None
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject if issuer else subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(BEGUN)
            .not_valid_after(ENDLESS)
            .add_extension(x509.BasicConstraints(True, 0 if issuer else 1), critical=True)
            .add_extension(usage, critical=True)
            .sign(self.root_key, hashes.SHA384())
        )
