"""Workload identities with real certificates, and servers for the egress gateway to call."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgewise.identity.workload_ports import Caller, LocalSvid, LocalSvids
from edgewise.model.errors import TryLater
from edgewise.protocol.bundles import DomainBundle, TrustBundles
from edgewise.runtime.credentials import pem_of


@dataclass
class TestAuthority:
    """A root that signs leaves; ``domain`` is its only trust domain."""

    __test__ = False
    domain: str = "eu.acme"
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def __post_init__(self) -> None:
        self.certificate = self._sign(
            self._builder(f"root of {self.domain}", self.key.public_key()).add_extension(
                x509.BasicConstraints(ca=True, path_length=None), critical=True
            ),
            ca=True,
        )

    @property
    def root(self) -> bytes:
        """DER."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def svid(
        self, path: str, *dns: str, domain: str = "", minutes: float = 60, uris: int = 1
    ) -> LocalSvid:
        """A leaf for client and server; ``minutes`` may be negative for one that has run out."""
        key = ec.generate_private_key(ec.SECP256R1())
        identity = f"spiffe://{domain or self.domain}{path}"
        now = datetime.now(UTC).replace(microsecond=0)
        until = now + timedelta(minutes=minutes)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity)] * uris
        names += [x509.DNSName(name) for name in dns]
        builder = (
            self._builder("workload", key.public_key(), until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
                ),
                critical=False,
            )
        )
        chain = self._sign(builder, ca=False).public_bytes(serialization.Encoding.DER)
        private = key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return LocalSvid(identity, (chain,), private, now - timedelta(hours=2), until)

    def _builder(
        self, common: str, key: ec.EllipticCurvePublicKey, until: datetime | None = None
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"root of {self.domain}")])
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)]))
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=2))
            .not_valid_after(until or now + timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )

    def _sign(self, builder: x509.CertificateBuilder, *, ca: bool) -> x509.Certificate:
        usage = x509.KeyUsage(
            digital_signature=not ca,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=ca,
            crl_sign=ca,
            encipher_only=False,
            decipher_only=False,
        )
        return (
            builder.add_extension(usage, critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )


def server_tls(
    svid: LocalSvid, roots: Iterable[bytes], asks: ssl.VerifyMode = ssl.CERT_REQUIRED
) -> ssl.SSLContext:
    """For a server with this identity that asks for client certificates, or does not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as name:
        chain, key = Path(name, "chain"), Path(name, "key")
        chain.write_text(pem_of(svid.chain))
        loaded = serialization.load_der_private_key(svid.key, None)
        key.write_bytes(
            loaded.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context.load_cert_chain(chain, key)
    context.load_verify_locations(cadata=pem_of(roots))
    context.verify_mode = asks
    return context


class MemorySvids:
    """``LocalSvids`` that the test fills."""

    def __init__(self, apps: Mapping[str, LocalSvid], bundles: TrustBundles | None) -> None:
        self._apps = {app: svid.spiffe_id for app, svid in apps.items()}
        self._svids = {svid.spiffe_id: svid for svid in apps.values()}
        self._bundles = bundles
        self._version = 1
        self._news = asyncio.Condition()

    @property
    def version(self) -> int:
        return self._version

    async def newer_than(self, version: int) -> int:
        async with self._news:
            await self._news.wait_for(lambda: self._version > version)
        return self._version

    def entitled(self, caller: Caller) -> tuple[str, ...]:
        found = self._apps.get(caller.app)
        return (found,) if found else ()

    async def x509(self, spiffe_id: str) -> LocalSvid:
        if spiffe_id not in self._svids:
            raise TryLater(f"there is no SVID of {spiffe_id} yet")
        return self._svids[spiffe_id]

    def bundles(self) -> TrustBundles | None:
        return self._bundles

    def set_bundles(self, bundles: TrustBundles | None) -> None:
        """Whom the node trusts from now on; ``replace`` tells it."""
        self._bundles = bundles

    async def replace(self, svid: LocalSvid | None = None, *, gone: str = "") -> None:
        """A rotation; or an identity that is taken away."""
        if svid is not None:
            self._svids[svid.spiffe_id] = svid
        self._svids.pop(gone, None)
        async with self._news:
            self._version += 1
            self._news.notify_all()


def bundles_of(*authorities: TestAuthority, foreign: Iterable[TestAuthority] = ()) -> TrustBundles:
    """What a node of the organisation trusts."""
    return TrustBundles(
        1,
        {a.domain: DomainBundle((a.root,)) for a in authorities},
        {a.domain: DomainBundle((a.root,)) for a in foreign},
    )


def _meets_its_port(svids: MemorySvids) -> LocalSvids:
    return svids
