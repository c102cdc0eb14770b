"""What is written, removed and reported, as plain functions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgewise.heal.drift import (
    Found,
    Remove,
    Wanted,
    Write,
    Written,
    plan,
    reactions,
    wanted_files,
)
from edgewise.protocol.content import ConfigFile, FilesConfig, OnChange


def want(path: str, content: str = "x", mode: int = 0o644) -> Wanted:
    return Wanted("c", ConfigFile(path, content, mode))


def found(wanted: Wanted, mode: int = 0o644) -> Found:
    return Found("file", wanted.sha256, mode)


def test_a_file_that_is_as_it_should_be_is_left_alone() -> None:
    here = want("/a")
    assert plan({"/a": here}, {"/a": found(here)}, {"/a": Written("c", here.sha256)}) == ()


def test_a_file_that_somebody_changed_has_drifted_and_one_that_we_change_has_not() -> None:
    old, new = want("/a", "old"), want("/a", "new")
    ours = {"/a": Written("c", old.sha256)}
    [drifted] = plan({"/a": old}, {"/a": found(new)}, ours)
    assert isinstance(drifted, Write)
    assert drifted.why == "drifted"
    [changed] = plan({"/a": new}, {"/a": found(old)}, ours)
    assert isinstance(changed, Write)
    assert changed.why == "changed"


def test_a_wrong_mode_or_owner_is_put_right_without_calling_it_a_change_of_content() -> None:
    here = want("/a")
    for wrong in (found(here, 0o600), Found("file", here.sha256, 0o644, owned_right=False)):
        [step] = plan({"/a": here}, {"/a": wrong}, {})
        assert step == Write(here, "new", content=False)


def test_a_file_that_left_the_config_is_removed_only_if_we_wrote_it() -> None:
    assert plan({}, {"/other": Found("file")}, {"/a": Written("c", "x", original=True)}) == (
        Remove("/a", restore=True),
    )


@given(
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["1", "2"])),
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["1", "2"])),
    st.sets(st.sampled_from("abcd")),
)
def test_after_the_steps_nothing_is_left_to_do(
    wanted: dict[str, str], there: dict[str, str], ours: set[str]
) -> None:
    wants = {p: want(p, c) for p, c in wanted.items()}
    disk = {p: found(want(p, c)) for p, c in there.items()}
    written = {p: Written("c", want(p, "1").sha256) for p in ours}
    for step in plan(wants, disk, written):
        match step:
            case Write(w):
                disk[w.file.path] = found(w)
                written[w.file.path] = Written("c", w.sha256)
            case Remove(path):
                disk.pop(path, None)
                del written[path]
    assert plan(wants, disk, written) == ()
    assert all(disk[p].sha256 == w.sha256 for p, w in wants.items())


def test_a_rule_fires_once_for_the_files_of_its_own_config() -> None:
    rule = OnChange(paths=("/etc/app",), action="restart", app="web")
    config = FilesConfig("c", (ConfigFile("/etc/app/a", ""), ConfigFile("/etc/app/b", "")), (rule,))
    other = FilesConfig("d", (ConfigFile("/etc/apple", ""),), (rule,))
    assert reactions((config, other), ("/etc/app/a", "/etc/app/b")) == (rule,)
    assert reactions((config, other), ("/etc/apple",)) == ()
    assert set(wanted_files((config, other))) == {"/etc/app/a", "/etc/app/b", "/etc/apple"}
