"""X.509 as Edgewise uses it (X509-SVID specification, sections 4 and 5; RFC 5280).

Everything that decides what stands in a certificate is in this file. Keys are ECDSA P-256.
OpenSSL verifies what is made here (pyca's own verifier refuses URI name constraints).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgewise.identity.ports import Issued
from edgewise.identity.rotation import Validity
from edgewise.model.errors import BadUsage, NeedsPerson, Untrusted
from edgewise.model.names import SpiffeId

CUSHION: Final = timedelta(seconds=10)
"""Certificates begin this much in the past: clocks of peers differ (SPIRE does the same)."""
ROOT_LIFE: Final = timedelta(days=3650)
"""Replace it before it ends: `edgewise ca rotate-root` (identity.root_rotation)."""
CA_LIFE: Final = timedelta(days=365)
"""Regional CAs; for a relay also the longest that it can work without the hub."""
LIFE: Final[dict[str, timedelta]] = {
    "hub": timedelta(days=90),
    "relay": timedelta(days=30),
    "node": timedelta(days=45),
    "user": timedelta(days=90),
}
"""By role. Nodes: half of it, 22 days, is what a node can be off before it must rejoin."""
MOST_CSR: Final = 8 << 10
"""Bytes; ours have about 300."""

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Signer:
    """A CA certificate, its key, and what signed it (without the root)."""

    certificate: x509.Certificate
    key: Key
    above: tuple[bytes, ...] = ()

    @property
    def chain(self) -> tuple[bytes, ...]:
        """DER, this CA first, without the root: nothing for the root itself."""
        if self.certificate.issuer == self.certificate.subject:
            return ()
        return (der(self.certificate), *self.above)


@dataclass(frozen=True, slots=True)
class Hosts:
    """Host names and addresses that a certificate may also carry, for git, curl, browsers."""

    names: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    @classmethod
    def of_urls(cls, urls: Iterable[str]) -> Hosts:
        """Those in URLs. Raises BadUsage for something that is not a host."""
        return cls.of(host for url in urls if (host := urlsplit(url).hostname))

    @classmethod
    def of(cls, hosts: Iterable[str]) -> Hosts:
        """Sorted into names and addresses. Raises BadUsage for something that is neither."""
        names, addresses = [], []
        for host in dict.fromkeys(hosts):
            try:
                addresses.append(str(ipaddress.ip_address(host)))
            except ValueError:
                if not host.isascii() or len(host) > 253 or not host:
                    raise BadUsage(f"{host[:80]!r} is not a host name") from None
                names.append(host.lower())
        return cls(tuple(names), tuple(addresses))

    def general_names(self) -> list[x509.GeneralName]:
        """As X.509 has them."""
        found: list[x509.GeneralName] = [x509.DNSName(name) for name in self.names]
        found += [x509.IPAddress(ipaddress.ip_address(a)) for a in self.addresses]
        return found


def make_key() -> Key:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    """PKCS#8 PEM, not encrypted: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def read_key(pem: bytes, what: str, passphrase: bytes | None = None) -> Key:
    """A P-256 key from PKCS#8. ``what`` names it in the NeedsPerson that is raised."""
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise NeedsPerson(
            f"the key {what} cannot be used: {error}", hint="put it back from a backup"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise NeedsPerson(f"the key {what} is not ECDSA P-256")
    return key


def der(certificate: x509.Certificate) -> bytes:
    """The certificate's bytes."""
    return certificate.public_bytes(serialization.Encoding.DER)


def validity_of(certificate: bytes) -> Validity:
    """From when to when a certificate (DER) holds; for ``identity.rotation.renew_at``."""
    found = x509.load_der_x509_certificate(certificate)
    return Validity(found.not_valid_before_utc, found.not_valid_after_utc)


def hosts_of(certificate: bytes) -> Hosts:
    """The host names and addresses in a certificate (DER)."""
    found = x509.load_der_x509_certificate(certificate)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = names.get_values_for_type(x509.IPAddress)
    return Hosts(tuple(names.get_values_for_type(x509.DNSName)), tuple(map(str, addresses)))


def requested_key(csr: bytes) -> ec.EllipticCurvePublicKey:
    """The key that a PKCS#10 request is for; everything else in the request is ignored.

    Raises Untrusted unless it is a P-256 key that has signed the request itself.
    """
    if len(csr) > MOST_CSR:
        raise Untrusted(f"a certificate request has {len(csr)} bytes, at most {MOST_CSR}")
    try:
        request = x509.load_der_x509_csr(csr)
        key = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise Untrusted(f"a certificate request cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Untrusted("a certificate request is for another kind of key than ECDSA P-256")
    if not proven:
        raise Untrusted("a certificate request is not signed by its own key")
    return key


def make_root(organisation: str, now: datetime, key: Key) -> Signer:
    """A self-signed root. Its subject names the key: two roots must not look the same."""
    short = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()[:8]
    subject = _subject(organisation, f"Edgewise root {short} of {organisation}")
    builder = _builder(subject, subject, key.public_key(), (now - CUSHION, now + ROOT_LIFE))
    builder = _as_ca(builder, key.public_key(), 1)
    return Signer(_sign(builder, key, key.public_key()), key)


def make_regional(
    root: Signer,
    domain: str,
    key: ec.EllipticCurvePublicKey,
    hosts: Hosts | None,
    now: datetime,
) -> x509.Certificate:
    """A CA for one trust domain: no CA below it, no other domain, no host but ``hosts``
    and those below the domain's own name (docs/adr/0006).

    Without the limits on host names and addresses, a stolen relay could pose as the hub
    towards programs that check those (git, curl), because they trust the same root. None
    leaves hosts open: for the hub's own CAs.
    """
    organisation = _organisation(root.certificate)
    until = min(now + CA_LIFE, root.certificate.not_valid_after_utc)
    subject = _subject(organisation, f"Edgewise CA of {domain}")
    builder = _builder(subject, root.certificate.subject, key, (now - CUSHION, until))
    permitted: list[x509.GeneralName] = [x509.UniformResourceIdentifier(domain)]
    if hosts is not None:
        permitted += [x509.DNSName(name) for name in (*hosts.names, domain)]
        # An empty list would permit every address: permit what nobody can have instead.
        permitted += [
            x509.IPAddress(ipaddress.ip_network(a)) for a in hosts.addresses or ("0.0.0.0/32",)
        ]
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{domain}")]),
        critical=False,
    ).add_extension(x509.NameConstraints(permitted, None), critical=True)
    return _sign(_as_ca(builder, key, 0), root.key, root.key.public_key())


def make_svid(
    signer: Signer,
    identity: SpiffeId,
    key: ec.EllipticCurvePublicKey,
    hosts: Hosts,
    now: datetime,
    life: timedelta | None = None,
) -> Issued:
    """A leaf with this identity. Nodes and people may not be servers with it.

    ``life``: of a workload, a node or a person's login; the others have theirs by role.
    """
    until = min(now + (life or LIFE[identity.role]), signer.certificate.not_valid_after_utc)
    serves = identity.role in ("hub", "relay", "app")
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if serves:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    # The space keeps OpenSSL from taking the common name for a host name.
    subject = _subject(
        _organisation(signer.certificate), f"Edgewise {identity.role} {identity.name}".strip()[:64]
    )
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(identity))]
    names += hosts.general_names() if serves else []
    builder = (
        _builder(subject, signer.certificate.subject, key, (now - CUSHION, until))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
    certificate = _sign(builder, signer.key, signer.key.public_key())
    return Issued(
        chain=(der(certificate), *signer.chain),
        serial=f"{certificate.serial_number:x}",
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def _organisation(certificate: x509.Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value)


def _subject(organisation: str, common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, common[:64]),
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    valid: tuple[datetime, datetime],
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
    )


def _as_ca(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePublicKey, depth: int
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=depth), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not signs,
        crl_sign=not signs,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(
    builder: x509.CertificateBuilder, key: Key, issuer: ec.EllipticCurvePublicKey
) -> x509.Certificate:
    return builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False
    ).sign(key, hashes.SHA256())
