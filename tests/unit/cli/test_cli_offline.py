"""A fleet repo begins with a starter that passes, and mistakes are told with file and line."""

from pathlib import Path
from typing import Any

import pytest


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
