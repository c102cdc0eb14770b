"""The words: what they accept, and that nothing malformed can be built."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.model.errors import NeedsPerson, Untrusted, behind
from edgewise.model.labels import Requirement, Selector
from edgewise.model.names import Platform, SpiffeId, is_name
from edgewise.model.quantity import (
    Share,
    format_duration,
    parse_bytes,
    parse_cpu_milli,
    parse_duration,
)
from edgewise.protocol.channel import Bitmap, Channel
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.content import Entry, PartRef, Tree


@pytest.mark.parametrize("bad", ["", "-a", "A", "a.b", "a" * 64, "a\n", "../etc"])
def test_a_name_is_a_dns_label(bad: str) -> None:
    assert not is_name(bad)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1h30m", 5400), ("1.5s", 1.5), ("2d", 172800), ("250ms", 0.25)],
)
def test_durations_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("bad", ["", "5", "10 m", "-3s", "1h-", "m", "1y"])
def test_a_duration_that_is_none_says_what_would_be(bad: str) -> None:
    with pytest.raises(ValueError, match="is not like 30s"):
        parse_duration(bad)


@given(st.integers(0, 10**9))
def test_a_duration_survives_being_written_and_read(milliseconds: int) -> None:
    value = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(value)) == value


def test_sizes_and_cpu_are_kubernetes_quantities() -> None:
    assert parse_bytes("192Mi") == 192 * 2**20
    assert parse_bytes("2G") == 2 * 10**9
    assert parse_cpu_milli("250m") == 250
    assert parse_cpu_milli("0.5") == 500
    assert parse_cpu_milli("2") == 2000


def test_a_share_of_a_few_is_never_nothing_and_100_percent_of_none_is_not_reached_by_accident() -> (
    None
):
    assert Share.parse("10%").of(3) == 1
    assert Share.parse(5).of(3) == 3
    assert Share.parse("80%").reached_by(4, 5)
    assert not Share.parse("80%").reached_by(3, 5)
    assert Share.parse("4%").exceeded_by(1, 20)
    assert not Share.parse("4%").exceeded_by(1, 25)


def test_selectors_follow_kubernetes() -> None:
    selector = Selector(
        {"type": "pos"},
        (Requirement("ring", "NotIn", ("stable",)), Requirement("gpu", "DoesNotExist")),
    )
    assert selector.matches({"type": "pos"})
    assert not selector.matches({"type": "pos", "ring": "stable"})
    assert not selector.matches({"type": "pos", "gpu": ""})
    assert Selector().matches({})
    assert selector.keys == {"type", "ring", "gpu"}


@given(st.sets(st.integers(0, 2000)))
def test_a_bitmap_is_a_set_of_indexes(indexes: set[int]) -> None:
    bitmap = Bitmap.of(indexes)
    assert set(bitmap) == indexes
    assert len(bitmap) == len(indexes)
    assert all((i in bitmap) == (i in indexes) for i in range(2001))
    assert Bitmap(bitmap.data) == bitmap


A, B, C = "a" * 64, "b" * 64, "c" * 64


def test_the_channel_says_who_moves_who_stays_and_who_comes_back() -> None:
    channel = Channel(
        "pos", 7, stable=A, candidate=B, wave=Bitmap.of([0, 1]).data, stay=Bitmap.of([2]).data
    )
    assert channel.target(0, running=A) == B
    assert channel.target(5, running=A) == A
    assert channel.target(2, running=C) == C, "superseded nodes keep what they have"
    assert channel.target(2, running="") == A, "a wiped node has nothing to keep"
    bad = Channel(
        "pos", 8, stable=A, wave=Bitmap.of([0]).data, stay=Bitmap.of([2]).data, quarantined=(B, C)
    )
    assert bad.target(0, running=B) == A
    assert bad.target(2, running=C) == A, "quarantine wins over staying"


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "../x", "kind": "dir"},
        {"path": "/etc/passwd", "kind": "dir"},
        {"path": "a//b", "kind": "dir"},
        {"path": "a", "kind": "link", "target": "../../etc"},
        {"path": "a", "kind": "link", "target": "/etc"},
        {"path": "a", "kind": "file", "sha256": "nope"},
        {"path": "a\0b", "kind": "dir"},
        {"path": "a", "kind": "dir", "mode": 0o10000},
    ],
)
def test_no_tree_can_reach_outside_itself(entry: dict[str, object]) -> None:
    with pytest.raises(Untrusted):
        decode(encode({"entries": [entry], "schema": 1}), Tree, what="tree")


def test_nothing_can_be_written_through_a_link_in_a_tree() -> None:
    through = (Entry("bin", "link", target="usr"), Entry("bin/sh", "file", sha256=A))
    with pytest.raises(ValueError, match="has no directory"):
        Tree(through)
    with pytest.raises(ValueError, match="not sorted"):
        Tree((Entry("b", "dir"), Entry("a", "dir")))


def test_a_part_has_a_variant_for_the_labels_it_used_and_overrides_win() -> None:
    part = PartRef("app", "hello", ("region", "site"), {"east|~": A, "west|s1": B}, {"odd-1": C})
    assert part.choose("n", {"region": "east"}) == A
    assert part.choose("n", {"region": "west", "site": "s1"}) == B
    assert part.choose("odd-1", {"region": "east"}) == C
    assert part.choose("n", {"region": "north"}) is None


def test_names_of_platforms_and_identities() -> None:
    assert str(Platform.of_machine("Linux", "x86_64")) == "linux/amd64"
    assert str(Platform.of_machine("Linux", "aarch64")) == "linux/arm64"
    node = SpiffeId.parse("spiffe://east.acme/node/pos-1")
    assert (node.role, node.name, node.trust_domain) == ("node", "pos-1", "east.acme")
    for bad in ("https://x/y", "spiffe://UPPER/node/a", "spiffe://a", "spiffe://a/"):
        with pytest.raises(ValueError):
            SpiffeId.parse(bad)


def test_what_a_task_group_raised_is_traced_to_our_error() -> None:
    ours = NeedsPerson("the disk is full")
    assert behind(ExceptionGroup("a", [ExceptionGroup("b", [ours])])) is ours
    assert behind(ExceptionGroup("a", [ours, ValueError()])) is None
