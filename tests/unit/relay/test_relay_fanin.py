from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.model.errors import Untrusted
from edgewise.protocol.channel import Signed
from edgewise.protocol.codec import encode
from edgewise.protocol.sync import RelayAcknowledged, RelayReport
from edgewise.rollout.fanin import Bounds, FanIn, KeptReceipt, read_receipts
from edgewise.testing.relay_words import START, A, B, after, receipt, runs


def kept(node: str, *sequences: int, key: str = "k1") -> tuple[KeptReceipt, ...]:
    return read_receipts(node, [receipt(node, number, key=key) for number in sequences])


def test_only_the_newest_observation_of_a_node_is_reported() -> None:
    fan_in = FanIn()
    fan_in.hear("n1", after(0), runs(A))
    fan_in.hear("n1", after(1), runs(B))
    batch = fan_in.batch(START)
    assert batch is not None
    assert [(r.node, r.heard, r.observation) for r in batch.reports] == [("n1", after(1), runs(B))]


def test_a_heartbeat_without_news_keeps_what_the_node_said_before() -> None:
    fan_in = FanIn()
    fan_in.hear("n1", after(0), runs(A))
    fan_in.hear("n1", after(60))
    batch = fan_in.batch(START)
    assert batch is not None
    assert batch.reports[0].heard == after(60)
    assert batch.reports[0].observation == runs(A)


def test_a_node_cannot_hand_in_the_receipt_of_another() -> None:
    with pytest.raises(Untrusted, match="n1 sent a receipt of 'n2'"):
        read_receipts("n1", [receipt("n2", 1)])


def test_a_node_record_is_not_a_receipt() -> None:
    signed = Signed("node-record/1", receipt("n1", 1).payload, "k", b"")
    with pytest.raises(Untrusted, match="where a receipt belongs"):
        read_receipts("n1", [signed])


def test_receipts_beyond_the_bound_stay_at_the_node() -> None:
    fan_in = FanIn(Bounds(receipts_per_node=2))
    fan_in.keep(kept("n1", 1))
    assert [r.sequence for r in fan_in.room_for(kept("n1", 1, 2, 3))] == [1, 2]


def test_one_loud_node_does_not_take_the_room_of_the_others() -> None:
    fan_in = FanIn(Bounds(receipts_per_node=3))
    fan_in.keep(fan_in.room_for(kept("loud", *range(1, 60))))
    assert [r.sequence for r in fan_in.room_for(kept("quiet", 1))] == [1]


def test_the_relay_as_a_whole_has_a_bound_too() -> None:
    fan_in = FanIn(Bounds(receipts=3))
    fan_in.keep(kept("n1", 1, 2))
    assert [r.sequence for r in fan_in.room_for(kept("n2", 1, 2))] == [1]


def test_observations_heard_longest_ago_go_first_and_receipts_never() -> None:
    fan_in = FanIn(Bounds(observations=2))
    fan_in.keep(kept("n1", 1))
    for number in range(1, 5):
        fan_in.hear(f"n{number}", after(number), runs(A))
    batch = fan_in.batch(START)
    assert batch is not None
    assert {r.node for r in batch.reports if r.observation} == {"n3", "n4"}
    assert [r.node for r in batch.receipts] == ["n1"]
    assert fan_in.dropped_observations == 2


def test_a_batch_that_the_hub_did_not_take_waits_again_behind_nothing_newer() -> None:
    fan_in = FanIn()
    fan_in.hear("n1", after(0), runs(A))
    fan_in.hear("n2", after(0), runs(A))
    batch = fan_in.batch(START)
    assert batch is not None
    fan_in.hear("n2", after(5), runs(B))
    fan_in.give_back(batch)
    again = fan_in.batch(START)
    assert again is not None
    assert [(r.node, r.observation) for r in again.reports] == [("n1", runs(A)), ("n2", runs(B))]


def test_receipts_under_way_are_in_no_second_batch() -> None:
    fan_in = FanIn()
    fan_in.keep(kept("n1", 1))
    first = fan_in.batch(START)
    assert first is not None
    fan_in.keep(kept("n1", 2))
    assert fan_in.batch(START) is None
    fan_in.settle(first, RelayAcknowledged({"n1": 1}), START)
    second = fan_in.batch(START)
    assert second is not None
    assert [r.sequence for r in second.receipts] == [2]


def test_an_acknowledgement_covers_only_what_was_in_the_batch() -> None:
    fan_in = FanIn()
    fan_in.keep(kept("n1", 1))
    batch = fan_in.batch(START)
    assert batch is not None
    fan_in.keep(kept("n1", 2))
    settled = fan_in.settle(batch, RelayAcknowledged({"n1": 99}), START)
    assert settled.receipts == (("n1", "k1", 1),)
    assert len(fan_in) == 1


def test_receipts_the_hub_passed_over_rest_and_are_offered_again() -> None:
    fan_in = FanIn(Bounds(refused_again=timedelta(seconds=60)))
    fan_in.keep(kept("n1", 1))
    batch = fan_in.batch(START)
    assert batch is not None
    assert fan_in.settle(batch, RelayAcknowledged(), START).receipts == ()
    assert fan_in.batch(after(59)) is None
    assert fan_in.batch(after(60)) is not None


def test_receipts_the_hub_will_never_take_are_dropped() -> None:
    fan_in = FanIn()
    fan_in.keep(kept("n1", 1, 2))
    batch = fan_in.batch(START)
    assert batch is not None
    settled = fan_in.settle(batch, RelayAcknowledged({"n1": 2}, {"n1": (1,)}), START)
    assert [r.sequence for r in settled.refused] == [1]
    assert len(fan_in) == 0


def test_a_replaced_node_that_counts_from_one_again_loses_nothing() -> None:
    fan_in = FanIn()
    fan_in.keep(kept("n1", 1, key="old"))
    fan_in.keep(kept("n1", 1, key="new"))
    batch = fan_in.batch(START)
    assert batch is not None
    assert [r.key_id for r in batch.receipts] == ["old", "new"]


def test_a_batch_stays_within_its_bounds() -> None:
    bounds = Bounds(reports=40, bytes=8_000)
    fan_in = FanIn(bounds)
    for number in range(100):
        fan_in.hear(f"n{number}", START, runs(A))
        fan_in.keep(read_receipts(f"n{number}", [receipt(f"n{number}", 1, reason="x" * 300)]))
    seen = 0
    while (batch := fan_in.batch(START)) is not None:
        assert len(encode(RelayReport(batch.reports))) <= bounds.bytes + 64
        assert len(batch.reports) <= bounds.reports
        seen += len(batch.receipts)
        fan_in.settle(batch, RelayAcknowledged({r.node: r.sequence for r in batch.receipts}), START)
    assert seen == 100


STEP = st.one_of(
    st.tuples(st.just("speak"), st.integers(0, 2), st.integers(1, 3)),
    st.tuples(st.just("send"), st.booleans(), st.integers(0, 3)),
)


def play(steps: list[tuple[str, int, int]]) -> tuple[dict[str, list[int]], dict[str, int], int]:
    """Nodes that keep what is not acknowledged, a hub that is away or takes a part of a batch.

    Returns what the hub saw in order, how many each node made, and how often room ran out.
    """
    fan_in = FanIn(Bounds(receipts=7, receipts_per_node=4, reports=2))
    made = {f"n{i}": 0 for i in range(3)}
    at_node: dict[str, list[int]] = {node: [] for node in made}
    hub: dict[str, list[int]] = {node: [] for node in made}
    now, squeezed = START, 0

    def speak(node: str) -> int:
        offered = kept(node, *at_node[node])
        taken = fan_in.room_for(offered)
        fan_in.keep(taken)
        fan_in.hear(node, now)
        at_node[node] = at_node[node][len(taken) :]
        return len(offered) - len(taken)

    def send(reached: bool, takes: int) -> None:
        batch = fan_in.batch(now)
        if batch is None:
            return
        if not reached:
            fan_in.give_back(batch)
            return
        stored: dict[str, int] = {}
        for item in batch.receipts[:takes]:
            if item.sequence not in hub[item.node]:
                hub[item.node].append(item.sequence)
            stored[item.node] = item.sequence
        fan_in.settle(batch, RelayAcknowledged(stored), now)

    for what, first, second in steps:
        now += timedelta(seconds=61)
        if what == "speak":
            node = f"n{first}"
            for _ in range(second):
                made[node] += 1
                at_node[node].append(made[node])
            squeezed += speak(node) > 0
        else:
            send(bool(first), second)
    for _ in range(200):
        now += timedelta(seconds=61)
        for node in made:
            speak(node)
        send(True, 1_000)
    return hub, made, squeezed


@settings(max_examples=200, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_no_receipt_is_lost_or_out_of_order_whatever_happens(
    steps: list[tuple[str, int, int]],
) -> None:
    hub, made, _ = play(steps)
    for node, count in made.items():
        assert hub[node] == list(range(1, count + 1))


def test_the_random_runs_do_reach_a_full_queue_and_a_hub_that_is_away() -> None:
    steps = [("speak", 0, 3), ("speak", 0, 3), ("send", 0, 0), ("speak", 1, 3), ("send", 1, 1)]
    hub, made, squeezed = play(steps)
    assert squeezed > 0
    assert hub == {node: list(range(1, count + 1)) for node, count in made.items()}
