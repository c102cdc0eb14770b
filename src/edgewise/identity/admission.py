"""What the fleet repo says about joining: which proof lets which machine in, and as what.

Laws:
- A machine that proves itself is let in only by a row of a DeviceList, a rule for its serial
  number, or a token beside its proof: to be genuine is not to be ours.
- One proof belongs to one name until that name is forgotten.
- A proof that was shown before, with the same key and the same name, gives the same answer:
  a lost reply burns nothing.
- The same TPM with a new enrolment key (a disk that was written anew) is the same node; how
  often is counted like a rejoin.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Literal

from cryptography import x509

from edgewise.identity.chains import anchors_of
from edgewise.identity.ports import Enrolled, TokenRecord
from edgewise.identity.tokens import Refused
from edgewise.model.documents import DeviceList
from edgewise.model.documents.joining import DeviceRow, FactoryRule, JoinSpec, PcrReference
from edgewise.model.labels import Labels, check_labels
from edgewise.model.names import is_name
from edgewise.model.quantity import parse_duration


@dataclass(frozen=True, slots=True)
class Place:
    """What a machine becomes."""

    name: str
    region: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a machine has proven, after every check."""

    method: Literal["tpm", "factory"]
    identifier: str
    """``ek:<SHA-256>`` or ``idevid:<SHA-256>`` of the device's public key."""
    says: str
    """For people: who vouches for it."""
    serial: str = ""
    """Factory: its serial number."""
    ek: str = ""
    """TPM: SHA-256 of the endorsement key."""
    genuine: bool = False
    """Whether a maker that the repo names vouches for it; else only a row can."""
    ak: bytes = b""
    """TPM: TPMT_PUBLIC of the attestation key."""


@dataclass(frozen=True, slots=True)
class Doubled:
    """A device that two lists have: nobody is let in by it."""

    first: str
    second: str


@dataclass(frozen=True, slots=True)
class JoinRules:
    """The ``join`` of a Workspace and all DeviceLists, ready to be asked. ``of`` makes them."""

    spec: JoinSpec = field(default_factory=JoinSpec)
    makers: tuple[x509.Certificate, ...] = ()
    factories: tuple[x509.Certificate, ...] = ()
    by_ek: Mapping[str, Place | Doubled] = field(default_factory=dict)
    by_serial: Mapping[str, Place | Doubled] = field(default_factory=dict)
    interval: timedelta = timedelta(hours=24)
    grace: timedelta = timedelta(hours=1)

    @classmethod
    def of(cls, spec: JoinSpec, lists: Iterable[DeviceList]) -> JoinRules:
        """From documents. Raises ValueError for PEM texts that hold no certificate."""
        by_ek: dict[str, Place | Doubled] = {}
        by_serial: dict[str, Place | Doubled] = {}
        for one in lists:
            for row in one.spec.devices:
                index, key = (by_ek, row.ek) if row.ek else (by_serial, row.serial or "")
                place = _place_of(row, one)
                before = index.get(key)
                if isinstance(before, Place):
                    index[key] = Doubled(before.name, place.name)
                elif before is None:
                    index[key] = place
        return cls(
            spec,
            anchors_of(spec.tpm.manufacturer_roots if spec.tpm else ()),
            anchors_of(spec.factory.roots if spec.factory else ()),
            by_ek,
            by_serial,
            parse_duration(spec.attestation.interval),
            parse_duration(spec.attestation.grace),
        )

    @property
    def pcrs(self) -> tuple[int, ...]:
        """What a quote has to be over."""
        rules = self.spec.attestation
        named = {int(pcr) for reference in rules.references for pcr in reference.pcrs}
        return tuple(sorted({*rules.pcrs, *named}))

    def references(self, labels: Labels) -> tuple[PcrReference, ...]:
        """The good boots of a node with these labels."""
        found = self.spec.attestation.references
        return tuple(one for one in found if one.selector.matches(labels))

    def row(self, evidence: Evidence) -> Place | Doubled | None:
        """What a DeviceList says about the machine."""
        if evidence.method == "tpm":
            return self.by_ek.get(evidence.ek)
        return self.by_serial.get(evidence.serial)


def _place_of(row: DeviceRow, listed: DeviceList) -> Place:
    defaults = listed.spec.defaults
    region = row.region or defaults.region or "default"
    return Place(row.name, region, {**defaults.labels, **row.labels})


def place_for(rules: JoinRules, evidence: Evidence) -> Place | Refused:
    """What this machine becomes without a token."""
    row = rules.row(evidence)
    if isinstance(row, Doubled):
        return Refused(
            "listed-twice",
            f"two device lists have this machine, as {row.first} and as {row.second}",
            "remove one of the rows",
        )
    if row is not None:
        return row
    if evidence.method == "factory":
        for rule in rules.spec.factory.rules if rules.spec.factory else ():
            if fnmatch.fnmatchcase(evidence.serial, rule.serials):
                return _by_rule(rule, evidence.serial)
        known = f"serial number {evidence.serial!r}"
    else:
        known = f"endorsement key {evidence.ek}"
    return Refused(
        "not-listed",
        f"the machine is genuine, but no device list has its {known}",
        "add a row to a DeviceList, or join it with a token beside the proof",
    )


def _by_rule(rule: FactoryRule, serial: str) -> Place | Refused:
    name = rule.name.replace("{serial}", serial.lower())
    labels = dict(rule.labels)
    try:
        check_labels(labels)
    except ValueError as error:
        return Refused("bad-name", str(error), "correct the factory rule")
    if not is_name(name):
        return Refused(
            "bad-name",
            f"serial number {serial!r} makes no name with {rule.name!r}",
            "list the machine with a name of its own in a DeviceList",
        )
    return Place(name, rule.region, labels)


def token_alone(rules: JoinRules, token: TokenRecord, *, proven: bool) -> Refused | None:
    """Why a token does not do, or not by itself."""
    if token.role not in rules.spec.token.roles:
        return Refused(
            "token-not-allowed",
            f"the fleet repo lets no {token.role} join with a token",
            "join with --tpm or --factory-cert, or change join.token.roles of the Workspace",
        )
    if token.role == "node" and rules.spec.token.tpm == "Required" and not proven:
        return Refused(
            "tpm-required",
            "the fleet repo asks for a TPM beside the token",
            "add --tpm on the machine, or change join.token.tpm of the Workspace",
        )
    return None


@dataclass(frozen=True, slots=True)
class LetIn:
    """A machine that proved itself may have this place."""

    place: Place
    repeat: bool
    """The same key asked before: nothing changes."""
    renewed: bool = False
    """A known machine with a new enrolment key: counted."""


def decide_device(
    place: Place,
    asked: str,
    key: bytes,
    evidence: Evidence,
    *,
    owner: Enrolled | None,
    holder: Enrolled | None,
) -> LetIn | Refused:
    """Whether a machine that proved itself is let in without a token.

    ``asked``: the name that it wants, or "". ``owner``: who joined with the same proof.
    ``holder``: who has the name of ``place`` now.
    """
    if asked and asked != place.name:
        return Refused(
            "listed-as-other",
            f"the fleet repo calls this machine {place.name}, not {asked}",
            f"join without --name, or as {place.name}",
        )
    if owner is not None and owner.name != place.name:
        return Refused(
            "other-name",
            f"this machine is enrolled as {owner.name} already",
            f"`edgewise node forget {owner.name}` first, if it is to change its name",
        )
    if holder is not None and holder.quarantined:
        return Refused(
            "quarantined",
            f"{place.name} is quarantined: {holder.quarantined}",
            f"`edgewise node release {place.name}` lifts it",
        )
    if holder is None or owner is not None:
        same = owner is not None and owner.key == key
        return LetIn(place, repeat=same, renewed=owner is not None and not same)
    if holder.key == key and not holder.evidence:
        return LetIn(place, repeat=False)  # it joined with a token and proves itself now
    return Refused(
        "name-taken",
        f"the name {place.name} belongs to a {holder.role} with another proof",
        f"`edgewise node forget {place.name}` first",
    )


def one_name(name: str, owner: Enrolled | None) -> Refused | None:
    """A machine that proved itself has one name, also with a token."""
    if owner is None or owner.name == name:
        return None
    return Refused(
        "other-name",
        f"this machine is enrolled as {owner.name} already",
        f"`edgewise node forget {owner.name}` first, if it is to change its name",
    )


def elsewhere(place: Place, region: str) -> Refused:
    """The relay in between is of another region."""
    return Refused(
        "wrong-region",
        f"the machine belongs to region {place.region}, this relay is of {region}",
        "use the URL of the hub, or of a relay of its region",
    )


def with_evidence(fresh: Enrolled, evidence: Evidence | None, holder: Enrolled | None) -> Enrolled:
    """The enrolment with what the machine has proven, now or, with the same key, before."""
    if evidence is not None:
        return replace(
            fresh,
            evidence=evidence.identifier,
            vouched=evidence.says,
            serial=evidence.serial,
            ak=evidence.ak,
        )
    if holder is not None and holder.key == fresh.key:
        return replace(
            fresh,
            evidence=holder.evidence,
            vouched=holder.vouched,
            serial=holder.serial,
            ak=holder.ak,
        )
    return fresh
