"""What a build says of itself: from git and CI, without secrets, and the same each time."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from edgewise.cli.origin import from_ci, without_secrets
from edgewise.protocol.codec import decode
from edgewise.protocol.content import Artifact
from edgewise.testing.git import WorkTree

GITHUB = {
    "GITHUB_ACTIONS": "true",
    "GITHUB_SERVER_URL": "https://github.com",
    "GITHUB_REPOSITORY": "acme/till",
    "GITHUB_WORKFLOW_REF": "acme/till/.github/workflows/build.yml@refs/heads/main",
    "GITHUB_SHA": "c" * 40,
    "GITHUB_REF": "refs/heads/main",
    "GITHUB_TOKEN": "sekret",
    "GITHUB_RUN_ID": "77",
}
GITLAB = {
    "GITLAB_CI": "true",
    "CI_PROJECT_URL": "https://gitlab-ci-token:sekret@gitlab.example/acme/till",
    "CI_JOB_NAME": "package",
    "CI_COMMIT_SHA": "d" * 40,
    "CI_COMMIT_REF_NAME": "main",
    "CI_JOB_TOKEN": "sekret",
}


@pytest.mark.parametrize(
    ("environ", "builder"),
    [
        (GITHUB, "https://github.com/acme/till/.github/workflows/build.yml@refs/heads/main"),
        (GITLAB, "https://gitlab.example/acme/till//.gitlab-ci.yml#package"),
    ],
)
def test_ci_says_which_workflow_built_and_no_secret_gets_out(
    environ: dict[str, str], builder: str
) -> None:
    said = from_ci(environ)
    assert said["builder"] == builder
    assert "sekret" not in str(said)
    assert "77" not in str(said)
    assert from_ci({}) == {}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://ada:pw@git.example/a.git?token=x", "https://git.example/a.git"),
        ("ssh://git@git.example:2222/a.git", "ssh://git.example:2222/a.git"),
        ("git@git.example:a.git", "git@git.example:a.git"),
        ("/home/ada/secret-project", ""),
    ],
)
def test_urls_lose_names_passwords_and_paths_of_this_machine(url: str, said: str) -> None:
    assert without_secrets(url) == said


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkTree:
    for name in (*GITHUB, *GITLAB):
        monkeypatch.delenv(name, raising=False)
    tree = WorkTree(tmp_path / "till")
    tree.commit({"dist/bin/till": "#!/bin/sh\n"})
    tree.git("remote", "add", "origin", "https://ada:sekret@git.example/acme/till.git")
    return tree


def build(cli: Any, work: WorkTree, to: Path, *more: str) -> Artifact:
    done = cli(
        "artifact", "build", str(work.path / "dist"), "--name", "till", "--version", "1",
        "--platform", "linux/amd64", "--to", str(to), *more,
    )  # fmt: skip
    assert done.code == 0, done.err
    return decode((to / "artifacts/till/1.json").read_bytes(), Artifact, what="artifact")


def statement(to: Path, artifact: Artifact) -> dict[str, Any]:
    assert artifact.provenance is not None
    said: dict[str, Any] = json.loads((to / "evidence" / artifact.provenance.sha256).read_bytes())
    if "payload" in said:
        said = json.loads(base64.b64decode(said["payload"]))
    return said


def test_the_commit_is_named_and_changes_that_are_not_in_it(
    cli: Any, work: WorkTree, tmp_path: Path
) -> None:
    head = work.git("rev-parse", "HEAD").stdout.strip()
    said = statement(tmp_path / "b", build(cli, work, tmp_path / "b"))
    definition = said["predicate"]["buildDefinition"]
    assert definition["resolvedDependencies"] == [
        {"uri": "git+https://git.example/acme/till.git", "digest": {"gitCommit": head}}
    ]
    assert definition["externalParameters"]["platforms"] == {"linux/amd64": "dist"}
    (work.path / "dist/bin/till").write_text("changed")
    said = statement(tmp_path / "c", build(cli, work, tmp_path / "c"))
    (source,) = said["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert source["annotations"] == {"changedSinceCommit": True}


def test_ci_of_another_repository_lends_no_name_to_this_commit(
    cli: Any, work: WorkTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in GITHUB.items():
        monkeypatch.setenv(name, value)
    said = statement(tmp_path / "b", build(cli, work, tmp_path / "b"))
    (source,) = said["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert source["uri"] == "git+https://git.example/acme/till.git"
    monkeypatch.setenv("GITHUB_SHA", work.git("rev-parse", "HEAD").stdout.strip())
    said = statement(tmp_path / "c", build(cli, work, tmp_path / "c"))
    (source,) = said["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert source["uri"] == "git+https://github.com/acme/till@refs/heads/main"


def test_building_the_same_again_gives_the_same_bytes(
    cli: Any, work: WorkTree, tmp_path: Path
) -> None:
    assert build(cli, work, tmp_path / "b") == build(cli, work, tmp_path / "c")


def test_an_sbom_of_ones_own_is_kept_byte_for_byte(
    cli: Any, work: WorkTree, tmp_path: Path
) -> None:
    own = tmp_path / "own.json"
    own.write_text('{"spdxVersion": "SPDX-2.3",  "packages": []}\n')
    artifact = build(cli, work, tmp_path / "b", "--sbom", str(own))
    ref = artifact.sbom("linux/amd64")
    assert ref is not None
    assert (tmp_path / "b/evidence" / ref.sha256).read_bytes() == own.read_bytes()
    for given, says in ((f"linux/arm64={own}", "no platform"), (str(work.path), "cannot be read")):
        refused = cli(
            "artifact", "build", str(work.path / "dist"), "--name", "till", "--version", "1",
            "--platform", "linux/amd64", "--to", str(tmp_path / "b"), "--sbom", given,
        )  # fmt: skip
        assert (refused.code, says in refused.err) == (2, True)


def test_an_artifact_may_say_nothing(cli: Any, work: WorkTree, tmp_path: Path) -> None:
    artifact = build(cli, work, tmp_path / "b", "--no-sbom", "--no-provenance")
    assert b"evidence" not in (tmp_path / "b/artifacts/till/1.json").read_bytes()
    assert artifact.all_evidence == ()
