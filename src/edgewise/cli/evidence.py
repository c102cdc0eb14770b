"""SBOMs and provenance of what ``artifact build`` makes, and the signature under them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.model.errors import BadUsage, NotFound

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile

    from edgewise.backends.files.builds import BuildFolder
    from edgewise.cli.client import Client
    from edgewise.protocol.content import Artifact

Sbom = Annotated[
    list[str] | None,
    typer.Option(
        help="FILE, or PLATFORM=FILE: your own SBOM, CycloneDX or SPDX in JSON, in place of the "
        "one that is made of the directory. Repeatable."
    ),
]
NoSbom = Annotated[bool, typer.Option("--no-sbom", help="Make no SBOM.")]
NoProvenance = Annotated[
    bool, typer.Option("--no-provenance", help="Say nothing of where it was built from.")
]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall be said of an artifact."""

    sboms: Mapping[str, Path]
    """Platform to a file of the user's."""
    make_sboms: bool
    provenance: bool


def sboms_of(given: list[str], platforms: Mapping[str, Path]) -> dict[str, Path]:
    """Platform to file, of the option. Raises BadUsage."""
    found: dict[str, Path] = {}
    for one in given:
        platform, equals, file = one.partition("=")
        if not equals:
            found |= dict.fromkeys(platforms, Path(one))
        elif platform in platforms:
            found[platform] = Path(file)
        else:
            raise BadUsage(
                f"--sbom {one}: {platform!r} is no platform of this artifact",
                hint=f"it has {', '.join(sorted(platforms))}",
            )
    return found


def with_evidence(
    folder: BuildFolder,
    artifact: Artifact,
    wanted: Wanted,
    given: Mapping[str, Path],
) -> Artifact:
    """The artifact with what speaks of it, kept in ``folder``, which has its trees.

    ``given`` is platform to what stood on the command line.
    """
    import msgspec

    from edgewise.backends.files.inventory import take_inventory
    from edgewise.cli.origin import origin_of, place_of
    from edgewise.delivery import provenance
    from edgewise.delivery.sbom import CYCLONEDX, make_sbom, media_type_of

    found = []
    for platform, tree in sorted(artifact.trees.items()):
        if (file := wanted.sboms.get(platform)) is not None:
            data = _read(file)
            media_type = media_type_of(data, what=str(file))
            found.append(folder.add_evidence("sbom", media_type, data, platform))
        elif wanted.make_sboms:
            inventory = take_inventory(folder.tree(tree.sha256), folder.content)
            data = make_sbom(artifact, platform, inventory)
            found.append(folder.add_evidence("sbom", CYCLONEDX, data, platform))
    if wanted.provenance:
        platforms = {platform: place_of(source) for platform, source in given.items()}
        first = next(iter(given.values()))
        origin = origin_of(first, {"platforms": platforms, "builtFrom": artifact.built_from})
        statement = provenance.make_statement(artifact, origin)
        found.append(folder.add_evidence("provenance", provenance.UNSIGNED, statement))
    return msgspec.structs.replace(artifact, evidence=tuple(found) or msgspec.UNSET)


def told(folder: BuildFolder, artifact: Artifact) -> Iterator[str]:
    """A line for each piece of evidence."""
    from edgewise.delivery.provenance import read_provenance
    from edgewise.delivery.sbom import summary

    for ref in artifact.all_evidence:
        data = folder.evidence(ref)
        if ref.kind == "sbom":
            said = summary(data)
            yield f"{ref.platform}: {said.format} SBOM: {said.counted or 'nothing'}"
        else:
            origin = read_provenance(data, artifact, ())
            changed = " and changes that are not committed" if origin.changed else ""
            yield f"provenance: commit {origin.commit[:12] or 'unknown'}{changed}"


def signed_by(
    folder: BuildFolder, name: str, version: str, key: Path | None
) -> tuple[bytes, Artifact]:
    """A built artifact; with a key its provenance is signed with it, unless it is signed."""
    import msgspec

    from edgewise.backends.tuf.repository import load_key
    from edgewise.delivery import provenance

    data, artifact = folder.read(name, version)
    ref = artifact.provenance
    if key is None or ref is None or ref.media_type != provenance.UNSIGNED:
        return data, artifact
    envelope = provenance.sign_statement(folder.evidence(ref), load_key(key))
    signed = folder.add_evidence("provenance", provenance.SIGNED, envelope)
    evidence = tuple(signed if one == ref else one for one in artifact.all_evidence)
    artifact = msgspec.structs.replace(artifact, evidence=evidence)
    return folder.add(artifact), artifact


def is_published(client: Client, listed: Mapping[str, TargetFile], artifact: Artifact) -> bool:
    """Whether the list has this version with the same trees.

    Evidence may differ then: the same bytes come from more than one commit. What was published
    first stays.
    """
    from edgewise.cli.local import HubArtifacts

    known = HubArtifacts(client, listed).get((artifact.name, artifact.version))
    return known is not None and known.trees == artifact.trees


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise NotFound(f"--sbom {file} cannot be read: {error.strerror}") from error
