"""The repos under examples/ compile without a mistake or a warning."""

import pytest
import repo_of

from edgewise.sync.validate import check_files


@pytest.mark.parametrize("name", ["retail", "hello"])
def test_an_example_passes_without_a_warning(name: str) -> None:
    checked = check_files(repo_of.example(name))
    assert [str(p) for p in (*checked.problems, *checked.warnings)] == []
    assert checked.compiled is not None


def test_the_retail_example_lists_what_is_accepted_but_not_yet_acted_on() -> None:
    listed = " ".join(check_files(repo_of.example("retail")).not_acted_on)
    for kind in ("OSImage/", "AccessPolicy/", "HealPolicy/", "App/kiosk-ui"):
        assert kind in listed
