"""The node half of a rollout: its laws, and the stories that lead to every state."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.protocol.channel import Bitmap, Channel
from edgewise.rollout.node import (
    Acknowledged,
    Action,
    AgentStarted,
    Applied,
    Apply,
    Applying,
    AwaitWindow,
    BeginFetch,
    Confirm,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    Idle,
    Node,
    Ready,
    Restore,
    Restored,
    Settle,
    Settled,
    StopFetching,
    Target,
    TargetSet,
    Unhealthy,
    Verifying,
    WindowOpened,
    phase_of,
    step,
    target_of,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
A, B, C = "a" * 64, "b" * 64, "c" * 64


def target(release: str, rollout: str = "r1", candidate: bool = True) -> Target:
    return Target(release, rollout, candidate)


def play(node: Node, *events: Event) -> tuple[Node, list[Action]]:
    done: list[Action] = []
    for event in events:
        node, actions = step(node, event, NOW)
        done += actions
    return node, done


def fetched(release: str, same: bool = False) -> Fetched:
    return Fetched(release, same, Fetch(1, 2, ("app/web",)))


GOOD = (fetched(B), WindowOpened(B), Applied(B), Settled(B))
ON_A = Node("n", running=A)


def test_a_candidate_is_fetched_applied_watched_and_confirmed() -> None:
    node, actions = play(ON_A, TargetSet(target(B)), *GOOD)
    assert actions == [
        BeginFetch(B),
        AwaitWindow(B),
        Apply(B, A),
        Settle(B, A),
        Confirm(B, A),
    ]
    assert (node.running, node.previous, node.state) == (B, A, Idle())
    [receipt] = node.owed
    assert (receipt.outcome, receipt.release, receipt.running) == ("Succeeded", B, B)
    assert (receipt.rollout, receipt.sequence, receipt.changed) == ("r1", 1, ("app/web",))


def test_an_unhealthy_release_is_replaced_by_the_one_before_and_reported() -> None:
    node, actions = play(
        ON_A, TargetSet(target(B)), *GOOD[:3], Unhealthy(B, "app web: exit code 3"), Restored()
    )
    assert actions[-1] == Restore(A, B)
    assert (node.running, phase_of(node)[0]) == (A, "Blocked")
    assert (node.owed[0].outcome, node.owed[0].running) == ("Failed", A)
    assert "exit code 3" in node.owed[0].reason


def test_a_release_that_failed_is_not_tried_again_in_the_same_rollout() -> None:
    failing = (*GOOD[:3], Unhealthy(B, "bad"), Restored())
    node, _ = play(ON_A, TargetSet(target(B)), *failing)
    node, actions = play(node, TargetSet(target(B)), AgentStarted())
    assert actions == []
    assert len(node.owed) == 1
    node, actions = play(node, TargetSet(target(B, rollout="r2")))
    assert actions == [BeginFetch(B)]


def test_a_newer_target_while_downloading_replaces_the_fetch() -> None:
    node, actions = play(ON_A, TargetSet(target(B)), TargetSet(target(C)))
    assert actions == [BeginFetch(B), BeginFetch(C)]
    node, actions = play(node, fetched(B))
    assert actions == []
    node, actions = play(node, TargetSet(target(A)))
    assert actions == [StopFetching()]
    assert node.state == Idle()


def test_only_the_newest_target_follows_a_change_that_could_not_be_stopped() -> None:
    node, actions = play(
        ON_A,
        TargetSet(target(B)),
        *GOOD[:2],
        TargetSet(target(A)),
        TargetSet(target(C, "r2")),
        *GOOD[2:],
    )
    assert actions[-2:] == [Confirm(B, A), BeginFetch(C)]
    assert len(node.owed) == 1


def test_a_release_with_the_same_parts_skips_the_window() -> None:
    _, actions = play(ON_A, TargetSet(target(B)), fetched(B, same=True))
    assert actions[-1] == Apply(B, A)


def test_a_candidate_that_runs_already_succeeds_at_once_and_once_only() -> None:
    node, actions = play(ON_A, TargetSet(target(A)), TargetSet(target(A)))
    assert actions == []
    assert [r.outcome for r in node.owed] == ["Succeeded"]
    node, _ = play(node, TargetSet(target(A, "r2")))
    assert len(node.owed) == 2


def test_a_stable_release_that_runs_already_is_not_reported() -> None:
    node, _ = play(ON_A, TargetSet(target(A, candidate=False)))
    assert node.owed == ()


def test_a_fetch_that_broke_off_goes_on_and_one_that_cannot_succeed_is_reported() -> None:
    node, _ = play(ON_A, TargetSet(target(B)), FetchFailed(B, "no link", final=False))
    assert phase_of(node) == ("Downloading", "no link")
    assert node.owed == ()
    node, _ = play(node, FetchFailed(B, "digest differs", final=True))
    assert node.owed[0].outcome == "Failed"
    assert node.running == A


def test_a_first_release_that_fails_leaves_nothing_running() -> None:
    node, actions = play(
        Node("n"), TargetSet(target(B)), *GOOD[:3], Unhealthy(B, "bad"), Restored()
    )
    assert actions[-1] == Restore("", B)
    assert node.running == ""


def test_going_back_when_the_hub_says_so_is_called_rolled_back() -> None:
    node = Node("n", running=B, previous=A)
    channel = Channel("f", 9, stable=A, quarantined=(B,), rollout="r1")
    word = target_of(channel, 0, node.running, node.previous)
    assert (word.release, word.backward) == (A, True)
    node, _ = play(node, TargetSet(word), fetched(A), WindowOpened(A), Applied(A), Settled(A))
    assert node.owed[0].outcome == "RolledBack"


def test_the_wave_decides_who_takes_the_candidate() -> None:
    channel = Channel("f", 1, stable=A, candidate=B, wave=Bitmap.of([3]).data, rollout="r1")
    assert target_of(channel, 3, A, "").candidate
    assert target_of(channel, 4, A, "").release == A
    assert not target_of(channel, 4, A, "").backward


def test_acknowledged_receipts_go() -> None:
    node, _ = play(ON_A, TargetSet(target(A)), Acknowledged(1))
    assert node.owed == ()
    assert node.sequence == 1


def test_receipts_that_nobody_takes_are_bounded_and_the_oldest_go_first() -> None:
    node = ON_A
    for number in range(200):
        node, _ = play(node, TargetSet(target(A, f"r{number}")))
    assert [r.sequence for r in node.owed] == list(range(137, 201))


# Laws, against random events

RELEASES = st.sampled_from([A, B, C])
EVENTS = st.one_of(
    st.builds(TargetSet, st.builds(Target, RELEASES, st.sampled_from(["r1", "r2"]), st.booleans())),
    st.builds(Fetched, RELEASES, st.booleans(), st.just(Fetch())),
    st.builds(FetchFailed, RELEASES, st.just("x"), st.booleans()),
    st.builds(WindowOpened, RELEASES),
    st.builds(Applied, RELEASES),
    st.builds(Settled, RELEASES),
    st.builds(Unhealthy, RELEASES, st.just("x")),
    st.builds(Restored, st.just("")),
    st.builds(Acknowledged, st.integers(0, 9)),
    st.just(AgentStarted()),
)


@settings(max_examples=400)
@given(st.lists(EVENTS, max_size=40))
def test_the_laws_hold_for_any_events(events: list[Event]) -> None:
    node = Node("n")
    applied = {""}
    now = NOW
    for event in events:
        now += timedelta(seconds=1)
        before = node
        node, actions = step(node, event, now)
        # It survives a write and a read.
        assert msgspec.json.decode(msgspec.json.encode(node), type=Node) == node
        if isinstance(before.state, Verifying) and isinstance(event, Settled):
            applied.add(before.state.target.release)
        assert node.running in applied  # law 1
        assert 0 <= node.sequence - before.sequence <= 2  # law 2: an end, and a no-op after it
        changing = ("Applying", "Verifying", "RollingBack")
        kind = type(before.state).__name__
        if kind in changing and isinstance(event, (TargetSet, Fetched, FetchFailed)):
            assert node.state == before.state
        for action in actions:  # law 4
            if isinstance(action, BeginFetch) and not isinstance(event, AgentStarted):
                to = node.state.target  # type: ignore[union-attr]
                assert (to.release, to.rollout) not in {(f.release, f.rollout) for f in node.failed}
        if isinstance(event, AgentStarted):  # law 6
            assert node == before
            assert (actions == ()) == isinstance(node.state, Idle)


def test_the_random_events_above_can_reach_every_state() -> None:
    node, _ = play(ON_A, TargetSet(target(B)), fetched(B))
    assert isinstance(node.state, Ready)
    node, _ = play(node, WindowOpened(B))
    assert isinstance(node.state, Applying)
    node, actions = play(node, AgentStarted())
    assert actions == [Apply(B, A)]
    node, _ = play(node, Applied(B))
    assert isinstance(node.state, Verifying)
    node, _ = play(node, Unhealthy(B, "x"))
    node, actions = play(node, AgentStarted())
    assert actions == [Restore(A, B)]
