"""Whatever happens, in any order: the laws of waves.py hold after every step."""

import random
from collections import Counter
from datetime import timedelta

import pytest
from fleet_of import NEW, OLD, Play, percent, plan, stage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgewise.model.quantity import Share
from edgewise.model.rules import Gate
from edgewise.rollout.states import (
    IN_FLIGHT,
    Ended,
    GateAnswered,
    HoldChanged,
    Left,
    Paused,
    Restarted,
    RollingBack,
    Succeeded,
    Supersede,
    WaitingForWindow,
    name_of,
    reason_of,
)

NODES = 9
GROUPS = {i: f"site{i % 3}" for i in range(NODES)}
GATE = Gate("cpu", "exec", {"command": "true"}, timedelta(minutes=1), failure_limit=2)

index = st.integers(0, NODES - 1)
EVENT = st.one_of(
    st.tuples(st.just("good"), index),
    st.tuples(st.just("good"), index),
    st.tuples(st.just("work"), index),
    st.tuples(st.sampled_from(["bad", "stuck", "liar", "foreign", "back", "unback"]), index),
    st.tuples(st.sampled_from(["online", "offline", "sick", "well", "settled"]), index),
    st.tuples(st.sampled_from(["shut", "shut", "never"]), index),
    st.tuples(st.sampled_from(["hold", "unhold", "left"]), index),
    st.tuples(st.just("wait"), st.sampled_from([1, 4, 11, 31, 400])),
    st.tuples(st.sampled_from(["Pass", "Pass", "Fail", "Inconclusive"]), st.integers(0, 2)),
    st.tuples(st.sampled_from(["approve", "pause", "resume", "abort"]), st.just(0)),
    st.tuples(st.sampled_from(["restart", "supersede"]), st.just(0)),
)


@st.composite
def plans(draw):
    stages = (
        stage(
            "canary",
            min_targets=draw(st.integers(1, 2)),
            success_threshold=percent(draw(st.sampled_from([50, 100]))),
            bake=timedelta(minutes=draw(st.sampled_from([0, 10]))),
            gates=draw(st.sampled_from([(), (GATE,)])),
        ),
        stage("early", max_concurrent=Share(count=draw(st.integers(1, 3)))),
        stage("rest", approval=draw(st.booleans())),
    )
    return plan(
        2,
        3,
        4,
        stages=stages,
        groups=GROUPS,
        previous=draw(st.sampled_from([OLD, OLD, ""])),
        max_unavailable=draw(st.sampled_from([None, Share(count=1)])),
        failure_threshold=percent(draw(st.sampled_from([4, 30, 100]))),
        min_failures=draw(st.integers(1, 2)),
        offline=draw(st.sampled_from(["Deferred", "Failed", "Blocking"])),
        deferred_max=percent(draw(st.sampled_from([50, 100]))),
        catch_up=draw(st.sampled_from(["Direct", "Staged"])),
        on_failure=draw(st.sampled_from(["Pause", "Rollback", "Continue"])),
        scope=draw(st.sampled_from(["Stage", "Attempted"])),
    )


def doings(play: Play, at: int) -> dict:
    """What each word of EVENT does."""
    busy = {"running": OLD, "target": NEW, "phase": "Applying"}
    idle = {"running": OLD, "target": OLD}
    shut = {"running": OLD, "target": NEW, "phase": "Ready", "window": "apply"}
    return {
        "wait": lambda: play.wait(at),
        "good": lambda: play.good(at),
        "bad": lambda: play.bad(at),
        "back": lambda: play.back(at),
        "online": lambda: play.online(at),
        "offline": lambda: play.offline(at),
        "work": lambda: play.heard(at, **busy),
        "shut": lambda: play.heard(at, **shut, opens=play.now + timedelta(minutes=50)),
        "never": lambda: play.heard(at, **shut),
        "settled": lambda: play.heard(at, **idle),
        "sick": lambda: play.heard(at, **idle, phase="Blocked", health="Degraded"),
        "well": lambda: play.heard(at, **idle, phase="Blocked", health="Healthy"),
        "stuck": lambda: play.do(play.receipt(at, "Failed", running=NEW)),
        "liar": lambda: play.do(play.receipt(at, release="f" * 64, running="f" * 64)),
        "foreign": lambda: play.do(play.receipt(at, rollout="another")),
        "unback": lambda: play.do(play.receipt(at, "Failed", release=OLD, running=NEW)),
        "hold": lambda: play.do(HoldChanged(at, True)),
        "unhold": lambda: play.do(HoldChanged(at, False)),
        "left": lambda: play.do(Left(at)),
        "restart": lambda: play.do(Restarted()),
        "supersede": lambda: play.do(Supersede("c" * 64, "git", "newer")),
    }


def happen(play: Play, event: tuple[str, int]) -> None:
    what, at = event
    if what in ("Pass", "Fail", "Inconclusive"):
        play.do(GateAnswered(at, "cpu", what, "said so"))
    elif what in ("approve", "pause", "resume", "abort"):
        play.command(what)
    else:
        doings(play, at)[what]()


def check(play: Play, wave_before: set[int], head_before: object) -> None:
    table, head, rules = play.table, play.state.head, play.plan.rules
    rows = table.rows
    flying = [i for i, r in rows.items() if r.state in IN_FLIGHT]
    # The counts are what the rows say.
    counted = Counter(r.state for r in rows.values())
    summed: Counter = Counter()
    for at in range(len(play.plan.stages)):
        summed.update(table.stage_counts(at))
    assert summed == counted
    assert sum(counted.values()) == NODES
    assert table.in_flight == len(flying)
    assert table.in_window == {i for i in flying if rows[i].waits is not None}
    if isinstance(head, WaitingForWindow):
        assert table.in_window == set(flying) != set()
    # The wave is who was told; nobody new is told while it must not be.
    # A held node that reports what became of its change is in the wave again; it moves no more.
    reported = {i for i, row in rows.items() if row.state in ("Succeeded", "Failed")}
    told = play.wave - wave_before - reported
    if isinstance(head, Paused | RollingBack | Ended) and isinstance(head_before, type(head)):
        assert not told, "nobody is told while paused, on the way back or over"
    if isinstance(head, RollingBack):
        assert not [i for i in play.wave if rows[i].stage >= head.from_stage]
    # Limits.
    if told:
        begun = max(rows[i].stage for i in told)
        assert play.state.course.stages[begun].started is not None, "its stage has begun"
        limit = max(play.plan.stages[s].max_concurrent.of(9) for s in range(begun + 1))
        assert len(flying) <= limit or begun != 1
        if begun == 1 and play.state.course.stages[2].started is None:
            assert len(flying) <= max(1, play.plan.stages[1].max_concurrent.of(3), 2)
    if rules.max_unavailable is not None and not isinstance(head, RollingBack):
        for group in set(GROUPS.values()):
            at_work = [i for i in flying if GROUPS[i] == group and i not in table.unhealthy]
            assert len(at_work) <= 1, "one of a site at a time"
    # A success has a receipt.
    assert all(r.confirmed for r in rows.values() if r.state == "Succeeded")
    # No stage passes on nothing.
    for at, course in enumerate(play.state.course.stages):
        accepted = play.state.course.accepted >= at or rules.on_failure == "Continue"
        if course.passed is not None and not accepted and not isinstance(head, RollingBack):
            mine = [r for r in rows.values() if r.stage == at]
            assert any(
                r.confirmed or r.failed or r.state in ("Skipped", "Held") or r.back for r in mine
            )
    # It waits for something that it can name.
    assert play.last is not None
    if not isinstance(head, Ended):
        waits = play.last.wake_at is not None
        assert waits or reason_of(head), f"{name_of(head)} has a reason"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans(), st.sets(index), st.lists(EVENT, max_size=45))
def test_the_laws_hold_whatever_happens(made, away, events):
    play = Play(made, online=False)
    play.online(*(i for i in range(NODES) if i not in away))
    ended = None
    for event in events:
        wave, head = play.wave, play.state.head
        happen(play, event)
        check(play, wave, head)
        if ended is not None:
            assert play.state.head == ended, "an ended rollout never changes"
        if isinstance(play.state.head, Ended):
            ended = play.state.head
            assert play.last is not None
            assert play.last.wake_at is None


@pytest.mark.parametrize(
    "state",
    [
        "Succeeded",
        "RollingBack",
        "RolledBack",
        "Failed",
        "Paused",
        "Baking",
        "Cancelled",
        "WaitingForTargets",
        "WaitingForWindow",
        "WaitingForApproval",
        "Superseded",
    ],
)
def test_the_interesting_states_are_reached_by_such_events(state):
    chance, found = random.Random(1), Counter()
    usual = ["good"] * 30 + ["Pass", "Pass", "approve", "resume", "back", "back"]
    usual += ["shut"] * 4
    rare = ["bad", "stuck", "abort", "pause", "Inconclusive", "supersede", *["unback"] * 6]
    for _ in range(150):
        rules = {"max_unavailable": chance.choice([None, Share(count=2)])}
        stages = (
            stage("a", bake=timedelta(minutes=5), gates=(GATE,)),
            stage("b", approval=True),
            stage("c"),
        )
        play = Play(plan(2, 3, 4, stages=stages, groups=GROUPS, **rules), online=False).do()
        found[play.head] += 1
        play.online(*range(NODES))
        for _ in range(80):
            what = chance.choice(rare if chance.random() < 0.08 else usual)
            gate = what in ("Pass", "Inconclusive")
            happen(play, (what, 0 if gate else chance.randrange(NODES)))
            if chance.random() < 0.3:
                play.wait(2)
            found[play.head] += 1
    assert found[state] > 3, found


@settings(max_examples=100, deadline=None)
@given(plans())
def test_when_everything_goes_well_every_plan_ends_in_success(made):
    play = Play(made)
    for _ in range(60):
        play.good(*[i for i, r in play.table.rows.items() if r.state in IN_FLIGHT])
        play.do(*(GateAnswered(s, "cpu", "Pass", "") for s in range(3))).command("approve").wait(11)
    assert isinstance(play.state.head, Succeeded)
    assert play.wave == set(range(NODES))


@settings(max_examples=100, deadline=None)
@given(plans(), st.lists(EVENT, max_size=30))
def test_a_rollout_that_is_aborted_always_ends(made, events):
    play = Play(made)
    for event in events:
        happen(play, event)
    play.command("abort").wait(31 * 10)
    assert isinstance(play.state.head, Ended)
