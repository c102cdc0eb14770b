"""The root certificates: the one that signs, the one that will, the one that did.

``root.pem`` signs. While a root is replaced there is also ``root-next.pem`` (trusted, does
not sign yet) or ``root-old.pem`` (trusted, signs no more). Each has its key of the same name
in the key store. ``rotation.json`` says in which trust bundles the next root first stood,
and when it began to sign.

Laws: a certificate is on disk only after its key is; a change that was cut off is finished
at the next start; there is always exactly one root that signs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.x509.oid import NameOID

from edgewise.backends.pki.certificates import Signer, der, make_root
from edgewise.backends.pki.keys import KeyStore
from edgewise.identity.root_rotation import Stage
from edgewise.model.errors import Conflict, NeedsPerson
from edgewise.runtime.clock import Clock
from edgewise.runtime.credentials import certificates_in, pem_of, write_private

ROOT: Final = "root"
NEXT: Final = "root-next"
OLD: Final = "root-old"


class _Marked(msgspec.Struct, frozen=True):
    sequence: int = 0
    activated: datetime | None = None


@dataclass(slots=True)
class Roots:
    """See ``open_or_create``."""

    directory: Path
    organisation: str
    clock: Clock
    keys: KeyStore
    active: x509.Certificate
    next: x509.Certificate | None = None
    old: x509.Certificate | None = None

    @classmethod
    def open_or_create(
        cls, directory: Path, organisation: str, clock: Clock, keys: KeyStore
    ) -> Roots:
        """Open; make a root first where there is none.

        Raises NeedsPerson when the root belongs to another organisation or is damaged.
        """
        if not (directory / f"{ROOT}.pem").exists():
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            # The key first: a root without its key would be there for ever.
            made = make_root(organisation, clock.now(), keys.create(ROOT))
            _write(directory / f"{ROOT}.pem", made.certificate)
        _finish(directory, keys)
        active = read_certificate(directory / f"{ROOT}.pem")
        if (found := organisation_of(active)) != organisation:
            raise NeedsPerson(
                f"the root in {directory} is of organisation {found!r}, not {organisation!r}",
                hint="use the name the hub was made with, or another --data directory",
            )
        others = [_optional(directory / f"{name}.pem") for name in (NEXT, OLD)]
        return cls(directory, organisation, clock, keys, active, *others)

    @property
    def trusted(self) -> tuple[bytes, ...]:
        """DER, the one that signs first."""
        return tuple(der(c) for c in (self.active, self.next, self.old) if c is not None)

    @property
    def stage(self) -> Stage:
        """Where a rotation stands."""
        if self.next is not None:
            return "Prepared"
        return "Activated" if self.old is not None else "Stable"

    def signer(self) -> Signer:
        """The active root with its key. Raises NeedsPerson when the key is not here."""
        key = self.keys.load(ROOT)
        if key is None:
            raise NeedsPerson(
                "this needs the root's key, which is not here",
                hint=f"put root.key back into {self.directory} for as long as it takes",
            )
        return Signer(self.active, key)

    def prepare(self) -> None:
        """Make the next root; it is trusted from now on and signs nothing yet."""
        if self.stage != "Stable":
            raise Conflict(f"a rotation is under way: {self.stage}")
        made = make_root(self.organisation, self.clock.now(), self.keys.create(NEXT))
        _write(self.directory / f"{NEXT}.pem", made.certificate)
        self.next = made.certificate

    def activate(self) -> None:
        """The next root signs from now on; the old one stays trusted."""
        if self.next is None:
            raise Conflict("there is no next root: prepare one first")
        if not self.keys.has(NEXT):
            raise NeedsPerson(
                "the next root's key is not here", hint=f"put {NEXT}.key into {self.directory}"
            )
        self._keep(_Marked(self.marked, self.clock.now()))
        _write(self.directory / f"{OLD}.pem", self.active)
        _finish(self.directory, self.keys)
        self.active, self.next, self.old = self.next, None, self.active

    def retire(self) -> None:
        """Trust the old root no longer, and destroy its key."""
        if self.old is None:
            raise Conflict("there is no old root to retire")
        (self.directory / f"{OLD}.pem").unlink()
        self.keys.destroy(OLD)
        self.mark(0)
        self.old = None

    def cancel(self) -> None:
        """Forget the next root, which has signed nothing."""
        if self.next is None:
            raise Conflict("there is no next root to forget")
        (self.directory / f"{NEXT}.pem").unlink()
        self.keys.destroy(NEXT)
        self.mark(0)
        self.next = None

    def mark(self, sequence: int) -> None:
        """Remember in which trust bundles the next root first stood."""
        self._keep(_Marked(sequence))

    @property
    def marked(self) -> int:
        """What was marked; 0 for nothing."""
        return self._kept().sequence

    @property
    def activated(self) -> datetime:
        """When the active root began to sign, as far as that was written down."""
        return self._kept().activated or self.active.not_valid_before_utc

    def _keep(self, marked: _Marked) -> None:
        data = msgspec.json.encode(marked)
        write_private(self.directory / "rotation.json", data, mode=0o644)

    def _kept(self) -> _Marked:
        try:
            data = (self.directory / "rotation.json").read_bytes()
            return msgspec.json.decode(data, type=_Marked)
        except (OSError, msgspec.DecodeError):
            return _Marked()


def _finish(directory: Path, keys: KeyStore) -> None:
    """Go on with an activation from wherever it was cut off: ``root-old.pem`` begins it."""
    fresh, stale = directory / f"{NEXT}.pem", directory / f"{OLD}.pem"
    if not (fresh.exists() and stale.exists()):
        return
    if keys.has(NEXT):
        keys.move(ROOT, OLD)  # nothing when it was done already
        keys.move(NEXT, ROOT)
    # One rename ends it: the next root's certificate takes the active one's place.
    os.replace(fresh, directory / f"{ROOT}.pem")


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file. Raises NeedsPerson."""
    try:
        return x509.load_der_x509_certificate(certificates_in(path)[0])
    except ValueError as error:
        raise NeedsPerson(
            f"{path} cannot be read: {error}", hint="put it back from a backup"
        ) from error


def organisation_of(certificate: x509.Certificate) -> str:
    """What its subject says."""
    found = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value)


def _optional(path: Path) -> x509.Certificate | None:
    return read_certificate(path) if path.exists() else None


def _write(path: Path, certificate: x509.Certificate) -> None:
    write_private(path, pem_of([der(certificate)]).encode(), mode=0o644)
