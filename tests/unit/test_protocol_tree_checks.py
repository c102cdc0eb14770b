"""Trees are checked all entries at once; nothing passes so that would not pass one by one."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.protocol import limits
from edgewise.protocol.content import Entry
from edgewise.protocol.tree_checks import all_sound, check_each

DIGEST = "ab" * 32
OWNERS = {"uid": 0, "gid": 42}
LONG = "é" * 64

PLAIN = (
    Entry("bin", "dir", 0o755),
    Entry("bin/run", "file", 0o755, 3, DIGEST),
    Entry("bin/sh", "link", 0o777, target="../bin/run"),
    Entry(f"bin/{'x' * 200}", "file", 0o644, 0, DIGEST),
)
SYSTEM = (
    Entry("dev", "dir", 0o755, **OWNERS),
    Entry("dev/null", "char", 0o666, device=(1, 3), **OWNERS),
    Entry("dev/pipe", "fifo", 0o600, **OWNERS),
    Entry("etc", "dir", 0o755, xattrs=(("user.a", b"1"), ("user.b", b"")), **OWNERS),
    Entry("etc/a", "file", 0o4755, 9, DIGEST, sparse=True, **OWNERS),
    Entry("etc/b", "hard", target="etc/a"),
    Entry("etc/c", "link", 0o777, target="/proc/mounts", **OWNERS),
    Entry(f"etc/{LONG}", "file", 0o644, 1, DIGEST, **OWNERS),
)

PATHS = (
    *("", "/", "/etc", "etc/", "etc", "etc//a", "etc/./a", "etc/..", "..", ".", "etc/a", "a\nb"),
    *("a/b", "etc/\0", "zz", LONG * 2, "x" * 5000, "dev/null/x", "etc/\ud800", "..a", "a.."),
)
TARGETS = (
    *("", "etc/a", "bin/run", "zz", "/x", "../../x", "x\0", "x" * 1500, "x" * 4096, "é" * 3000),
    "\ud800",
)
XATTRS = (
    *((), (("user.a", b""),), (("evil", b""),), (("user.b", b""), ("user.a", b""))),
    (("user.a", b"x" * 70_000),),
)
changes: st.SearchStrategy[dict[str, object]] = st.fixed_dictionaries(
    {},
    optional={
        "path": st.sampled_from(PATHS),
        "kind": st.sampled_from(["file", "dir", "link", "hard", "char", "block", "fifo"]),
        "mode": st.sampled_from([-1, 0, 0o7777, 0o10000]),
        "size": st.sampled_from([-1, 0, 1 << 40]),
        "sha256": st.sampled_from(["", DIGEST, DIGEST.upper(), DIGEST + "a", "g" * 64, "a" * 63]),
        "target": st.sampled_from(TARGETS),
        "uid": st.sampled_from([msgspec.UNSET, -1, 0, limits.OWNER, limits.OWNER + 1]),
        "gid": st.sampled_from([msgspec.UNSET, -1, 7, limits.OWNER + 1]),
        "xattrs": st.sampled_from(XATTRS),
        "sparse": st.booleans(),
        "device": st.sampled_from([msgspec.UNSET, (1, 3), (-1, 0), (1 << 12, 0)]),
    },
)


def refused(entries: tuple[Entry, ...], *, plain: bool) -> bool:
    try:
        check_each(entries, plain=plain)
    except ValueError:
        return True
    return False


@given(
    st.sampled_from([PLAIN, SYSTEM]),
    st.lists(st.tuples(st.integers(0, 7), changes), min_size=1, max_size=2),
    st.booleans(),
    st.booleans(),
)
def test_nothing_passes_together_that_is_refused_alone(
    tree: tuple[Entry, ...],
    edits: list[tuple[int, dict[str, object]]],
    plain: bool,
    ordered: bool,
) -> None:
    entries = list(tree)
    for index, changed in edits:
        at = index % len(entries)
        entries[at] = msgspec.structs.replace(entries[at], **changed)
    if ordered:
        entries.sort(key=lambda entry: entry.path)
    if all_sound(tuple(entries), plain=plain):
        assert not refused(tuple(entries), plain=plain)


WRONG: dict[str, Callable[[], Entry]] = {
    "a path that climbs": lambda: Entry("etc/../x", "file", 0o644, 1, DIGEST, **OWNERS),
    "an absolute path": lambda: Entry("/etc/x", "file", 0o644, 1, DIGEST, **OWNERS),
    "no parent": lambda: Entry("nowhere/x", "file", 0o644, 1, DIGEST, **OWNERS),
    "a file as parent": lambda: Entry("etc/a/x", "file", 0o644, 1, DIGEST, **OWNERS),
    "a link as parent": lambda: Entry("etc/c/x", "file", 0o644, 1, DIGEST, **OWNERS),
    "a NUL in a target": lambda: Entry("etc/x", "link", 0o777, target="a\0b", **OWNERS),
    "no digest": lambda: Entry("etc/x", "file", 0o644, 1, "A" * 64, **OWNERS),
    "no owner": lambda: Entry("etc/x", "file", 0o644, 1, DIGEST, uid=0),
    "a second name of a later file": lambda: Entry("dev/x", "hard", target="etc/a"),
    "a second name of a directory": lambda: Entry("etc/x", "hard", target="dev"),
    "a long name": lambda: Entry(f"etc/{LONG}{LONG}", "dir", 0o755, **OWNERS),
    "a device without number": lambda: Entry("dev/x", "block", 0o600, **OWNERS),
    "a file with a number": lambda: Entry("dev/x", "file", 0o6, 1, DIGEST, device=(1, 1), **OWNERS),
    "a strange xattr": lambda: Entry("etc/x", "dir", 0o755, xattrs=(("x", b""),), **OWNERS),
}


@pytest.mark.parametrize("what", WRONG)
def test_each_wrong_entry_is_seen_among_sound_ones(what: str) -> None:
    entries = tuple(sorted((*SYSTEM, WRONG[what]()), key=lambda entry: entry.path))
    assert not all_sound(entries, plain=False)
    assert refused(entries, plain=False)


@pytest.mark.parametrize(("entries", "plain"), [(PLAIN, True), (SYSTEM, False), ((), True)])
def test_sound_trees_need_no_second_look(entries: tuple[Entry, ...], plain: bool) -> None:
    assert all_sound(entries, plain=plain)
    assert not refused(entries, plain=plain)
    assert not entries or not all_sound(entries[::-1], plain=plain)


def test_an_app_does_not_get_what_only_a_system_may_have() -> None:
    for entry in SYSTEM:
        alone = msgspec.structs.replace(entry, path=entry.path.replace("/", "_"))
        assert not all_sound((alone,), plain=True)
    for target in ("/etc/passwd", "../x", "a/../../x"):
        assert not all_sound((Entry("l", "link", 0o777, target=target),), plain=True)
