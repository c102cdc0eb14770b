"""Whether an artifact's SBOMs and provenance are what its document says, and who signed. Pure.

A list of builds is refused when one of its new artifacts names evidence that is none: wrong
evidence is worse than no evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from securesystemslib.signer import Key

from edgewise.delivery.ports import ObjectStore
from edgewise.delivery.provenance import SIGNED, UNSIGNED, Provenance, read_provenance
from edgewise.delivery.sbom import SbomSummary, media_type_of, summary
from edgewise.model.errors import BadUsage, NotFound, Untrusted
from edgewise.protocol import limits
from edgewise.protocol.content import Artifact, EvidenceRef

EVIDENCES: Final = 64
"""SBOMs and provenance of one artifact: it has one tree a platform, and seldom ten of those."""


def check_evidence(
    artifact: Artifact, contents: Mapping[str, bytes], keys: Iterable[Key]
) -> tuple[dict[str, SbomSummary], Provenance | None]:
    """SBOMs by platform, and the provenance. ``contents`` is digest to bytes, digests checked.

    Raises Untrusted for evidence that is not of the size, the kind or about the trees that the
    artifact says.
    """
    name = f"{artifact.name} {artifact.version}"
    if len(artifact.all_evidence) > EVIDENCES:
        raise Untrusted(f"{name} names {len(artifact.all_evidence)} SBOMs, at most {EVIDENCES}")
    sboms: dict[str, SbomSummary] = {}
    provenance: Provenance | None = None
    known = list(keys)
    for ref in artifact.all_evidence:
        data = contents[ref.sha256]
        what = f"the {ref.kind} of {name}"
        if len(data) != ref.size:
            raise Untrusted(f"{what} has {len(data)} bytes, its document says {ref.size}")
        if ref.kind == "sbom":
            if ref.platform not in artifact.trees or ref.platform in sboms:
                raise Untrusted(f"{what} is for {ref.platform!r}, which is no tree of it or twice")
            sboms[ref.platform] = _sbom(ref, data, what)
        else:
            if provenance is not None or ref.media_type not in (SIGNED, UNSIGNED):
                raise Untrusted(f"{what} is there twice, or of type {ref.media_type[:80]!r}")
            provenance = read_provenance(data, artifact, known)
    return sboms, provenance


def _sbom(ref: EvidenceRef, data: bytes, what: str) -> SbomSummary:
    try:
        media_type = media_type_of(data, what=what)
    except BadUsage as error:
        raise Untrusted(str(error)) from error
    if media_type != ref.media_type:
        raise Untrusted(f"{what} is {media_type}, its document says {ref.media_type[:80]}")
    return summary(data)


class Signers:
    """Who signed the provenance of artifacts; what was verified once is remembered."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._known: dict[tuple[str, frozenset[str]], frozenset[str]] = {}

    async def check(self, artifact: Artifact, keys: Iterable[Key]) -> frozenset[str]:
        """See ``check_evidence``; returns who signed the provenance. Raises NotFound for what
        is not kept here."""
        contents = {
            ref.sha256: await self._objects.get(ref.sha256, at_most=limits.EVIDENCE)
            for ref in artifact.all_evidence
        }
        _, provenance = check_evidence(artifact, contents, keys)
        return frozenset(provenance.signed_by if provenance else ())

    async def of(
        self, artifacts: Mapping[tuple[str, str], Artifact], keys: Iterable[Key]
    ) -> dict[tuple[str, str], frozenset[str]]:
        """(name, version) to identifiers of ``keys``, for each artifact with provenance.

        One whose provenance is gone or wrong is left out.
        """
        known = list(keys)
        ids = frozenset(key.keyid for key in known)
        found: dict[tuple[str, str], frozenset[str]] = {}
        for name, artifact in artifacts.items():
            ref = artifact.provenance
            if ref is None:
                continue
            remembered = (ref.sha256, ids)
            if remembered not in self._known:
                try:
                    data = await self._objects.get(ref.sha256, at_most=limits.EVIDENCE)
                    said = read_provenance(data, artifact, known)
                except (NotFound, Untrusted):
                    continue
                self._known[remembered] = frozenset(said.signed_by)
            found[name] = self._known[remembered]
        self._known = {k: v for k, v in self._known.items() if k[1] == ids}
        return found
