"""A release that is pinned on a node stays, whatever else is collected."""

from pathlib import Path
from typing import Any

from edgewise.backends.files.node_store import NodeStore
from edgewise.protocol.content import Tree
from edgewise.protocol.installed import Installed

RELEASES = ("aa" * 32, "ab" * 32, "ba" * 32)


def with_releases(root: Path) -> NodeStore:
    store = NodeStore(root)
    for release in RELEASES:
        store.begin(release)
        store.lay_out(release, "apps/a", Tree(()))
        store.finish(Installed(release, "n", "linux/amd64"), {})
    return store


def test_a_pinned_release_is_not_collected(cli: Any, tmp_path: Path) -> None:
    store = with_releases(tmp_path)
    state = ("--state", str(tmp_path))
    assert cli("agent", "pin", *state).out == "No release is pinned.\n"
    done = cli("agent", "pin", "aa", *state, "-o", "json")
    assert done.json == {"pinned": [RELEASES[0]]}
    assert cli("agent", "pin", "aa", *state).code == 0, "harmless again"
    store.collect()
    assert [one.release for one in store.installed()] == [RELEASES[0]]
    assert cli("agent", "unpin", "sha256:aaaa", *state).out == "No release is pinned.\n"
    store.collect()
    assert store.installed() == ()


def test_what_is_not_one_release_is_not_pinned(cli: Any, tmp_path: Path) -> None:
    with_releases(tmp_path)
    state = ("--state", str(tmp_path))
    for name, count in (("a", "names 2"), ("c", "names 0"), ("sha256:", "names 3")):
        done = cli("agent", "pin", name, *state)
        assert done.code == 2
        assert count in done.err
    assert cli("agent", "unpin", "aa", *state).code == 2
    assert cli("agent", "pin", "--state", str(tmp_path / "no")).code == 2
