"""SBOMs and provenance: what is found in a tree, what is said of it, and what is not believed."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf.json_format import Parse
from hypothesis import given
from hypothesis import strategies as st
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage
from securesystemslib.signer import CryptoSigner

from edgewise.backends.files.inventory import take_inventory
from edgewise.backends.files.trees import scan
from edgewise.delivery import provenance
from edgewise.delivery.evidence import check_evidence
from edgewise.delivery.packages import apk_packages, dpkg_packages, python_package
from edgewise.delivery.provenance import Origin, make_statement, read_provenance, sign_statement
from edgewise.delivery.sbom import CYCLONEDX, SPDX, Inventory, make_sbom, media_type_of, summary
from edgewise.delivery.trees import reference
from edgewise.delivery.trust import key_id
from edgewise.model.errors import BadUsage, Untrusted
from edgewise.model.names import Digest
from edgewise.protocol.content import Artifact, EvidenceRef

AMD64 = "linux/amd64"
STATUS = """\
Package: curl
Status: install ok installed
Architecture: amd64
Version: 7.88.1-10

Package: gone
Status: deinstall ok config-files
Version: 1

"""
INSTALLED = "P:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\nF:lib\nR:ld-musl-x86_64.so.1\n\nP:broken\n\n"


def put(folder: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


@pytest.fixture
def system(tmp_path: Path) -> Path:
    site = "usr/lib/python3/dist-packages"
    return put(
        tmp_path / "system",
        {
            "etc/os-release": 'NAME="Debian"\nID=debian\n',
            "var/lib/dpkg/status": STATUS,
            "var/lib/dpkg/info/curl.list": "/.\n/bin\n/bin/curl\n",
            "usr/bin/curl": "curl",
            f"{site}/six.py": "six",
            f"{site}/six-1.16.0.dist-info/METADATA": "Name: six\nVersion: 1.16.0\nLicense: MIT\n",
            f"{site}/six-1.16.0.dist-info/RECORD": "six.py,,\n../../../bin/six,,\n",
            "usr/bin/six": "six",
            "opt/ours/server": "a program of our own",
        },
    )


def inventory_of(folder: Path) -> Inventory:
    places = {Digest.of(f.read_bytes()).sha256: f for f in folder.rglob("*") if f.is_file()}
    return take_inventory(scan(folder), places.__getitem__)


def artifact_of(folder: Path) -> Artifact:
    ref, _ = reference(scan(folder))
    return Artifact("till", "1.0", {AMD64: ref})


def test_packages_are_found_and_what_none_brought_is_listed(system: Path) -> None:
    found = inventory_of(system)
    assert {(p.kind, p.name, p.version) for p in found.packages} == {
        ("deb", "curl", "7.88.1-10"),
        ("pypi", "six", "1.16.0"),
    }
    assert {p for p in found.loose if not p.startswith(("etc/", "usr/lib"))} == {"opt/ours/server"}


def test_an_sbom_follows_the_official_schema_and_says_that_it_is_incomplete(system: Path) -> None:
    data = make_sbom(artifact_of(system), AMD64, inventory_of(system))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(data.decode()) is None
    document = json.loads(data)
    assert "timestamp" not in document["metadata"]
    urls = {one.get("purl") for one in document["components"]}
    assert "pkg:deb/debian/curl@7.88.1-10?arch=amd64" in urls
    assert document["compositions"][0]["aggregate"] == "incomplete"
    assert summary(data).kinds["deb"] == 1
    assert summary(data).complete is False


def test_the_same_tree_gives_the_same_sbom(system: Path, tmp_path: Path) -> None:
    inventory = inventory_of(system)
    twice = {make_sbom(artifact_of(system), AMD64, inventory) for _ in range(2)}
    assert len(twice) == 1


def test_a_database_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside", {"status": STATUS})
    inside = put(tmp_path / "inside", {"var/lib/dpkg/arch": "", "status": STATUS})
    (inside / "var/lib/dpkg/status").symlink_to("../../../status")
    assert inventory_of(inside).packages == ()
    assert outside.exists()


def test_alpine_says_what_it_installed() -> None:
    (found,) = apk_packages(INSTALLED, "alpine")
    assert (found.name, found.version, found.license) == ("musl", "1.2.5-r0", "MIT")
    assert "lib/ld-musl-x86_64.so.1" in found.files


def test_a_record_that_leads_out_of_the_tree_owns_nothing_there() -> None:
    found = python_package("Name: x\nVersion: 1\n", "../../etc/passwd,,\n/abs,,\nx.py,,\n", "site")
    assert found is not None
    assert found.files == {"abs", "site/x.py"}


@given(st.text(max_size=300))
def test_any_text_can_stand_in_a_package_database(text: str) -> None:
    list(dpkg_packages(text, "debian"))
    list(apk_packages(text, "alpine"))
    python_package(text, text, "lib")


def test_the_random_databases_do_hold_packages() -> None:
    assert list(dpkg_packages("Package: a\nVersion: 1", "debian"))


# A builder's own SBOM


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"bomFormat": "CycloneDX", "specVersion": "1.5"}', CYCLONEDX),
        ('{"spdxVersion": "SPDX-2.3", "packages": []}', SPDX),
        ('{"@context": "https://spdx.org/rdf/3.0.1/spdx-context.jsonld", "@graph": []}', SPDX),
    ],
)
def test_an_sbom_of_ones_own_is_known_by_what_it_says(text: str, kind: str) -> None:
    assert media_type_of(text.encode(), what="x") == kind
    assert summary(text.encode()).components == 0


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "<bom/>", '{"bomFormat": "CycloneDX"}', "[" * 9999]
)
def test_what_is_no_sbom_is_refused(text: str) -> None:
    with pytest.raises(BadUsage, match=r"no SBOM|neither"):
        media_type_of(text.encode(), what="x.json")


def test_packages_of_spdx_are_counted_by_their_urls() -> None:
    locator = {"referenceType": "purl", "referenceLocator": "pkg:npm/left-pad@1"}
    package = {"name": "left-pad", "versionInfo": "1", "externalRefs": [locator]}
    document = {"spdxVersion": "SPDX-2.3", "packages": [package, "nonsense", {"name": "x"}]}
    said = summary(json.dumps(document).encode())
    assert said.kinds == {"npm": 1, "package": 1}
    assert said.first == ("left-pad 1", "x")


# Provenance

ORIGIN = Origin(
    builder="https://ci.example/acme/till",
    commit="c" * 40,
    repository="https://git.example/acme/till",
    ref="refs/heads/main",
    changed=True,
    parameters={"platforms": {AMD64: "dist"}},
)


@pytest.fixture
def signer() -> CryptoSigner:
    return CryptoSigner.generate_ed25519()


def test_a_statement_is_what_in_toto_calls_valid(system: Path) -> None:
    data = make_statement(artifact_of(system), ORIGIN)
    message = Parse(data, StatementMessage())
    Statement.copy_from_pb(message).validate()
    assert message.predicate_type == "https://slsa.dev/provenance/v1"


def test_a_signature_can_be_checked_with_nothing_but_ed25519(
    system: Path, signer: CryptoSigner
) -> None:
    """By the rules of DSSE alone, as other tools do."""
    import base64

    envelope = json.loads(sign_statement(make_statement(artifact_of(system), ORIGIN), signer))
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    covered = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    public = bytes.fromhex(signer.public_key.keyval["public"])
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    Ed25519PublicKey.from_public_bytes(public).verify(signature, covered)


def test_signing_the_same_thing_again_gives_the_same_bytes(
    system: Path, signer: CryptoSigner
) -> None:
    made = {sign_statement(make_statement(artifact_of(system), ORIGIN), signer) for _ in range(2)}
    assert len(made) == 1


def test_provenance_says_who_signed_it(system: Path, signer: CryptoSigner) -> None:
    artifact, stranger = artifact_of(system), CryptoSigner.generate_ed25519()
    data = sign_statement(make_statement(artifact, ORIGIN), signer)
    said = read_provenance(data, artifact, [stranger.public_key, signer.public_key])
    assert said.signed_by == (key_id(signer.public_key),)
    assert (said.builder, said.commit, said.changed) == (ORIGIN.builder, "c" * 40, True)
    assert said.source == "git+https://git.example/acme/till@refs/heads/main"
    assert read_provenance(data, artifact, [stranger.public_key]).signed_by == ()


def test_provenance_of_another_artifact_is_refused(
    system: Path, tmp_path: Path, signer: CryptoSigner
) -> None:
    other = artifact_of(put(tmp_path / "other", {"x": "y"}))
    data = sign_statement(make_statement(other, ORIGIN), signer)
    with pytest.raises(Untrusted, match="does not speak of its tree"):
        read_provenance(data, artifact_of(system), [signer.public_key])


def test_a_changed_statement_is_signed_by_nobody(system: Path, signer: CryptoSigner) -> None:
    import base64

    artifact = artifact_of(system)
    envelope = json.loads(sign_statement(make_statement(artifact, ORIGIN), signer))
    forged = base64.b64decode(envelope["payload"]).replace(b"ci.example", b"no.example")
    envelope["payload"] = base64.b64encode(forged).decode()
    said = read_provenance(json.dumps(envelope).encode(), artifact, [signer.public_key])
    assert said.signed_by == ()
    assert said.signatures == 1


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[]",
        '{"payloadType": "application/vnd.in-toto+json"}',
        '{"payloadType": "x", "payload": "e30=", "signatures": []}',
        '{"payloadType": "application/vnd.in-toto+json", "payload": "!", "signatures": [{}]}',
        '{"payloadType": "application/vnd.in-toto+json", "payload": "e30=", "signatures": 7}',
        '{"subject": "x"}',
        '{"subject": [{"digest": {"sha256": 1}}], "predicate": []}',
    ],
)
def test_nonsense_is_no_provenance(system: Path, text: str) -> None:
    with pytest.raises(Untrusted):
        read_provenance(text.encode(), artifact_of(system), ())


def test_evidence_must_be_what_the_artifact_says(system: Path) -> None:
    artifact = artifact_of(system)
    sbom = make_sbom(artifact, AMD64, inventory_of(system))
    digest = Digest.of(sbom).sha256

    def check(*refs: EvidenceRef) -> None:
        said = Artifact("till", "1.0", artifact.trees, evidence=refs)
        check_evidence(said, {digest: sbom}, ())

    good = EvidenceRef("sbom", CYCLONEDX, digest, len(sbom), AMD64)
    check(good)
    for wrong, says in (
        (EvidenceRef("sbom", CYCLONEDX, digest, len(sbom) + 1, AMD64), "bytes"),
        (EvidenceRef("sbom", SPDX, digest, len(sbom), AMD64), "its document says"),
        (EvidenceRef("sbom", CYCLONEDX, digest, len(sbom), "linux/arm64"), "no tree of it"),
        (EvidenceRef("provenance", provenance.SIGNED, digest, len(sbom)), "does not speak"),
    ):
        with pytest.raises(Untrusted, match=says):
            check(wrong)
    with pytest.raises(Untrusted, match="twice"):
        check(good, good)
