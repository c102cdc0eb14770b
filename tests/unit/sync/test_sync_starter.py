"""`edgewise init` writes a repo that passes, whatever the organisation is called."""

import pytest
from repo_of import ARTIFACTS, compiled

from edgewise.model.errors import BadUsage
from edgewise.sync.ports import JoinedNode
from edgewise.sync.starter import starter_repo
from edgewise.sync.validate import check_files, validate_files


def test_the_starter_repo_passes_and_says_what_is_left_to_do() -> None:
    files = starter_repo("shop")
    assert validate_files(files) == []
    (warning,) = check_files(files).warnings
    assert "selects no node (`edgewise node token`" in str(warning)
    assert "README.md" in files
    assert "name: shop" in files["edgewise.yaml"]


def test_a_node_that_joins_the_starter_repo_runs_hello() -> None:
    result = compiled(starter_repo(), JoinedNode("n-1", {}), JoinedNode("n-2", {"site": "s1"}))
    assert sorted(result.fleets["all"].stages.values()) == ["canary", "rest"]
    assert result.warnings == ()


def test_with_a_list_of_artifacts_a_missing_one_is_an_error() -> None:
    (problem,) = validate_files(starter_repo(), {})
    assert problem.file == "apps/hello.yaml"
    assert "edgewise artifact publish hello 1.0.0" in problem.hint
    assert validate_files(starter_repo(), ARTIFACTS) == []


def test_the_example_in_the_starter_repo_works_when_its_comment_is_taken_away() -> None:
    files = starter_repo()
    lines = files["nodes/example.yaml"].split("#\n", 1)[1].splitlines()
    files["nodes/example.yaml"] = "\n".join(line.removeprefix("# ") for line in lines)
    checked = check_files(files)
    assert checked.problems == ()
    assert checked.compiled is not None
    assert set(checked.compiled.fleets["all"].members) == {"kiosk-1", "kiosk-2"}


@pytest.mark.parametrize("bad", ["", "Acme", "a b", "../x"])
def test_an_organisation_that_is_no_dns_label_is_refused(bad: str) -> None:
    with pytest.raises(BadUsage, match="is not a DNS label"):
        starter_repo(bad)
