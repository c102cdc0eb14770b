"""A hub keeps SBOMs and provenance with the artifact, and takes none that is wrong."""

from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from edgewise.delivery.builder import make_artifact
from edgewise.delivery.provenance import SIGNED, Origin, make_statement, sign_statement
from edgewise.delivery.sbom import CYCLONEDX
from edgewise.delivery.trust import key_id
from edgewise.model.errors import BadUsage, Forbidden, Untrusted
from edgewise.model.names import Digest
from edgewise.protocol.api import BuildsUpload
from edgewise.protocol.codec import encode
from edgewise.protocol.content import Artifact, EvidenceRef
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import PLATFORM, Content

SBOM = b'{"bomFormat":"CycloneDX","specVersion":"1.6","version":1}'


@pytest.fixture
async def hub() -> Content:
    return await Content.open(ManualClock())


async def artifact(hub: Content, signer: CryptoSigner, *, about: str = "bin/run") -> Artifact:
    """With an SBOM, and signed provenance of a tree that holds ``about``."""
    ref = await hub.tree({"bin/run": b"run"})
    other = await hub.tree({about: b"run"})
    statement = make_statement(Artifact("till", "1", {PLATFORM: other}), Origin())
    envelope = sign_statement(statement, signer)
    for data in (SBOM, envelope):
        await hub.objects.put(Digest.of(data).sha256, data)
    evidence = (
        EvidenceRef("sbom", CYCLONEDX, Digest.of(SBOM).sha256, len(SBOM), PLATFORM),
        EvidenceRef("provenance", SIGNED, Digest.of(envelope).sha256, len(envelope)),
    )
    return make_artifact("till", "1", {PLATFORM: ref}, evidence=evidence)


async def publish(hub: Content, made: Artifact) -> None:
    await hub.publisher.accept_builds(BuildsUpload(b"", (encode(made),)))


async def test_evidence_is_kept_as_long_as_the_artifact(hub: Content) -> None:
    made = await artifact(hub, hub.keys.keys["builder"])
    await publish(hub, made)
    assert {ref.sha256 for ref in made.all_evidence} <= await hub.publisher.reachable()


async def test_the_hub_knows_which_builder_signed(hub: Content) -> None:
    await publish(hub, await artifact(hub, hub.keys.keys["builder"]))
    known = key_id(hub.keys.keys["builder"].public_key)
    assert hub.publisher.signers() == {("till", "1"): frozenset({known})}
    await hub.reopen(ManualClock())
    assert hub.publisher.signers() == {("till", "1"): frozenset({known})}


async def test_a_strangers_signature_counts_for_nobody_until_it_is_a_builder(hub: Content) -> None:
    stranger = CryptoSigner.generate_ed25519()
    await publish(hub, await artifact(hub, stranger))
    assert hub.publisher.signers() == {("till", "1"): frozenset()}
    await hub.publisher.add_builders([stranger.public_key])
    known = key_id(stranger.public_key)
    assert hub.publisher.signers() == {("till", "1"): frozenset({known})}
    await hub.publisher.remove_builder(known)
    assert hub.publisher.signers() == {("till", "1"): frozenset()}


async def test_provenance_of_another_tree_is_refused(hub: Content) -> None:
    with pytest.raises(Untrusted, match="does not speak of its tree"):
        await publish(hub, await artifact(hub, hub.keys.keys["builder"], about="bin/other"))
    assert hub.publisher.artifacts() == {}


async def test_evidence_that_was_not_sent_is_asked_for(hub: Content, tmp_path: Path) -> None:
    made = await artifact(hub, hub.keys.keys["builder"])
    absent = EvidenceRef("sbom", CYCLONEDX, "9" * 64, 5, PLATFORM)
    with pytest.raises(BadUsage, match="999999999999"):
        await publish(hub, make_artifact("till", "1", made.trees, evidence=[absent]))


async def test_what_the_fleet_repo_refuses_is_not_published(hub: Content) -> None:
    def refuse(made: Artifact, signers: frozenset[str]) -> None:
        raise Forbidden(f"{made.name} {len(signers)}")

    hub.publisher.admit = refuse
    with pytest.raises(Forbidden, match="till 1"):
        await publish(hub, await artifact(hub, hub.keys.keys["builder"]))
    assert hub.publisher.artifacts() == {}
