"""The certificate authorities of hub and relay, as files in a directory.

``pki/root.pem`` and ``root.key`` (0600); ``pki/ca/<region>.pem`` and ``.key`` for each
region that the hub issues for itself, ``hub`` among them. The root's key may be taken
away to a safe place: everything goes on until a new region or a new regional CA is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from edgewise.backends.pki.certificates import (
    LIFE,
    Hosts,
    Signer,
    der,
    hosts_of,
    key_pem,
    make_key,
    make_regional,
    make_svid,
    requested_key,
    validity_of,
)
from edgewise.backends.pki.keys import FileKeys, KeyStore
from edgewise.backends.pki.roots import ROOT, Roots, organisation_of, read_certificate
from edgewise.identity.names import HUB, Organisation
from edgewise.identity.ports import Issued, Issuer, RootIssuer, WorkloadIssuer
from edgewise.identity.rotation import renew_at
from edgewise.model.errors import Forbidden, NeedsPerson, TryLater
from edgewise.model.names import SpiffeId
from edgewise.protocol.codec import encode
from edgewise.protocol.operator import OperatorContext
from edgewise.runtime.clock import Clock
from edgewise.runtime.credentials import (
    CredentialFiles,
    certificates_in,
    fingerprint,
    pem_of,
    write_private,
)


@dataclass(slots=True)
class Authority:
    """The hub's: the root and one CA for each region it issues for. See ``open_or_create``."""

    directory: Path
    organisation: Organisation
    clock: Clock
    root: Roots
    node_life: timedelta = LIFE["node"]
    """How long a node's certificate is good; ``identity.rotation.checked_life`` has the bounds."""
    _signers: dict[str, Signer] = field(default_factory=dict)

    @classmethod
    def open_or_create(
        cls, directory: Path, organisation: str, clock: Clock, keys: KeyStore | None = None
    ) -> Authority:
        """Open ``pki/``; make a root first where there is none.

        ``keys`` holds the root's key; files in ``directory`` by default. Raises NeedsPerson
        when the root belongs to another organisation or is damaged.
        """
        names = Organisation(organisation)
        store = keys or FileKeys(directory)
        return cls(
            directory, names, clock, Roots.open_or_create(directory, organisation, clock, store)
        )

    @property
    def roots(self) -> tuple[bytes, ...]:
        return self.root.trusted

    @property
    def root_sha256(self) -> str:
        """What tokens pin."""
        return fingerprint(self.roots[0])

    def rotated(self) -> None:
        """Another root signs now: regional CAs are made anew when they are needed next."""
        self._signers.clear()

    def issue(self, identity: SpiffeId, csr: bytes, urls: tuple[str, ...] = ()) -> Issued:
        """See ``Issuer``."""
        key = requested_key(csr)
        region = self.organisation.region_of(identity)
        if region is None or not self.organisation.owns(identity):
            raise Forbidden(f"{identity} is no identity of {self.organisation.name}")
        hosts = Hosts.of_urls(urls)
        life = self.node_life if identity.role == "node" else None
        return make_svid(self._signer(region), identity, key, hosts, self.clock.now(), life)

    def issue_workload(
        self, identity: SpiffeId, csr: bytes, dns: tuple[str, ...], life: timedelta
    ) -> tuple[Issued, tuple[str, ...]]:
        """See ``WorkloadIssuer``; the hub gives every name."""
        key = requested_key(csr)
        region = self.organisation.region_of(identity)
        if region in (None, HUB) or identity.role != "app":
            raise Forbidden(f"{identity} is no workload of {self.organisation.name}")
        hosts = Hosts(names=Hosts.of(dns).names)
        signer = self._signer(str(region))
        return make_svid(signer, identity, key, hosts, self.clock.now(), life), hosts.names

    def issue_person(self, identity: SpiffeId, csr: bytes, life: timedelta) -> Issued:
        """A certificate for somebody who has logged in; see ``net.logins.PersonIssuer``."""
        if identity != self.organisation.user(identity.name):
            raise Forbidden(f"{identity} is no person of {self.organisation.name}")
        key = requested_key(csr)
        return make_svid(self._signer(HUB), identity, key, Hosts(), self.clock.now(), life)

    def issue_regional(self, region: str, csr: bytes, urls: tuple[str, ...]) -> tuple[bytes, ...]:
        key = requested_key(csr)
        hosts = Hosts.of_urls(urls)
        domain = self.organisation.domain(region)
        return (der(make_regional(self.root.signer(), domain, key, hosts, self.clock.now())),)

    def issue_hub(self, credentials: CredentialFiles, hosts: Hosts) -> Issued:
        """Make the hub's own serving certificate and write it to ``credentials``."""
        return self._issue_own(credentials, self.organisation.hub, hosts)

    def keep_hub(self, credentials: CredentialFiles, hosts: Hosts, fraction: float) -> bool:
        """Make the hub's certificate where it is missing, half used up, or for other hosts.

        ``fraction`` (0 to 1) spreads renewals. Returns whether there is a new one, for
        ``net.tls.reload``.
        """
        if credentials.exist and credentials.root_certificates() == self.roots:
            leaf = credentials.leaf()
            fresh = self.clock.now() < renew_at(validity_of(leaf), fraction)
            if fresh and hosts_of(leaf) == hosts:
                return False
        self.issue_hub(credentials, hosts)
        return True

    def issue_operator(
        self, name: str, folder: Path, url: str, *, age_recipient: str = "", data: str = ""
    ) -> OperatorContext:
        """Make an operator's certificate and the ``context.json`` that the CLI looks for.

        The operator may do everything: roles of people come with local users and OIDC.
        Raises BadUsage for a name that is no DNS label.
        """
        files = CredentialFiles(folder)
        self._issue_own(files, self.organisation.user(name), Hosts())
        context = self._context(name, files, url, age_recipient=age_recipient, data=data)
        write_private(folder / "context.json", encode(context))
        return context

    def keep_operator(
        self, name: str, folder: Path, url: str, *, age_recipient: str = "", data: str = ""
    ) -> bool:
        """``issue_operator`` where the certificate is missing or half used up; else only the
        context, where it says something else. Returns whether anything was written.

        A copy that a person made of the folder stays good as long as its certificate.
        """
        files = CredentialFiles(folder)
        whole = files.exist and files.root_certificates() == self.roots
        if not whole or self.clock.now() >= renew_at(validity_of(files.leaf()), 0.5):
            self.issue_operator(name, folder, url, age_recipient=age_recipient, data=data)
            return True
        kept = folder / "context.json"
        context = self._context(name, files, url, age_recipient=age_recipient, data=data)
        if kept.exists() and kept.read_bytes() == encode(context):
            return False
        write_private(kept, encode(context))
        return True

    def _context(
        self, name: str, files: CredentialFiles, url: str, *, age_recipient: str, data: str
    ) -> OperatorContext:
        return OperatorContext(
            url=url,
            organisation=self.organisation.name,
            user=name,
            certificate=files.chain.name,
            key=files.key.name,
            roots=files.roots.name,
            hub_id=str(self.organisation.hub),
            age_recipient=age_recipient,
            data=data,
        )

    def _issue_own(self, credentials: CredentialFiles, identity: SpiffeId, hosts: Hosts) -> Issued:
        key = make_key()
        region = self.organisation.region_of(identity) or HUB
        issued = make_svid(
            self._signer(region), identity, key.public_key(), hosts, self.clock.now()
        )
        credentials.trust(self.roots)
        credentials.replace(key_pem=key_pem(key), chain=issued.chain)
        return issued

    def _signer(self, region: str) -> Signer:
        """The CA of a region, made or renewed when it is past half its life."""
        kept = self._signers.get(region) or self._read_signer(region)
        now = self.clock.now()
        if kept is None or _past_half(kept.certificate, now):
            kept = self._make_signer(region, kept, now)
        self._signers[region] = kept
        return kept

    def _read_signer(self, region: str) -> Signer | None:
        path = self.directory / "ca" / f"{region}.pem"
        if not path.exists():
            return None
        key = FileKeys(self.directory / "ca").load(region)
        certificate = read_certificate(path)
        if key is None or key.public_key() != certificate.public_key():
            return None  # A crash between the two files: make both again.
        return Signer(certificate, key) if self._is_active(certificate) else None

    def _is_active(self, certificate: x509.Certificate) -> bool:
        """Whether the root that signs now signed it."""
        try:
            certificate.verify_directly_issued_by(self.root.active)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def _make_signer(self, region: str, old: Signer | None, now: datetime) -> Signer:
        domain = self.organisation.hub_domain if region == HUB else self.organisation.domain(region)
        if old is not None and not self.root.keys.has(ROOT):
            if now < old.certificate.not_valid_after_utc:
                return old  # The root is in its safe; the old CA still does.
        root = self.root.signer()
        key = FileKeys(self.directory / "ca").create(region)
        certificate = make_regional(root, domain, key.public_key(), None, now)
        write_private(
            self.directory / "ca" / f"{region}.pem", pem_of([der(certificate)]).encode(), mode=0o644
        )
        return Signer(certificate, key)


@dataclass(frozen=True, slots=True)
class RegionalAuthority:
    """A relay's CA: SVIDs for the nodes of its own region, hub or no hub.

    The certificate itself keeps it to its trust domain; the check here only says so early.
    """

    organisation: Organisation
    region: str
    signer: Signer
    roots: tuple[bytes, ...]
    clock: Clock
    node_life: timedelta = LIFE["node"]
    """As the hub's."""

    @classmethod
    def open(
        cls, directory: Path, roots: tuple[bytes, ...], region: str, clock: Clock
    ) -> RegionalAuthority:
        """From ``ca.pem`` (its certificate first) and ``ca.key``. Raises NeedsPerson."""
        chain = certificates_in(directory / "ca.pem")
        key = FileKeys(directory).load("ca")
        certificate = x509.load_der_x509_certificate(chain[0])
        if key is None or key.public_key() != certificate.public_key():
            raise NeedsPerson(
                f"the CA key in {directory} does not belong to its certificate",
                hint="join the relay again with a new token",
            )
        organisation = Organisation(organisation_of(certificate))
        return cls(organisation, region, Signer(certificate, key, chain[1:]), roots, clock)

    @property
    def not_after(self) -> datetime:
        """Until when the relay can work without the hub."""
        return self.signer.certificate.not_valid_after_utc

    def _check_alive(self) -> None:
        if self.clock.now() >= self.not_after:
            raise TryLater(
                f"the CA of this relay ended at {self.not_after:%Y-%m-%d %H:%M} UTC",
                wait=timedelta(minutes=5),
                hint="it is renewed as soon as the relay reaches the hub; see the relay's log",
            )

    def issue(self, identity: SpiffeId, csr: bytes, urls: tuple[str, ...] = ()) -> Issued:
        key = requested_key(csr)
        if identity.trust_domain != self.organisation.domain(self.region):
            raise Forbidden(f"{identity} is not of region {self.region}")
        self._check_alive()
        life = self.node_life if identity.role == "node" else None
        return make_svid(self.signer, identity, key, Hosts.of_urls(urls), self.clock.now(), life)

    def issue_workload(
        self, identity: SpiffeId, csr: bytes, dns: tuple[str, ...], life: timedelta
    ) -> tuple[Issued, tuple[str, ...]]:
        """See ``WorkloadIssuer``. Names outside the region's own domain are left out: the
        constraints of this CA would make the certificate worthless (docs/adr/0006)."""
        key = requested_key(csr)
        domain = self.organisation.domain(self.region)
        if identity.trust_domain != domain or identity.role != "app":
            raise Forbidden(f"{identity} is no workload of region {self.region}")
        self._check_alive()
        now = self.clock.now()
        names = Hosts.of(dns).names
        inside = tuple(n for n in names if n == domain or n.endswith(f".{domain}"))
        return make_svid(self.signer, identity, key, Hosts(inside), now, life), inside


def _past_half(certificate: x509.Certificate, now: datetime) -> bool:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now >= begin + (end - begin) / 2


def _meets_its_port(hub: Authority, relay: RegionalAuthority) -> tuple[RootIssuer, Issuer]:
    return hub, relay


def _meets_another_port(
    hub: Authority, relay: RegionalAuthority
) -> tuple[WorkloadIssuer, WorkloadIssuer]:
    return hub, relay
