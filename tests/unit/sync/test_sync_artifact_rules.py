"""What the Workspace asks of artifacts, and what a commit says that names one without."""

import pytest
import repo_of

from edgewise.protocol.content import Artifact, EvidenceRef, TreeRef
from edgewise.sync.compile import compile_workspace
from edgewise.sync.parse import ParseCache
from edgewise.sync.ports import Compiled, CompileFailed, Inputs
from edgewise.sync.validate import snapshot_of

AMD64, ARM64 = "linux/amd64", "linux/arm64"
OURS, THEIRS = "a" * 64, "b" * 64
KEY = ("hello", "1.0.0")
SBOMS = tuple(EvidenceRef("sbom", "x", "d" * 64, 1, platform) for platform in (AMD64, ARM64))
PROVENANCE = EvidenceRef("provenance", "x", "e" * 64, 1)


def compiled(asked: str, *evidence: EvidenceRef, signers: frozenset[str] | None = None) -> Compiled:
    workspace = repo_of.doc("Workspace", "acme", f"artifacts: {asked}")
    trees = {one: TreeRef("c" * 64, 5, 1) for one in (AMD64, ARM64)}
    artifact = Artifact(*KEY, trees, evidence=evidence)
    known = None if signers is None else {KEY: signers}
    return compile_workspace(
        snapshot_of(repo_of.files(edgewise_yaml=workspace) | {"edgewise.yaml": workspace}),
        Inputs({KEY: artifact}, signers=known),
        ParseCache(),
        None,
    )


@pytest.mark.parametrize(
    ("asked", "evidence", "says"),
    [
        ("{require: [sbom]}", (), f"has no SBOM for {AMD64}, {ARM64}"),
        ("{require: [sbom]}", SBOMS[:1], f"has no SBOM for {ARM64}"),
        ("{require: [provenance]}", SBOMS, "has no provenance"),
        (f"{{builders: ['{OURS}']}}", SBOMS, "has no provenance"),
    ],
)
def test_a_commit_that_names_an_artifact_without_evidence_does_not_compile(
    asked: str, evidence: tuple[EvidenceRef, ...], says: str
) -> None:
    with pytest.raises(CompileFailed) as caught:
        compiled(asked, *evidence, signers=frozenset())
    (problem,) = caught.value.problems
    assert says in problem.message
    assert problem.file == "apps/hello.yaml"
    assert problem.line == 6
    assert "publish a new version" in problem.hint


def test_provenance_counts_only_when_one_of_the_builders_signed_it() -> None:
    asked = f"{{require: [sbom, provenance], builders: ['{OURS}']}}"
    assert compiled(asked, *SBOMS, PROVENANCE, signers=frozenset({OURS, THEIRS})).fleets
    for signers in (frozenset[str](), frozenset({THEIRS})):
        with pytest.raises(CompileFailed) as caught:
            compiled(asked, *SBOMS, PROVENANCE, signers=signers)
        assert "none of artifacts.builders" in caught.value.problems[0].message


def test_who_signed_is_not_judged_where_nobody_knows() -> None:
    assert compiled(f"{{builders: ['{OURS}']}}", PROVENANCE, signers=None).fleets


def test_evidence_changes_no_release() -> None:
    bare, full = compiled("{}"), compiled("{}", *SBOMS, PROVENANCE)
    assert bare.fleets["pos"].release == full.fleets["pos"].release


def test_a_key_that_is_none_is_named_with_its_line() -> None:
    with pytest.raises(CompileFailed) as caught:
        compiled("{builders: [abc]}")
    assert "64 hex digits" in str(caught.value.problems[0])
