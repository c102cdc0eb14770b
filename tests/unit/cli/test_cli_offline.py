"""A fleet repo begins with a starter that passes, and mistakes are told with file and line."""

from pathlib import Path
from typing import Any

import pytest

from edgewise.testing.git import WorkTree


@pytest.fixture
def repo(cli: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "shops"
    done = cli("init", str(folder))
    assert done.code == 0, done.err
    return folder


def test_what_init_writes_passes_validation(cli: Any, repo: Path) -> None:
    assert "name: shops" in (repo / "edgewise.yaml").read_text()
    done = cli("validate", str(repo))
    assert done.code == 0, done.err
    assert "fleet all: ok" in done.out
    done = cli("validate", str(repo), "-o", "json")
    assert done.json["problems"] == []
    assert list(done.json["fleets"]) == ["all"]


def test_init_overwrites_nothing(cli: Any, repo: Path) -> None:
    (repo / "edgewise.yaml").write_text("mine")
    done = cli("init", str(repo))
    assert done.code == 2
    assert "nothing was written" in done.err
    assert (repo / "edgewise.yaml").read_text() == "mine"


def test_init_lists_its_files_for_programs(cli: Any, tmp_path: Path) -> None:
    done = cli("init", str(tmp_path / "x"), "--organisation", "acme", "-o", "json")
    assert "edgewise.yaml" in done.json["files"]
    assert cli("init", str(tmp_path / "y"), "--organisation", "Not A Name").code == 2


def test_a_mistake_is_told_with_file_and_line_and_exit_code_4(cli: Any, repo: Path) -> None:
    broken = next((repo / "apps").glob("*.yaml"))
    text = broken.read_text().replace("kind: App", "kind: Ap")
    broken.write_text(text)
    line = next(n for n, one in enumerate(text.splitlines(), 1) if one.startswith("kind"))
    done = cli("validate", str(repo))
    assert done.code == 4
    assert f"apps/{broken.name}:{line}:" in done.err
    done = cli("validate", str(repo), "--output", "json")
    assert done.code == 4
    assert done.json["problems"][0]["line"] == line


def test_a_directory_that_is_none_is_wrong_usage(cli: Any, tmp_path: Path) -> None:
    assert cli("validate", str(tmp_path / "gone")).code == 2


def test_every_kind_has_a_schema_that_knows_its_fields(cli: Any, tmp_path: Path) -> None:
    kinds = cli("schema").out.split()
    assert cli("schema", "-o", "json").json == kinds
    assert {"App", "Fleet", "RolloutPolicy", "Workspace"} <= set(kinds)
    assert cli("schema", "--write", str(tmp_path)).code == 0
    for kind in kinds:
        one = cli("schema", kind)
        assert (tmp_path / f"{kind}.json").read_text() == one.out
        named = one.json["$ref"].rpartition("/")[2]
        fields = one.json["$defs"][named]
        assert fields["properties"]["kind"] == {"enum": [kind]}
        assert fields["additionalProperties"] is False
        assert {"apiVersion", "metadata", "spec"} <= set(fields["properties"])


def test_a_kind_that_does_not_exist_names_those_that_do(cli: Any) -> None:
    done = cli("schema", "Ap")
    assert done.code == 2
    assert "App" in done.err


@pytest.fixture
def clone(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkTree:
    """A committed starter repo of a person who has no hub."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("EDGEWISE_CONTEXT", raising=False)
    assert cli("init", str(tmp_path / "shops")).code == 0
    tree = WorkTree(tmp_path / "shops")
    nodes = (
        "apiVersion: edgewise.dev/v1\nkind: NodeSet\nmetadata: {name: tills}\n"
        "spec: {nodes: [{name: till-1}, {name: till-2}]}\n"
    )
    tree.commit({"nodes/tills.yaml": nodes})
    return tree


def test_a_plan_needs_no_hub_and_says_what_it_could_not_check(cli: Any, clone: WorkTree) -> None:
    app = (clone.path / "configs" / "site.yaml").read_text()
    clone.commit({"configs/site.yaml": app.replace("organisation=", "organization=")})
    done = cli("plan", str(clone.path), "--base", "HEAD~1")
    assert done.code == 0, done.err
    assert "2 of 2 nodes change" in done.out
    assert "canary" in done.out
    assert "-organisation=" in done.out
    assert "no hub was asked" in done.err
    first = cli("plan", str(clone.path), "--head", "HEAD~1", "-o", "json")
    assert first.json["fleets"][0]["joining"] == ["till-1", "till-2"]


def test_a_plan_of_a_commit_with_mistakes_is_exit_code_4(cli: Any, clone: WorkTree) -> None:
    clone.commit({"apps/hello.yaml": "apiVersion: edgewise.dev/v1\nkind: App\n"})
    done = cli("plan", str(clone.path))
    assert done.code == 4
    assert "apps/hello.yaml:1" in done.err
    assert cli("plan", str(clone.path), "--head", "nowhere").code == 2
    assert cli("plan", str(clone.path / "nowhere")).code == 2


def test_inside_a_clone_a_plan_is_of_that_clone(
    cli: Any, clone: WorkTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clone.path / "apps")
    done = cli("plan", "-o", "json")
    assert done.code == 0, done.err
    assert done.json["fleets"][0]["nodes"] == 2


def test_a_plan_without_a_hub_judges_prune_protection(
    cli: Any, repo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    nodes = "".join(f"    - {{name: n-{i}}}\n" for i in range(10))
    (repo / "nodes").mkdir(exist_ok=True)
    (repo / "nodes" / "all.yaml").write_text(
        "apiVersion: edgewise.dev/v1\nkind: NodeSet\nmetadata: {name: all}\nspec:\n"
        "  defaults: {labels: {ring: stable}}\n  nodes:\n" + nodes
    )
    clone = WorkTree(repo)
    before = clone.commit(message="ten nodes")
    next((repo / "fleets").glob("*.yaml")).unlink()
    clone.commit(message="clean up")
    alone = cli("plan", str(repo), "-o", "json")
    assert alone.code == 0, alone.err
    assert alone.json["held"] == ""
    assert "--base REVISION" in alone.err
    compared = cli("plan", str(repo), "--base", before, "-o", "json")
    assert "10 of 10 nodes would lose their fleet" in compared.json["held"]
    clone.git("update-ref", "refs/remotes/edgewise/main", before)
    known = cli("plan", str(repo), "-o", "json")
    assert known.json["held"] == compared.json["held"], "what `edgewise fetch` brought is known"
