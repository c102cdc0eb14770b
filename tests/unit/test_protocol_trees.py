"""What a tree may hold, plain and of a system, and what is refused when it is decoded."""

import json

import msgspec
import pytest

from edgewise.delivery.trees import make_tree, reference, refuse_privilege
from edgewise.model.errors import BadUsage, Untrusted
from edgewise.protocol import limits
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.content import Attributes, Entry, Top, Tree

A = "aa" * 32
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")

HARD = {"path": "b", "kind": "hard", "target": "a"}


def owned(path: str, kind: str, **more: object) -> dict[str, object]:
    return {"path": path, "kind": kind, "uid": 0, "gid": 0, **more}


EVERYTHING = (
    Entry("bin", "link", 0o777, target="/usr/bin", uid=0, gid=0),
    Entry("dev", "dir", 0o755, uid=0, gid=0),
    Entry("dev/null", "char", 0o666, uid=0, gid=0, device=(1, 3)),
    Entry("dev/sda", "block", 0o660, uid=0, gid=6, device=(8, 0)),
    Entry("pipe", "fifo", 0o600, uid=7, gid=8),
    Entry("ping", "file", 0o4755, 9, A, uid=0, gid=0, sparse=True),
    Entry("ping6", "hard", target="ping"),
    Entry("raw", "file", 0o755, 9, A, uid=0, gid=0, xattrs=(("security.capability", CAPABILITY),)),
    Entry("up", "link", 0o777, target="../../../etc", uid=0, gid=0),
)


def test_a_system_tree_carries_owners_capabilities_devices_and_links() -> None:
    tree = make_tree(EVERYTHING, Top(0o755, xattrs=(("security.selinux", b"root_t\0"),)))
    _, manifest = reference(tree)
    assert decode(manifest, Tree, what="tree") == tree
    assert b'"uid":0' in manifest
    assert b'"device":[8,0]' in manifest


def test_a_plain_tree_has_the_bytes_that_it_always_had() -> None:
    tree = make_tree([Entry("bin", "dir", 0o755), Entry("bin/run", "file", 0o755, 3, A)])
    assert json.loads(encode(tree)) == {
        "entries": [
            {"kind": "dir", "mode": 0o755, "path": "bin"},
            {"kind": "file", "mode": 0o755, "path": "bin/run", "sha256": A, "size": 3},
        ],
        "schema": 1,
    }
    assert reference(tree)[0].sha256 == (
        "1f4c58ca4b2bd27e1f3a83e45291aed014d145b481b6fbe654c399e809044540"
    )


@pytest.mark.parametrize(
    "entries",
    [
        [owned("a", "file", sha256=A), owned("a/b", "dir")],
        [owned("a", "link", target="b"), owned("a/b", "dir")],
        [owned("a", "fifo"), owned("a/b", "dir")],
        [owned("a", "file", sha256=A), HARD, owned("b/c", "dir")],
        [owned("a", "dir"), owned("a", "dir")],
        [owned("b", "dir"), owned("a", "dir")],
        [owned("a/../b", "dir")],
        [owned("..", "dir")],
        [owned("/a", "dir")],
        [owned("a\0", "dir")],
        [owned("x" * 256, "dir")],
        [owned("ö" * 128, "dir")],
        [owned("a", "link")],
        [owned("a", "link", target="b\0")],
        [owned("a", "link", target="b" * limits.PATH)],
        [{"path": "a", "kind": "hard", "target": "b"}, owned("b", "file", sha256=A)],
        [{"path": "a", "kind": "hard", "target": "a"}],
        [{"path": "a", "kind": "hard", "target": "../etc/shadow"}],
        [{"path": "a", "kind": "hard", "target": "/etc/shadow"}],
        [owned("a", "dir"), HARD],
        [owned("a", "link", target="/etc/shadow"), HARD],
        [owned("a", "file", sha256=A), owned("b", "hard", target="a")],
        [owned("a", "char")],
        [owned("a", "fifo", device=[1, 3])],
        [owned("a", "file", sha256=A, device=[1, 3])],
        [owned("a", "block", device=[4096, 0])],
        [owned("a", "block", device=[0, 1 << 20])],
        [owned("a", "char", device=[-1, 0])],
        [owned("a", "socket")],
        [{"path": "a", "kind": "dir"}],
        [{"path": "a", "kind": "dir", "uid": 0}],
        [owned("a", "dir") | {"uid": 0xFFFFFFFF}],
        [owned("a", "dir") | {"gid": -1}],
        [owned("a", "dir", mode=0o10000)],
        [owned("a", "dir", xattrs=[["user.b", ""], ["user.a", ""]])],
        [owned("a", "dir", xattrs=[["user.a", ""], ["user.a", ""]])],
        [owned("a", "dir", xattrs=[["os2.a", ""]])],
        [owned("a", "dir", xattrs=[["user.a\0b", ""]])],
        [owned("a", "dir", xattrs=[["user." + "a" * 251, ""]])],
        [owned("a", "dir", xattrs=[["user.a", "A" * 87384]])],
        [owned("a", "dir", xattrs=[[f"user.{n:0250}", ""] for n in range(260)])],
    ],
)
def test_a_hostile_system_tree_is_refused_when_it_is_decoded(entries: list[object]) -> None:
    with pytest.raises(Untrusted):
        decode(encode({"entries": entries, "schema": 1, "system": {}}), Tree, what="tree")


@pytest.mark.parametrize("top", [{"mode": 0o10000}, {"uid": -1}, {"gid": 1 << 32}, {"x": 1}])
def test_a_hostile_top_directory_is_refused(top: dict[str, object]) -> None:
    with pytest.raises(Untrusted):
        decode(encode({"entries": [], "schema": 1, "system": top}), Tree, what="tree")


@pytest.mark.parametrize("entry", EVERYTHING, ids=lambda entry: entry.path)
def test_a_plain_tree_holds_nothing_of_a_system(entry: Entry) -> None:
    above = (Entry("dev", "dir"),) if "/" in entry.path else ()
    with pytest.raises(ValueError, match=r"only a system tree|leaves the tree"):
        Tree((*above, entry))


def test_an_app_gets_no_system_tree() -> None:
    with pytest.raises(BadUsage, match="apps get plain ones"):
        refuse_privilege(make_tree(EVERYTHING, Top()))


def test_files_share_a_kept_copy_only_where_everything_is_equal() -> None:
    variants = [
        Attributes(0o644),
        Attributes(0o644, 0, 0),
        Attributes(0o4644, 0, 0),
        Attributes(0o644, 1, 0),
        Attributes(0o644, 0, 1),
        Attributes(0o644, 0, 0, sparse=True),
        Attributes(0o644, 0, 0, (("user.a", b""),)),
        Attributes(0o644, 0, 0, (("user.a", b"1"),)),
        Attributes(0o644, 0, 0, (("user.a", b""), ("user.b", b""))),
        Attributes(0o644, 0, 0, (("user.a", b"1"),), sparse=True),
    ]
    assert len({one.key for one in variants}) == len(variants)
    assert Attributes(0o644).key == "644", "kept files of plain trees keep their names"
    assert Entry("a", "file", 0o755, 1, A).attributes == Attributes(0o755)
    assert msgspec.structs.replace(EVERYTHING[5]).attributes.key == "4755.0.0s"
