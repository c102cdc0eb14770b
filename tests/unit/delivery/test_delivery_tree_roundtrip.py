"""A directory goes through a tree and comes out the same."""

import os
import stat
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.backends.files.builds import BuildFolder
from edgewise.backends.files.node_store import NodeStore
from edgewise.backends.files.trees import scan
from edgewise.protocol.content import Tree
from edgewise.protocol.installed import Installed

RELEASE = "ab" * 32
name = st.text("abcXYZ-_. é", min_size=1, max_size=6).filter(lambda n: n not in (".", ".."))
leaf = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=50), st.sampled_from([0o644, 0o755, 0o400])),
    st.tuples(st.just("link"), name, st.just(0)),
)
directory = st.recursive(
    st.dictionaries(name, leaf, max_size=4),
    lambda inner: st.dictionaries(name, st.one_of(leaf, inner), max_size=4),
    max_leaves=12,
)


def write(path: Path, content: dict) -> None:
    path.mkdir(exist_ok=True)
    for key, value in content.items():
        if isinstance(value, dict):
            write(path / key, value)
        elif value[0] == "file":
            (path / key).write_bytes(value[1])
            (path / key).chmod(value[2])
        else:
            (path / key).symlink_to(value[1])


def there_and_back(content: dict) -> tuple[Tree, Tree]:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        write(top / "in", content)
        before = scan(top / "in")
        store = NodeStore(top / "node")
        for entry in before.entries:
            if entry.kind == "file":
                content = (top / "in" / entry.path).read_bytes()
                store.keep_file(entry.sha256, entry.attributes, iter([content]))
        store.begin(RELEASE)
        store.lay_out(RELEASE, "apps/a", before)
        store.finish(Installed(RELEASE, "n", "linux/amd64"), {})
        return before, scan(store.release_directory(RELEASE) / "apps" / "a")


@settings(max_examples=60, deadline=None)
@given(directory)
def test_a_tree_checked_out_is_the_tree_that_was_scanned(content: dict) -> None:
    before, after = there_and_back(content)
    assert before == after


def test_the_interesting_trees_are_reached() -> None:
    content = {
        "a": {"b": {"run": ("file", b"x", 0o755)}, "a.b": ("file", b"", 0o644)},
        "a-b": ("link", "a", 0),
        "again": ("file", b"x", 0o644),
    }
    before, after = there_and_back(content)
    assert before == after
    assert [e.path for e in after.entries] == ["a", "a-b", "a/a.b", "a/b", "a/b/run", "again"]
    assert {e.kind for e in after.entries} == {"file", "dir", "link"}


def test_the_same_content_gives_the_same_tree_anywhere(tmp_path: Path) -> None:
    trees = []
    for place, order in (("one", ["b", "a"]), ("two", ["a", "b"])):
        (tmp_path / place).mkdir()
        for file in order:
            (tmp_path / place / file).write_text(file)
        trees.append(BuildFolder(tmp_path / f"{place}-built").add_tree(tmp_path / place))
        os.utime(tmp_path / place / "a", (1, 1))
    assert trees[0] == trees[1]


def test_a_read_only_directory_can_be_checked_out_and_deleted(tmp_path: Path) -> None:
    (tmp_path / "in" / "locked").mkdir(parents=True)
    (tmp_path / "in" / "locked" / "file").write_text("x")
    (tmp_path / "in" / "locked").chmod(0o555)
    tree = scan(tmp_path / "in")
    store = NodeStore(tmp_path / "node")
    for entry in tree.entries:
        if entry.kind == "file":
            store.keep_file(entry.sha256, entry.attributes, iter([b"x"]))
    store.begin(RELEASE)
    store.lay_out(RELEASE, "apps/a", tree)
    store.finish(Installed(RELEASE, "n", "linux/amd64"), {})
    locked = store.release_directory(RELEASE) / "apps" / "a" / "locked"
    assert stat.S_IMODE(locked.stat().st_mode) == 0o555
    store.collect()
    assert store.installed() == ()
