"""What the rules of joining must satisfy beyond their shape. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from cryptography import x509

from edgewise.model.documents import DeviceList, Workspace
from edgewise.model.documents.joining import JoinSpec
from edgewise.model.quantity import parse_duration
from edgewise.sync.mismatch import Finding, dotted
from edgewise.sync.yaml_text import Path

SHORTEST: Final = timedelta(seconds=10)
"""Attesting more often than this is a mistake: a TPM takes a second for it."""
HUB: Final = "hub"
"""The one name that no region may have."""


def join_findings(workspace: Workspace) -> Iterator[Finding]:
    """Mistakes in ``spec.join``."""
    join = workspace.spec.join
    for path, texts in _certificates(join):
        for index, text in enumerate(texts):
            try:
                x509.load_pem_x509_certificates(text.encode())
            except ValueError as error:
                where = (*path, index)
                yield Finding(
                    where, f"{dotted(where)}: {error}", "it takes PEM certificates, whole"
                )
    interval: Path = ("spec", "join", "attestation", "interval")
    if parse_duration(join.attestation.interval) < SHORTEST:
        yield Finding(interval, f"{dotted(interval)} is below {SHORTEST.seconds} s", "24h is usual")
    if join.factory is not None:
        for index, rule in enumerate(join.factory.rules):
            yield from _region(("spec", "join", "factory", "rules", index, "region"), rule.region)


def device_findings(devices: DeviceList) -> Iterator[Finding]:
    """Mistakes in a DeviceList."""
    yield from _region(("spec", "defaults", "region"), devices.spec.defaults.region)
    for index, row in enumerate(devices.spec.devices):
        yield from _region(("spec", "devices", index, "region"), row.region)


def _certificates(join: JoinSpec) -> Iterator[tuple[Path, tuple[str, ...]]]:
    if join.tpm is not None:
        yield ("spec", "join", "tpm", "manufacturerRoots"), join.tpm.manufacturer_roots
    if join.factory is not None:
        yield ("spec", "join", "factory", "roots"), join.factory.roots


def _region(path: Path, region: str | None) -> Iterator[Finding]:
    if region == HUB:
        yield Finding(path, f"{dotted(path)}: no region can be called {HUB!r}", "", HUB)
