"""Who may join and by which proof: the Workspace's ``join``, and DeviceList."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from edgewise.model.documents.words import (
    Duration,
    LabelKey,
    LabelValue,
    Metadata,
    Misfit,
    Name,
    Strict,
    Text,
)
from edgewise.model.labels import Selector

Hex256 = Annotated[
    str, Meta(pattern="^[0-9a-f]{64}$(?!\n)", extra={"like": "64 lower-case hex digits"})
]
Pem = Annotated[
    str,
    Meta(
        pattern="^\\s*-----BEGIN CERTIFICATE-----",
        max_length=64 << 10,
        extra={"like": "-----BEGIN CERTIFICATE----- ..."},
    ),
]
Pcr = Annotated[int, Meta(ge=0, le=23)]
PcrKey = Annotated[
    str, Meta(pattern="^([0-9]|1[0-9]|2[0-3])$(?!\n)", extra={"like": 'a PCR in quotes, "7"'})
]
SerialWord = Annotated[
    str,
    Meta(
        pattern="^[!-~]([ -~]{0,126}[!-~])?$(?!\n)",
        extra={"like": "at most 128 printable ASCII characters"},
    ),
]
NameRule = Annotated[
    str,
    Meta(
        pattern="^[a-z0-9-]*\\{serial\\}[a-z0-9-]*$(?!\n)",
        max_length=80,
        extra={"like": "kiosk-{serial}"},
    ),
]

MEASURED = (0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 14)
"""PCRs of firmware, its settings, the boot loader, Secure Boot and the booted image."""


class TokenRules(Strict, frozen=True, kw_only=True):
    """What a one-time token is good for."""

    roles: Annotated[tuple[Literal["node", "relay"], ...], Meta(max_length=2)] = ("node", "relay")
    """Who may join with one. ``[relay]``: nodes have to prove themselves."""
    tpm: Literal["Optional", "Required"] = "Optional"
    """``Required``: a node's token only counts together with the proof of a TPM."""


class TpmRules(Strict, frozen=True, kw_only=True):
    """Which TPMs are believed."""

    manufacturer_roots: Annotated[tuple[Pem, ...], Meta(max_length=200)] = ()
    """PEM certificates of TPM makers, one or more in each text. Roots, or any of their
    authorities: what stands here is the end of a chain."""


class FactoryRule(Strict, frozen=True, kw_only=True):
    """What a machine with a factory certificate becomes when no DeviceList has it."""

    serials: Text
    """Pattern of the serial numbers: ``*`` stands for any characters, ``?`` for one."""
    name: NameRule
    """The node's name; ``{serial}`` is the serial number in lower case."""
    region: Name
    """Region that it belongs to."""
    labels: dict[LabelKey, LabelValue] = {}
    """Labels that it joins with."""


class FactoryRules(Strict, frozen=True, kw_only=True):
    """Which factories are believed."""

    roots: Annotated[tuple[Pem, ...], Meta(max_length=200)] = ()
    """PEM certificates of factories; as with TPM makers any authority will do."""
    rules: Annotated[tuple[FactoryRule, ...], Meta(max_length=100)] = ()
    """The first that fits counts. None fits: only machines of a DeviceList may join."""


class PcrReference(Strict, frozen=True, kw_only=True):
    """What one good boot looks like."""

    name: Name
    """For messages: the image, the board."""
    selector: Selector = Selector()
    """Which nodes, by their labels; all when left out."""
    pcrs: Annotated[dict[PcrKey, Hex256], Meta(min_length=1)]
    """PCR to its SHA-256 value. PCRs that are not named are not looked at."""


class AttestationRules(Strict, frozen=True, kw_only=True):
    """What nodes with a TPM have to show, and how often."""

    interval: Duration = "24h"
    """How often a node says anew what it booted; also after each start of its agent."""
    grace: Duration = "1h"
    """How long it may fail, or be heard of without attesting, before it counts."""
    on_failure: Literal["Quarantine", "Report"] = "Quarantine"
    """``Report``: `edgewise node show` and the audit log say so, and nothing else happens."""
    pcrs: Annotated[tuple[Pcr, ...], Meta(min_length=1, max_length=24)] = MEASURED
    """Which PCRs are quoted. Those of ``references`` are always among them."""
    references: Annotated[tuple[PcrReference, ...], Meta(max_length=1000)] = ()
    """Every good boot: a quote must agree with one of those whose selector takes the node.
    Add the values of a new image before it is rolled out. None takes it: nothing is compared."""


class JoinSpec(Strict, frozen=True, kw_only=True):
    """Who may join and by which proof."""

    token: TokenRules = TokenRules()
    """One-time tokens."""
    tpm: TpmRules | None = None
    """Trusted Platform Modules. Left out: only those of a DeviceList are believed."""
    factory: FactoryRules | None = None
    """Factory certificates (IEEE 802.1AR IDevID). Left out: none is believed."""
    attestation: AttestationRules = AttestationRules()
    """What nodes with a TPM have to show."""


class DeviceDefaults(Strict, frozen=True, kw_only=True):
    """What every device of the list has unless its row says otherwise."""

    region: Name | None = None
    """Region that the devices belong to."""
    labels: dict[LabelKey, LabelValue] = {}
    """Merged below the row's labels."""


class DeviceRow(Strict, frozen=True, kw_only=True):
    """One machine that may join by itself: known by its TPM or by its serial number."""

    name: Name
    """The node's name; a device that names none gets this one."""
    ek: Hex256 | None = None
    """SHA-256 of its TPM's endorsement key (DER SubjectPublicKeyInfo), as
    `edgewise node tpm show` prints it."""
    serial: SerialWord | None = None
    """Serial number in its factory certificate."""
    region: Name | None = None
    """Region that it belongs to; without one here and in ``defaults`` it is ``default``."""
    labels: dict[LabelKey, LabelValue] = {}
    """Labels that it joins with."""

    def __post_init__(self) -> None:
        if (self.ek is None) == (self.serial is None):
            raise Misfit("", "a device is known by exactly one of ek and serial")


class DeviceListSpec(Strict, frozen=True, kw_only=True):
    """Machines that were bought, one row each."""

    defaults: DeviceDefaults = DeviceDefaults()
    """What every row starts from."""
    devices: Annotated[tuple[DeviceRow, ...], Meta(max_length=50_000)] = ()
    """The rows."""

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for index, row in enumerate(self.devices):
            known_by = f"ek {row.ek}" if row.ek is not None else f"serial {row.serial}"
            for key in (f"name {row.name}", known_by):
                if key in seen:
                    raise Misfit(f"devices[{index}]", f"{key} stands in two rows")
                seen.add(key)


class DeviceList(Strict, frozen=True, kw_only=True, tag_field="kind", tag="DeviceList"):
    """Machines that may join without a token. `edgewise node tpm import` writes one."""

    api_version: Literal["edgewise.dev/v1"]
    metadata: Metadata
    spec: DeviceListSpec = DeviceListSpec()
