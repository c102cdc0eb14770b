"""Which deltas a hub makes and tells of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.delivery import deltas
from edgewise.delivery.delta_ports import KeptDelta, PublishedTree
from edgewise.delivery.deltas import DeltaJob, DeltaSettings, Plain, delta_settings
from edgewise.model.errors import BadUsage
from edgewise.protocol.content import PartRef, Release
from edgewise.protocol.delta import DeltaRef
from edgewise.protocol.travel import TreeChange

AT = datetime(2026, 1, 1, tzinfo=UTC)
TERMS = DeltaSettings()


def tree(number: int) -> str:
    return f"{number:064x}"


def line(count: int, name: str = "till", first: int = 1) -> list[PublishedTree]:
    """Versions 1.0 and on, whose trees are ``first`` and on."""
    return [
        PublishedTree(first + n, name, f"1.{n}", "linux/amd64", tree(first + n))
        for n in range(count)
    ]


def ref(to: int, base: int | None = None, size: int = 1000) -> DeltaRef:
    name = f"{to * 1000 + (base or 0):064x}"
    return DeltaRef(name, 10, 20, size, tree(to), tree(base) if base is not None else "")


def bases(jobs: tuple[DeltaJob, ...], to: int) -> list[str]:
    return [job.base for job in jobs if job.tree == tree(to)]


def test_the_newest_version_is_led_to_from_those_before_it_and_from_nothing() -> None:
    jobs = deltas.wanted(line(6), frozenset(), frozenset(), TERMS)
    assert bases(jobs, 6) == ["", tree(5), tree(4), tree(3)]
    assert {job.tree for job in jobs} == {tree(6)}


def test_what_fleets_run_comes_first_however_old_it_is() -> None:
    jobs = deltas.wanted(line(9), {tree(2)}, frozenset(), TERMS)
    assert jobs[0] == DeltaJob(tree(9), tree(2))
    assert bases(jobs, 9) == [tree(2), "", tree(8), tree(7), tree(6)]
    assert bases(jobs, 2) == ["", tree(1)], "nodes that come late take what is stable"


def test_a_candidate_that_goes_back_is_led_to_from_what_runs() -> None:
    jobs = deltas.wanted(line(5), {tree(5)}, {tree(3)}, TERMS)
    assert jobs[0] == DeltaJob(tree(3), tree(5))


def test_versions_without_a_change_and_platforms_apart_need_no_delta() -> None:
    same = [PublishedTree(2, "till", "1.1", "linux/amd64", tree(1))]
    other = [PublishedTree(1, "till", "1.0", "linux/arm64", tree(7))]
    jobs = deltas.wanted([*line(1), *other, *same], {tree(7)}, frozenset(), TERMS)
    assert set(jobs) == {DeltaJob(tree(1), ""), DeltaJob(tree(7), "")}


def test_no_versions_means_no_deltas_and_there_is_an_end_to_what_is_wanted() -> None:
    assert deltas.wanted(line(3), {tree(1)}, {tree(3)}, DeltaSettings(versions=0)) == ()
    many = [one for n in range(700) for one in line(4, f"app-{n}", 1 + 4 * n)]
    jobs = deltas.wanted(many, {one.tree for one in many}, frozenset(), TERMS)
    assert len(jobs) == deltas.WANTED


def test_trees_that_no_builder_signed_are_never_led_to_or_from() -> None:
    stranger = tree(666)
    jobs = deltas.wanted(line(3), {stranger, tree(2)}, {stranger}, TERMS)
    assert not any(stranger in job for job in jobs)


@pytest.mark.parametrize(
    ("job", "plain", "most"),
    [
        (DeltaJob(tree(2), tree(1)), Plain(1_000_000, 1), 600_000),
        (DeltaJob(tree(2), tree(1)), Plain(1000, 40), 0),
        (DeltaJob(tree(2), ""), Plain(1_000_000, 2), 600_000),
        (DeltaJob(tree(2), ""), Plain(1_000_000, 50), 1_000_000),
        (DeltaJob(tree(2), ""), Plain(9000, 50), 9000),
        (DeltaJob(tree(2), ""), Plain(9000, 3), 0),
        (DeltaJob(tree(2), tree(1)), Plain(0, 0), 0),
    ],
)
def test_a_delta_has_to_save_bytes_and_a_pack_bytes_or_requests(
    job: DeltaJob, plain: Plain, most: int
) -> None:
    assert deltas.at_most(job, plain, TERMS) == most


def test_a_node_lacks_what_none_of_its_trees_has_and_shared_files_count_once() -> None:
    old, new = {"a": 10, "b": 20}, {"b": 20, "c": 5, "m": 1}
    assert deltas.lacking([old], new) == Plain(6, 2)
    assert deltas.lacking([], new) == Plain(26, 3)


def test_what_failed_is_tried_three_times_with_longer_waits_and_then_left() -> None:
    job = DeltaJob(tree(2), tree(1))
    failed = [KeptDelta(*job, "Failed", AT, tries=tries) for tries in (1, 2, 3)]
    assert deltas.retry_at(failed[0]) == AT + deltas.RETRY_AFTER
    assert deltas.retry_at(failed[1]) == AT + 10 * deltas.RETRY_AFTER
    assert deltas.retry_at(failed[2]) is None
    cut_off = KeptDelta(*job, "Trying", AT, tries=1)
    assert deltas.next_job([job], {job: cut_off}, AT) == job, "the hub was killed over it"
    killer = KeptDelta(*job, "Trying", AT, tries=3)
    assert deltas.next_job([job], {job: killer}, AT) is None, "it kills the hub each time"
    done = KeptDelta(*job, "NotWorth", AT)
    assert deltas.next_job([job], {job: done}, AT + timedelta(days=999)) is None


def test_a_list_leads_to_its_own_fleets_trees_only() -> None:
    refs = [ref(3, 2), ref(3), ref(9, 8), ref(2, 1)]
    chosen = deltas.listed(refs, {tree(2)}, {tree(3)})
    assert [(one.tree, one.base) for one in chosen] == [
        (tree(2), tree(1)), (tree(3), ""), (tree(3), tree(2)),
    ]  # fmt: skip


def test_a_list_without_room_keeps_what_most_nodes_need() -> None:
    refs = [ref(3, 2, 900), ref(3, None, 100), ref(3, 1, 50), ref(2, 1, 50), ref(2)]
    chosen = deltas.listed(refs, {tree(2)}, {tree(3)}, room=2)
    assert {one.base for one in chosen} == {tree(2), ""}
    assert {one.tree for one in chosen} == {tree(3)}


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), max_size=40),
    st.sets(st.integers(1, 12)),
    st.sets(st.integers(1, 12)),
    st.integers(0, 10),
)
def test_a_list_is_sorted_bounded_and_within_its_fleet(
    pairs: list[tuple[int, int]], stable: set[int], candidate: set[int], room: int
) -> None:
    refs = list({(to, base): ref(to, base or None) for to, base in pairs if to != base}.values())
    runs, comes = {tree(n) for n in stable}, {tree(n) for n in candidate}
    chosen = deltas.listed(refs, runs, comes, room=room)
    assert len(chosen) <= room
    assert list(chosen) == sorted(chosen, key=lambda one: (one.tree, one.base))
    assert all(one.tree in runs | comes for one in chosen)
    left_out = [one for one in refs if one.tree in runs | comes and one not in chosen]
    assert not left_out or len(chosen) == room


def test_what_is_old_and_unwanted_goes_but_never_what_a_list_names() -> None:
    old = AT - deltas.KEPT_FOR
    kept = [KeptDelta(one.tree, one.base, "Made", old, ref=one) for one in (ref(1), ref(2), ref(3))]
    fresh = KeptDelta(tree(4), "", "Failed", AT)
    gone = deltas.unwanted([*kept, fresh], {DeltaJob(tree(1), "")}, {ref(2).sha256}, AT)
    assert gone == (DeltaJob(tree(3), ""),)


SIZES = {
    tree(1): {"m1": 100, "a": 50_000, "b": 50_000},
    tree(2): {"m2": 100, "a": 50_000, "c": 60_000},
    tree(3): {"m3": 100, "c": 60_000, "d": 70_000},
}


def test_a_plan_counts_the_delta_that_a_node_can_use() -> None:
    change = TreeChange((tree(1),), (tree(2),))
    found = deltas.weigh(change, SIZES, [ref(2, 1, 5000), ref(2, None, 90_000)])
    assert (found.full, found.whole, found.travels) == (110_100, 60_100, 5000)
    assert not found.assumed_whole


def test_a_plan_counts_two_deltas_in_a_chain_and_a_pack_for_a_new_node() -> None:
    refs = [ref(2, 1, 5000), ref(3, 2, 4000), ref(3, None, 90_000)]
    assert deltas.weigh(TreeChange((tree(1),), (tree(3),)), SIZES, refs).travels == 9000
    assert deltas.weigh(TreeChange((), (tree(3),)), SIZES, refs).travels == 90_000


def test_a_plan_says_when_it_took_whole_objects_for_want_of_a_delta() -> None:
    found = deltas.weigh(TreeChange((tree(1),), (tree(2), tree(9))), SIZES, [])
    assert found.travels == found.whole == 60_100
    assert found.assumed_whole
    assert found.unknown == (tree(9),)


def test_files_that_two_new_trees_share_travel_once() -> None:
    found = deltas.weigh(TreeChange((), (tree(2), tree(3))), SIZES, [])
    assert found.full == found.whole == 100 + 50_000 + 60_000 + 100 + 70_000


def test_versions_found_at_once_are_ordered_by_their_numbers() -> None:
    mixed = ["1.10", "1.9", "1.9-rc1", "2.0", "1.9.1"]
    assert sorted(mixed, key=deltas.version_key)[-2:] == ["1.10", "2.0"]


@pytest.mark.parametrize("bad", [(-1, 60), (99, 60), (3, 0), (3, 101)])
def test_settings_that_make_no_sense_are_refused(bad: tuple[int, int]) -> None:
    with pytest.raises(BadUsage):
        delta_settings(*bad)


def test_parts_with_many_variants_and_large_ones_do_not_go_along() -> None:
    one = PartRef("app", "till", (), {"": "a" * 64})
    many = PartRef("config", "site", ("site",), {f"s{n}": f"{n:064x}" for n in range(9)})
    none = PartRef("config", "old", (), {"": ""})
    assert deltas.parts_for_many(Release("lab", (one, many, none))) == ("a" * 64,)
    assert deltas.that_fit([b"a" * 50, b"b" * 60, b"c" * 40], room=100) == ("a" * 50, "c" * 40)
