"""Whether an artifact brings what the Workspace asks for. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from edgewise.model.documents.inventory import ArtifactRules
from edgewise.protocol.content import Artifact


def lacks(
    rules: ArtifactRules, artifact: Artifact, signers: frozenset[str] | None
) -> Iterator[tuple[str, str]]:
    """(what is missing, the next move), in words that go on after the artifact's name.

    ``signers`` are builder keys whose signature on the provenance is good; None: not known
    here, so that it is not judged who signed.
    """
    if "sbom" in rules.require:
        without = [platform for platform in sorted(artifact.trees) if not artifact.sbom(platform)]
        if without:
            yield (
                f"has no SBOM for {', '.join(without)}",
                "`edgewise artifact build` makes one (without --no-sbom); publish a new version",
            )
    if artifact.provenance is None and ("provenance" in rules.require or rules.builders):
        yield (
            "has no provenance",
            "build it again without --no-provenance and publish a new version",
        )
    elif rules.builders and signers is not None and not signers & set(rules.builders):
        by = ", ".join(sorted(key[:12] for key in signers)) or "nobody known here"
        yield (
            f"has provenance signed by {by}, none of artifacts.builders",
            f"publish a new version with --key of {rules.builders[0][:12]}"
            + (" or another of them" if len(rules.builders) > 1 else ""),
        )
