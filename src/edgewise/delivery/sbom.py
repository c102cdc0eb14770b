"""Software bills of materials: made of a tree, or a builder's own, and summed up. Pure.

Sources: CycloneDX 1.6 (ECMA-424), written with cyclonedx-python-lib; SPDX 2.2 to 3.0 as JSON
are taken as they come. The same tree gives the same bytes anywhere: no time, and a serial
number that follows from the tree's digest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import NAMESPACE_URL, uuid5

import msgspec

from edgewise import __version__
from edgewise.delivery.packages import Package
from edgewise.model.errors import BadUsage, Untrusted
from edgewise.protocol import limits
from edgewise.protocol.codec import encode
from edgewise.protocol.content import Artifact

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component

CYCLONEDX: Final = "application/vnd.cyclonedx+json"
SPDX: Final = "application/spdx+json"
FILES_LISTED: Final = 1000
"""Files without a package that an SBOM lists one by one; the tree has all of them, and an SBOM
of tens of thousands takes the library minutes."""
_ROOT: Final = "artifact"


@dataclass(frozen=True, slots=True)
class Inventory:
    """What was found in a tree."""

    packages: tuple[Package, ...]
    loose: Mapping[str, str]
    """Path to SHA-256 of the files that no package brought."""
    files: int
    """Files in all."""


class SbomSummary(msgspec.Struct, frozen=True):
    """What an SBOM says, in a few numbers. All of it is as its maker wrote it."""

    format: str
    """``CycloneDX 1.6``, ``SPDX-2.3``."""
    components: int
    kinds: dict[str, int]
    """Type of package URL, or type of component, to how many."""
    first: tuple[str, ...]
    """Names and versions of the first ten packages, by name."""
    complete: bool | None
    """Whether it says that it is; None when it does not say."""

    @property
    def counted(self) -> str:
        """Its kinds for people: ``118 deb, 2 files``."""
        return ", ".join(
            f"{count} {'files' if kind == 'file' and count != 1 else kind}"
            for kind, count in self.kinds.items()
        )


def make_sbom(artifact: Artifact, platform: str, inventory: Inventory) -> bytes:
    """CycloneDX JSON of one tree. It says ``incomplete`` when a file belongs to no package:
    such a file is known by its digest only, and what a program was linked from is not."""
    document = _rendered(_bom(artifact, platform, inventory))
    document["metadata"].pop("timestamp", None)
    whole = not inventory.loose
    document["compositions"] = [
        {"aggregate": "complete" if whole else "incomplete", "assemblies": [_ROOT]}
    ]
    return encode(document)


def _bom(artifact: Artifact, platform: str, inventory: Inventory) -> Bom:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType

    tree = artifact.trees[platform].sha256
    listed = sorted(inventory.loose.items())[:FILES_LISTED]
    counts = {
        "edgewise:platform": platform,
        "edgewise:files": str(inventory.files),
        "edgewise:files-without-package": str(len(inventory.loose)),
        "edgewise:files-listed": str(len(listed)),
    }
    root = Component(
        name=artifact.name,
        version=artifact.version,
        type=ComponentType.APPLICATION,
        bom_ref=_ROOT,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=tree)],
        properties=[Property(name=key, value=value) for key, value in counts.items()],
    )
    tool = Component(name="edgewise", version=__version__, type=ComponentType.APPLICATION)
    known = f"edgewise:{artifact.name}:{artifact.version}:{platform}:{tree}"
    bom = Bom(
        serial_number=uuid5(NAMESPACE_URL, known),
        metadata=BomMetaData(component=root, tools=[]),
    )
    bom.metadata.tools.components.add(tool)
    packages = sorted(set(inventory.packages), key=_order)
    parts = [_component(package, f"package-{n}") for n, package in enumerate(packages)]
    parts += [
        Component(
            name=path,
            type=ComponentType.FILE,
            bom_ref=f"file:{path}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
        )
        for path, sha256 in listed
    ]
    bom.register_dependency(root, parts)
    bom.components.update(parts)
    return bom


def _order(package: Package) -> tuple[str, str, str, str]:
    return (package.kind, package.name, package.version, package.architecture)


def _component(package: Package, reference: str) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import DisjunctiveLicense
    from packageurl import PackageURL

    # The same package of two architectures has the same name: qualifiers tell them apart.
    qualifiers = {"arch": package.architecture} if package.architecture else None
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=reference,
        licenses=[DisjunctiveLicense(name=package.license)] if package.license else None,
        purl=PackageURL(
            package.kind, package.distribution or None, package.name, package.version, qualifiers
        ),
    )


def _rendered(bom: Bom) -> dict[str, Any]:
    from cyclonedx.output.json import JsonV1Dot6

    document: dict[str, Any] = msgspec.json.decode(JsonV1Dot6(bom).output_as_string())
    return document


# SBOMs of whatever origin


def media_type_of(data: bytes, *, what: str) -> str:
    """What kind of SBOM a file is. Raises BadUsage, with what is accepted, for others."""
    if len(data) > limits.EVIDENCE:
        raise BadUsage(f"{what} has {len(data)} bytes, at most {limits.EVIDENCE} are taken")
    hint = "give a CycloneDX or SPDX document in JSON"
    try:
        document = _read(data)
    except Untrusted as error:
        raise BadUsage(f"{what} is no SBOM: {error}", hint=hint) from error
    if document.get("bomFormat") == "CycloneDX" and "specVersion" in document:
        return CYCLONEDX
    if "spdxVersion" in document or "spdx.org" in str(document.get("@context", "")):
        return SPDX
    raise BadUsage(f"{what} is JSON, but neither CycloneDX nor SPDX", hint=hint)


def summary(data: bytes) -> SbomSummary:
    """Sum up what somebody wrote. Raises Untrusted for what is no SBOM."""
    document = _read(data)
    if document.get("bomFormat") == "CycloneDX":
        return _cyclonedx(document)
    if "spdxVersion" in document:
        packages = _dicts(document.get("packages"))
        return _summed(
            str(document["spdxVersion"]),
            [(_spdx_kind(p), str(p.get("name")), str(p.get("versionInfo", ""))) for p in packages],
        )
    if "spdx.org" in str(document.get("@context", "")):
        graph = _dicts(document.get("@graph"))
        packages = [p for p in graph if str(p.get("type", "")).lower().endswith("package")]
        return _summed(
            "SPDX-3",
            [
                ("package", str(p.get("name")), str(p.get("software_packageVersion", "")))
                for p in packages
            ],
        )
    raise Untrusted("it is neither CycloneDX nor SPDX")


def _cyclonedx(document: dict[str, Any]) -> SbomSummary:
    found = [
        (
            str(one.get("purl", "")).partition(":")[2].partition("/")[0] or str(one.get("type")),
            str(one.get("name")),
            str(one.get("version", "")),
        )
        for one in _dicts(document.get("components"))
    ]
    aggregates = {one.get("aggregate") for one in _dicts(document.get("compositions"))}
    complete = None if not aggregates else aggregates == {"complete"}
    return _summed(f"CycloneDX {document.get('specVersion')}", found, complete)


def _summed(
    form: str, found: list[tuple[str, str, str]], complete: bool | None = None
) -> SbomSummary:
    named = sorted((name, version) for kind, name, version in found if kind != "file")
    return SbomSummary(
        form[:40],
        len(found),
        dict(sorted(Counter(kind[:40] for kind, _, _ in found).items())),
        tuple(f"{name} {version}".strip()[:100] for name, version in named[:10]),
        complete,
    )


def _spdx_kind(package: dict[str, Any]) -> str:
    for one in _dicts(package.get("externalRefs")):
        if one.get("referenceType") == "purl":
            return str(one.get("referenceLocator", "")).partition(":")[2].partition("/")[0]
    return "package"


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _read(data: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Untrusted(f"it is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Untrusted("it is not a JSON object")
    return document
