"""The root of an operating system comes out of a tree as it went in, whoever interferes."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from system_root import looked_at, make_root, may_make_roots

import edgewise.backends.files.layout as layout_module
from edgewise.backends.files import layout
from edgewise.backends.files.builds import BuildFolder
from edgewise.backends.files.node_store import NodeStore
from edgewise.backends.files.trees import scan
from edgewise.model.errors import BadUsage, NeedsPerson
from edgewise.protocol import limits
from edgewise.protocol.codec import decode
from edgewise.protocol.content import Attributes, Entry, Top, Tree, TreeRef
from edgewise.protocol.installed import Installed

RELEASE = "ab" * 32
as_root = pytest.mark.skipif(
    not may_make_roots(), reason="owners, devices and capabilities need root"
)


def tree_of(folder: BuildFolder, ref: TreeRef) -> Tree:
    data = (folder.path / "trees" / ref.sha256).read_bytes()
    return decode(data, Tree, what="tree", at_most=limits.TREE)


def edgewise(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgewise", *words], capture_output=True, text=True, check=False
    )


def keep_all(store: NodeStore, folder: BuildFolder, tree: Tree) -> None:
    for entry in tree.entries:
        if entry.kind == "file":
            content = (folder.path / "objects" / entry.sha256).read_bytes()
            store.keep_file(entry.sha256, entry.attributes, iter([content]))


@as_root
def test_a_root_that_is_built_and_checked_out_is_the_same_root(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    before = looked_at(root)
    done = edgewise(
        "artifact", "build", "--system", str(root), "--name", "os", "--version", "1",
        "--platform", "linux/amd64", "--to", str(tmp_path / "built"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = edgewise(
        "artifact", "checkout", "os", "1", "--from", str(tmp_path / "built"),
        "--to", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert looked_at(tmp_path / "out") == before
    assert before["//names of one inode"] == [["bin/a-first-name", "bin/ping", "bin/ping6"]]
    assert before["var/image"][6] == [(0, 4096), (1 << 20, (1 << 20) + 4096)]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@as_root
def test_a_tar_file_of_a_root_is_the_same_tree_as_the_root(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=*", "-S", "-C", root, "-czf", "root.tar.gz", "."],
        cwd=tmp_path,
        check=True,
    )
    folder = BuildFolder(tmp_path / "built")
    one, other = folder.add_system(root), folder.add_system(tmp_path / "root.tar.gz")
    left, right = tree_of(folder, one), tree_of(folder, other)
    assert [e for e in left.entries if e not in right.entries] == []
    assert one == other


@as_root
def test_a_node_lays_a_root_out_with_all_that_it_carries(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    folder = BuildFolder(tmp_path / "built")
    tree = tree_of(folder, folder.add_system(root))
    store = NodeStore(tmp_path / "node")
    keep_all(store, folder, tree)
    store.begin(RELEASE)
    store.lay_out(RELEASE, "apps/os", tree)
    store.finish(Installed(RELEASE, "n", "linux/amd64"), {})
    laid = store.release_directory(RELEASE) / "apps" / "os"
    assert looked_at(laid, links=False) == looked_at(root, links=False)
    for entry in tree.entries:
        if entry.kind == "file":
            kept = entry.attributes.key
            assert store.verify(entry.sha256, kept, entry.xattrs), entry.path
    assert os.stat(laid / "bin/ping").st_ino != os.stat(laid / "bin/same-as-ping").st_ino
    assert os.stat(tmp_path / "node" / "store").st_mode & 0o077 == 0, "old setuid files lie there"


@as_root
@pytest.mark.parametrize("change", ["content", "mode", "owner", "xattr", "rights", "link"])
def test_a_kept_file_that_was_changed_through_a_release_is_dropped(
    tmp_path: Path, change: str
) -> None:
    import hashlib

    store = NodeStore(tmp_path)
    note = (("user.note", b"1"),)
    attributes = Attributes(0o644, 3, 4, note if change == "xattr" else ())
    sha256 = hashlib.sha256(b"data").hexdigest()
    store.keep_file(sha256, attributes, iter([b"data"]))
    (key,) = store.kept(sha256)
    assert store.verify(sha256, key, attributes.xattrs)
    kept = tmp_path / "store" / "objects" / sha256[:2] / f"{sha256[2:]}-{key}"
    match change:
        case "content":
            kept.write_bytes(b"other")
        case "mode":
            kept.chmod(0o4644)
        case "owner":
            os.chown(kept, 3, 5)
        case "xattr":
            os.setxattr(kept, "user.note", b"2")
        case "rights":
            os.setxattr(kept, "security.capability", bytes.fromhex("01000002" + "00" * 16))
        case "link":
            kept.rename(tmp_path / "elsewhere")
            kept.symlink_to(tmp_path / "elsewhere")
    assert not store.verify(sha256, key, attributes.xattrs)
    assert store.kept(sha256) == ()


def test_who_may_not_give_owners_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(layout_module.os, "chown", refuse)
    store = NodeStore(tmp_path)
    with pytest.raises(NeedsPerson, match="user 5, group 6"):
        store.keep_file("ab" * 32, Attributes(0o644, 5, 6), iter([b"x"]))
    assert store.kept("ab" * 32) == ()


# Somebody in the way


class AttackingOs:
    """``os`` that, before its n-th change, swaps a directory of the tree for a link outside."""

    CHANGES = frozenset({"open", "mkdir", "symlink", "mknod", "link", "chmod", "fchmod", "chown"})

    def __init__(self, moment: int, victim: Path, outside: Path) -> None:
        self.left, self.victim, self.outside = moment, victim, outside
        self.struck = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.CHANGES:
            return real

        def attacked(*given: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left <= 0 and not self.struck and self.victim.is_dir():
                self.victim.rename(f"{self.victim}.away")
                self.victim.symlink_to(self.outside)
                self.struck = True
            return real(*given, **named)

        return attacked


VICTIMS = ("a", "a/b", "a/b/c", "d")
TREE = Tree(
    (
        Entry("a", "dir", 0o700),
        Entry("a/b", "dir", 0o777),
        Entry("a/b/c", "dir", 0o755),
        Entry("a/b/c/run", "file", 0o755, 1, "aa" * 32),
        Entry("a/b/link", "link", 0o777, target="c"),
        Entry("a/file", "file", 0o644, 1, "aa" * 32),
        Entry("d", "dir", 0o755),
        Entry("d/file", "file", 0o600, 1, "aa" * 32),
    )
)


def place(entry: Entry, fd: int, name: str) -> None:
    layout.write_new(entry.attributes, [b"x"], fd, name)


def attack(tree: Tree, moment: int, victim: str) -> tuple[bool, bool]:
    """Whether the attack happened, and whether laying out noticed; nothing outside changes."""
    with tempfile.TemporaryDirectory() as folder:
        outside = Path(folder) / "outside"
        (outside / "c").mkdir(parents=True)
        (outside / "b").mkdir()
        (outside / "file").write_bytes(b"theirs")
        (outside / "run").write_bytes(b"theirs")
        for path in (outside, *outside.rglob("*")):
            path.chmod(0o751)
        before = looked_at(outside)
        top = Path(folder) / "top"
        noticed = False
        with pytest.MonkeyPatch.context() as patch:
            attacker = AttackingOs(moment, top / victim, outside)
            patch.setattr(layout_module, "os", attacker)
            try:
                layout.lay_out(top, tree, place)
            except (NotADirectoryError, FileExistsError):
                noticed = True
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                noticed = True
        assert looked_at(outside) == before
        return attacker.struck, noticed


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.sampled_from(VICTIMS))
def test_nothing_is_written_through_a_link_that_appears_meanwhile(moment: int, victim: str) -> None:
    attack(TREE, moment, victim)


@as_root
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 120), st.sampled_from(VICTIMS))
def test_no_owner_device_or_second_name_goes_through_a_link(moment: int, victim: str) -> None:
    owned = {"uid": 5, "gid": 6}
    tree = Tree(
        (
            Entry("a", "dir", 0o700, **owned),
            Entry("a/b", "dir", 0o777, **owned),
            Entry("a/b/c", "dir", 0o755, **owned),
            Entry("a/b/c/null", "char", 0o666, device=(1, 3), **owned),
            Entry("a/b/c/run", "file", 0o4755, 1, "aa" * 32, **owned),
            Entry("a/b/link", "link", 0o777, target="/etc", **owned),
            Entry("a/file", "file", 0o644, 1, "aa" * 32, **owned),
            Entry("a/pipe", "fifo", 0o644, **owned),
            Entry("d", "dir", 0o755, **owned),
            Entry("d/file", "hard", target="a/file"),
            Entry("d/run", "hard", target="a/b/c/run"),
        ),
        system=Top(),
    )
    attack(tree, moment, victim)


def test_attacks_happen_at_every_kind_of_moment_and_most_are_noticed() -> None:
    seen = {
        (victim, *attack(TREE, moment, victim)) for moment in range(1, 60, 3) for victim in VICTIMS
    }
    for victim in VICTIMS:
        assert (victim, True, True) in seen
        # Renamed away while it was open, or when it was finished: what is made is made there.
        assert (victim, True, False) in seen
    assert ("d", False, False) in seen


def test_what_is_in_the_way_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        layout.lay_out(tmp_path, TREE, place)
    (tmp_path / "file").symlink_to("/etc/passwd")
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(FileExistsError):
        layout.write_new(Attributes(0o644), [b"x"], fd, "file")
    os.close(fd)


# Tar files that are not as GNU tar writes them


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in fields.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([(member("../etc/passwd"), b"x")], "reaches outside"),
        ([(member("/etc/passwd"), b"x")], "reaches outside"),
        ([(member("a/../../b"), b"x")], "reaches outside"),
        ([(member("a", tarfile.LNKTYPE, linkname="../../etc/shadow"), b"")], "reaches outside"),
        ([(member("a", tarfile.LNKTYPE, linkname="b"), b"")], "comes before it"),
        (
            [(member("a", tarfile.SYMTYPE, linkname="/etc"), b""), (member("a/passwd"), b"x")],
            "has no directory 'a'",
        ),
        ([(member("a", tarfile.CHRTYPE, devmajor=5000, devminor=0), b"")], "out of range"),
        ([(member("a", b"Q"), b"")], "Q"),
    ],
)
def test_a_tar_file_with_tricks_is_refused(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]], says: str
) -> None:
    with pytest.raises(BadUsage, match=says):
        BuildFolder(tmp_path / "built").add_system(tar_of(tmp_path / "root.tar", *members))


def test_a_tar_file_may_leave_directories_out_and_repeat_names(tmp_path: Path) -> None:
    folder = BuildFolder(tmp_path / "built")
    tar = tar_of(
        tmp_path / "root.tar",
        (member("./usr/bin/run", mode=0o755, uid=7), b"old"),
        (member("usr/bin/run", mode=0o4755, uid=8), b"new"),
        (member("usr/bin/again", tarfile.LNKTYPE, linkname="./usr/bin/run"), b""),
    )
    tree = tree_of(folder, folder.add_system(tar))
    assert [(e.path, e.kind) for e in tree.entries] == [
        ("usr", "dir"), ("usr/bin", "dir"), ("usr/bin/again", "file"), ("usr/bin/run", "hard"),
    ]  # fmt: skip
    assert tree.entries[2].attributes == Attributes(0o4755, 8, 0)
    assert (folder.path / "objects" / tree.entries[2].sha256).read_bytes() == b"new"


def test_what_is_no_tar_file_and_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "root.zip").write_bytes(b"PK\3\4" + bytes(600))
    with pytest.raises(BadUsage, match="no tar file"):
        BuildFolder(tmp_path / "built").add_system(tmp_path / "root.zip")
    with pytest.raises(NeedsPerson, match="cannot be read"):
        BuildFolder(tmp_path / "built").add_system(tmp_path / "nowhere")


def test_a_plain_scan_and_a_system_scan_of_one_directory_share_their_contents(
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "run").write_bytes(b"x")
    folder = BuildFolder(tmp_path / "built")
    plain, system = folder.add_tree(tmp_path / "in"), folder.add_system(tmp_path / "in")
    assert plain.sha256 != system.sha256
    assert len(list((folder.path / "objects").iterdir())) == 1
    assert tree_of(folder, plain) == scan(tmp_path / "in")


@pytest.fixture(autouse=True)
def _leave_nothing_read_only(tmp_path: Path) -> Any:
    yield
    with contextlib.suppress(OSError):
        shutil.rmtree(tmp_path / "root")
