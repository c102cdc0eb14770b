"""The fleet half of a rollout: a state machine over the stages of a policy.

Everything that decides what happens next lives in this file, ``stages`` (may a stage go
on?), ``evidence`` (what an event says of one node) and ``returning`` (the way back);
nothing here reads a clock, a disk or a socket. ``on_hub`` feeds events in batches, saves
what comes out in one transaction, and then performs it.

Laws (research: fleet control and staged rollout, section 5.3):

1. A node succeeds only by its own signed receipt, for the target digest and this rollout.
2. A node is told only in its stage or after it; never while Paused or on the way back.
3. No stage passes on nothing: minTargets nodes have to succeed. Only a stage whose every
   node is untouched by the change passes without one, or one that a person accepted by
   resuming (or the policy, with onFailure: Continue).
4. At most maxConcurrent nodes are at work; at most maxUnavailable of a group are down.
5. Failures are judged all the time, over the nodes attempted; silence is a failure only
   when too many are silent. Neither nodeTimeout nor maxDuration counts while the policy
   itself, by an update window, makes a node or everybody wait.
6. An offline node never blocks the others, unless the policy says Blocking.
7. The way back is one way: a node that cannot return ends it as Failed, for a person.
8. A rollout ends, or waits for something that its reason names; maxDuration pauses it.
9. An ended rollout never changes again. Repeated and unknown events change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import assert_never

import msgspec

from edgewise.model.quantity import format_duration
from edgewise.rollout import evidence, returning
from edgewise.rollout.draft import Draft
from edgewise.rollout.stages import Verdict, judge, tripped
from edgewise.rollout.states import (
    Active,
    AskGate,
    Baking,
    Command,
    Course,
    Ended,
    Event,
    GateAnswered,
    GateRecord,
    HoldChanged,
    Left,
    Outcome,
    Paused,
    Pending,
    Progressing,
    Restarted,
    RollingBack,
    RolloutPlan,
    Row,
    RulesChanged,
    StageCourse,
    State,
    Succeeded,
    Supersede,
    Superseded,
    WaitingForApproval,
    WaitingForTargets,
    WaitingForWindow,
)
from edgewise.rollout.table import Table

_replace = msgspec.structs.replace


def begin(plan: RolloutPlan) -> State:
    """A rollout that has not told anybody yet; the first ``step`` starts it."""
    stages = tuple(StageCourse() for _ in plan.stages)
    return State(Pending(plan.started), Course(plan.started, stages), Table(plan))


def resume_from(plan: RolloutPlan, head: object, course: Course, rows: dict[int, Row]) -> State:
    """The state as it was saved. Follow it with a ``Restarted`` event."""
    table = Table(plan, rows)
    state = State(head, course, table)  # type: ignore[arg-type]
    if isinstance(state.head, RollingBack):
        table.turn_round()
    draft = Draft(plan, state, plan.started)
    for index, row in table.rows.items():
        evidence.rearm(draft, index, row)
    return state


def step(plan: RolloutPlan, state: State, events: Sequence[Event], now: datetime) -> Outcome:
    """The next state, what changed and what to do. Consumes ``state``.

    Costs what the events touch, not what the fleet counts; entering a stage or a rollback
    costs the nodes it concerns.
    """
    draft = Draft(plan, state, now)
    for event in events:
        if _over(draft):
            break
        _take(draft, event)
    if not _over(draft):
        for index in list(draft.table.due(now)):
            evidence.judge_silence(draft, index)
        _mend_times(draft)
        _settle(draft)
    return draft.outcome(_wake_at(draft))


def _mend_times(draft: Draft) -> None:
    """No wait is longer than its rule: a clock that was ahead must not leave one for years."""
    course, head, now, rules = draft.course, draft.head, draft.now, draft.plan.rules
    wait = min(rules.offline_after, rules.node_timeout)
    if course.grace_until is not None and course.grace_until > now + wait:
        draft.course = _replace(draft.course, grace_until=now + wait)
    if isinstance(head, Baking):
        latest = now + max(draft.plan.stages[head.stage].bake, wait)
        intervals = {g.name: g.interval for g in draft.plan.stages[head.stage].gates}
        if head.until > latest:
            gates = tuple(_replace(g, due=min(g.due, now + intervals[g.name])) for g in head.gates)
            draft.head = _replace(head, until=latest, gates=gates)
            draft.mark(head.stage, bake_until=latest)


def _over(draft: Draft) -> bool:
    return isinstance(draft.head, Ended)


def _take(draft: Draft, event: Event) -> None:
    match event:
        case Command():
            _command(draft, event)
        case Supersede(by, actor, reason):
            draft.move(Superseded(draft.now, reason, by), actor)
            draft.announce()
        case GateAnswered():
            _gate_answered(draft, event)
        case RulesChanged():
            _rules_changed(draft, event)
        case Restarted():
            wait = min(draft.plan.rules.offline_after, draft.plan.rules.node_timeout)
            draft.course = _replace(draft.course, grace_until=draft.now + wait)
            if isinstance(draft.head, Baking):  # questions asked before are lost
                gates = tuple(_replace(g, asked=None) for g in draft.head.gates)
                baking = _replace(draft.head, gates=gates)
                if baking.until <= draft.now and not baking.extended:
                    # It ended while nobody watched: nodes get time to say how they are.
                    baking = _replace(baking, until=draft.now + wait, extended=True)
                draft.head = baking
        case Left(index):
            evidence.leave(draft, index, "left the fleet", "Skipped")
        case HoldChanged(index, held):
            if held:
                evidence.leave(draft, index, "held: it keeps what it runs", "Held")
            else:
                evidence.unhold(draft, index)
        case _:
            evidence.take(draft, event)


# Commands.


def _command(draft: Draft, command: Command) -> None:
    head, verb, actor = draft.head, command.verb, command.actor
    why = command.reason or f"asked by {actor}"
    if verb == "approve" and isinstance(head, WaitingForApproval):
        draft.course = _replace(draft.course, approved=head.stage)
        draft.note(actor, f"approved stage {draft.stage_name(head.stage)}: {why}")
        _enter(draft, head.stage, actor)
    elif verb == "pause" and isinstance(head, Active):
        draft.pause(actor, why)
    elif verb == "resume" and isinstance(head, Paused):
        _resume(draft, head, actor, why)
    elif verb == "abort" and not isinstance(head, RollingBack):
        returning.begin(draft, f"aborted by {actor}: {why}", "Cancelled", actor)
    else:
        draft.refuse(verb)


def _resume(draft: Draft, head: Paused, actor: str, why: str) -> None:
    """What went wrong so far is accepted: only new failures can trip the threshold."""
    before = head.before
    if isinstance(before, Baking):
        gates = tuple(
            GateRecord(g.name, due=draft.now) if g.last != "Pass" else g for g in before.gates
        )
        before = _replace(before, gates=gates)
    elif isinstance(before, WaitingForWindow):
        before = _replace(before, since=draft.now)
    table = draft.table
    draft.course = _replace(draft.course, clock=draft.now, forgiven=table.failed + table.unknown)
    if head.by == "failureThreshold":
        draft.course = _replace(draft.course, accepted=before.stage)
    draft.move(before, actor, why)


def _rules_changed(draft: Draft, event: RulesChanged) -> None:
    """A policy edit: stages that have not begun are replaced, the rest stays as it is."""
    head = draft.head
    if isinstance(head, Pending | RollingBack) or not event.rules.stages:
        return
    old = draft.plan
    begun = evidence.begun(draft) + 1
    names = {s.name for s in old.stages[:begun]}
    later = tuple(s for s in event.rules.stages if s.name not in names)
    untold = [
        (i, event.stages.get(i, "")) for i, row in draft.table.rows.items() if row.stage >= begun
    ]
    if untold and not later:
        last = event.rules.stages[-1]
        later = (_replace(last, name=f"{last.name}-rest"),)
    stages = old.stages[:begun] + later
    at = {s.name: begun + i for i, s in enumerate(later)}
    for index, name in untold:
        row = draft.table.rows[index]
        draft.table.put(index, _replace(row, stage=at.get(name, len(stages) - 1)))
    draft.plan = _replace(old, stages=stages, next_rules=event.rules)
    kept = draft.course.stages[:begun]
    fresh = tuple(StageCourse() for _ in later)
    draft.course = _replace(draft.course, stages=kept + fresh)
    draft.note(event.actor, "the policy was edited: it applies from the next stage")


# Stages.


def _enter(draft: Draft, stage: int, actor: str = "hub") -> None:
    """Begin ``stage``, or wait for the approval it asks for."""
    if draft.plan.next_rules is not None:
        draft.plan = _replace(draft.plan, rules=draft.plan.next_rules, next_rules=None)
    if draft.plan.stages[stage].approval and draft.course.approved < stage:
        draft.move(WaitingForApproval(stage, draft.now), actor)
        draft.notify("RolloutWaits", f"stage {draft.stage_name(stage)} waits for approval")
        return
    draft.mark(stage, started=draft.now)
    draft.move(Progressing(stage, draft.now), actor, f"stage {draft.stage_name(stage)} begins")
    for index in draft.table.members(stage):
        evidence.await_turn(draft, index)


def _settle(draft: Draft) -> None:
    """Let the state go on until nothing moves without an event."""
    while True:
        before = draft.head
        _advance(draft)
        if draft.head is before or isinstance(draft.head, Ended):
            return


def _advance(draft: Draft) -> None:
    head = draft.head
    match head:
        case Pending():
            draft.announce()
            _enter(draft, draft.plan.first)
        case RollingBack():
            returning.go_on(draft, head)
        case Progressing() | WaitingForTargets() | WaitingForWindow() | Baking():
            if _stopped(draft, head):
                return
            if isinstance(head, Baking):
                _bake(draft, head)
            else:
                _work(draft, head)
        case WaitingForApproval():
            _stopped(draft, head)
        case _:
            return  # Paused, or over: nothing moves by itself


def _stopped(draft: Draft, head: object) -> bool:
    """Whether too many failures, or too much time, ended the normal course."""
    table, rules = draft.table, draft.plan.rules
    why = tripped(
        rules,
        attempted=table.attempted,
        failed=table.failed,
        unknown=table.unknown,
        forgiven=draft.course.forgiven,
    )
    if why:
        _fail(draft, why)
        return draft.head is not head
    if _is_timed(head) and draft.now >= draft.course.clock + rules.max_duration:
        draft.pause("maxDuration", f"not done after {format_duration(rules.max_duration)}")
        return True
    return False


def _is_timed(head: object) -> bool:
    """Whether maxDuration counts: not while update windows, which will open, are waited for."""
    return isinstance(head, Active) and not (
        isinstance(head, WaitingForWindow) and head.opens is not None
    )


def _fail(draft: Draft, why: str) -> None:
    """The policy's onFailure."""
    head = draft.head
    assert isinstance(head, Active)
    rules = draft.plan.rules
    if rules.on_failure == "Continue":
        table = draft.table
        draft.course = _replace(draft.course, forgiven=table.failed + table.unknown)
        draft.note("hub", f"{why}; onFailure is Continue")
        return
    draft.mark(head.stage, failed=True, reason=why)
    if rules.on_failure == "Pause":
        draft.pause("failureThreshold", why)
        return
    draft.notify("RolloutFailed", why)
    returning.begin(draft, why, "RolledBack", "hub")


def _verdict(draft: Draft, stage: int) -> Verdict:
    table, plan = draft.table, draft.plan
    last = stage == len(plan.stages) - 1
    verdict = judge(
        plan.stages[stage],
        plan.rules,
        table.stage_counts(stage),
        ready=table.ready_in(stage),
        sick=table.degraded(stage),
    )
    if last and verdict.kind == "Done" and (table.ready or table.in_flight):
        return Verdict("Running", "nodes of earlier stages that came back late are at work")
    return verdict


def _work(draft: Draft, head: Progressing | WaitingForTargets | WaitingForWindow) -> None:
    stage = head.stage
    verdict = _verdict(draft, stage)
    if verdict.may_tell and verdict.kind != "Done":
        _tell(draft, stage)
        verdict = _verdict(draft, stage)
    match verdict.kind:
        case "Running":
            _keep_working(draft, head, verdict)
        case "Waiting":
            if not isinstance(head, WaitingForTargets):
                draft.move(WaitingForTargets(stage, draft.now, verdict.reason), "hub")
                draft.notify("RolloutWaits", verdict.reason)
            elif head.reason != verdict.reason:
                draft.head = _replace(head, reason=verdict.reason)
        case "Missed":
            if _miss_is_accepted(draft, stage, verdict):
                _start_bake(draft, stage, verdict)
        case "Done":
            _start_bake(draft, stage, verdict)
        case _:
            assert_never(verdict.kind)


def _keep_working(
    draft: Draft, head: Progressing | WaitingForTargets | WaitingForWindow, verdict: Verdict
) -> None:
    """Progressing, or WaitingForWindow when everybody at work waits for a window."""
    table, stage = draft.table, head.stage
    in_window = len(table.in_window)
    if in_window and in_window == table.in_flight:
        opens = table.next_opening()
        when = f"the next opens {opens:%Y-%m-%d %H:%M} UTC" if opens else "none opens in 4 years"
        reason = f"{in_window} nodes wait for their update window, {when}"
        if not isinstance(head, WaitingForWindow):
            draft.move(WaitingForWindow(stage, draft.now, reason, opens), "hub")
        elif (head.reason, head.opens) != (reason, opens):
            draft.head = _replace(head, reason=reason, opens=opens)
        return
    reason = table.blocked_by(draft.plan.rules.max_unavailable) or verdict.reason
    if in_window and not reason:
        reason = f"{in_window} of {table.in_flight} nodes at work wait for their update window"
    if not isinstance(head, Progressing):
        window = isinstance(head, WaitingForWindow)
        why = "a node's window has opened" if window else "targets are connected"
        draft.move(Progressing(stage, draft.now, reason), "hub", why)
    elif head.reason != reason:
        draft.head = _replace(head, reason=reason)


def _miss_is_accepted(draft: Draft, stage: int, verdict: Verdict) -> bool:
    """Whether the rollout goes on although too few succeeded; if not, it has been stopped."""
    if draft.course.accepted >= stage:
        return True
    before = draft.head
    _fail(draft, verdict.reason)
    return draft.head is before  # onFailure: Continue


def _tell(draft: Draft, stage: int) -> None:
    """Tell as many as maxConcurrent and the disruption budget allow."""
    table, rule = draft.table, draft.plan.stages[stage]
    total = sum(table.stage_counts(stage).values())
    room = max(1, rule.max_concurrent.of(total)) - table.in_flight
    for index in table.take(room, draft.plan.rules.max_unavailable):
        evidence.dispatch(draft, index)


def _start_bake(draft: Draft, stage: int, verdict: Verdict) -> None:
    rule = draft.plan.stages[stage]
    nothing_ran = not draft.table.stage_counts(stage).get("Succeeded")
    if nothing_ran or (not rule.bake and not rule.gates):
        _pass(draft, stage, verdict.reason)
        return
    until = draft.now + rule.bake
    gates = tuple(GateRecord(g.name, due=draft.now) for g in rule.gates)
    draft.mark(stage, bake_until=until)
    draft.move(Baking(stage, draft.now, until, gates), "hub", "successThreshold is reached")


def _bake(draft: Draft, head: Baking) -> None:
    verdict = _verdict(draft, head.stage)
    if verdict.kind == "Running":
        _tell(draft, head.stage)  # those that came back late
    _ask_gates(draft, head)
    if isinstance(draft.head, Baking) and draft.now >= head.until:
        _end_bake(draft, draft.head, verdict)


def _end_bake(draft: Draft, head: Baking, verdict: Verdict) -> None:
    if verdict.kind == "Missed":
        if not _miss_is_accepted(draft, head.stage, verdict):
            return
        verdict = Verdict("Done")
    open_gates = [g.name for g in head.gates if g.last != "Pass"]
    reason = ""
    if verdict.kind != "Done":
        reason = verdict.reason or "nodes that came back late are at work"
    elif open_gates:
        reason = f"gate {open_gates[0]} has not passed yet"
    if not reason:
        _pass(draft, head.stage, "the bake is over")
    elif head.reason != reason:
        draft.head = _replace(head, reason=reason)


def _pass(draft: Draft, stage: int, why: str) -> None:
    draft.mark(stage, passed=draft.now, reason=why)
    table, last = draft.table, len(draft.plan.stages) - 1
    if stage == last:
        draft.move(Succeeded(draft.now), "hub", why)
        draft.announce()
        draft.notify("RolloutEnded", f"release {draft.plan.release[:12]} is on the fleet")
        return
    if draft.plan.rules.catch_up == "Staged" and table.stage_counts(stage).get("Deferred"):
        for index in table.members(stage):
            row = table.rows[index]
            if row.state == "Deferred":
                table.put(index, _replace(row, state="Queued", stage=last))
    if why:
        draft.note("hub", f"stage {draft.stage_name(stage)} passed: {why}")
    _enter(draft, stage + 1)


# Gates.


def _ask_gates(draft: Draft, head: Baking) -> None:
    rules = {g.name: g for g in draft.plan.stages[head.stage].gates}
    records = []
    for record in head.gates:
        if record.asked is None and record.due <= draft.now:
            draft.ask(AskGate(head.stage, record.name))
            due = draft.now + rules[record.name].interval
            record = _replace(record, asked=draft.now, due=due)
        records.append(record)
    if tuple(records) != head.gates:
        draft.head = _replace(head, gates=tuple(records))


def _gate_answered(draft: Draft, event: GateAnswered) -> None:
    head = draft.head
    baking = head.before if isinstance(head, Paused) else head
    if not isinstance(baking, Baking) or baking.stage != event.stage:
        return
    found = next((g for g in baking.gates if g.name == event.gate and g.asked is not None), None)
    if found is None:
        return
    fails = found.fails + (event.answer == "Fail")
    record = _replace(found, asked=None, last=event.answer, why=event.why, fails=fails)
    gates = tuple(record if g.name == event.gate else g for g in baking.gates)
    baking = _replace(baking, gates=gates)
    if isinstance(head, Paused):
        draft.head = _replace(head, before=baking)
        return
    draft.head = baking
    rule = next(g for g in draft.plan.stages[event.stage].gates if g.name == event.gate)
    if event.answer == "Inconclusive":
        draft.pause("gate", f"gate {event.gate} is inconclusive: {event.why}")
    elif event.answer == "Fail" and fails >= max(1, rule.failure_limit):
        why = f"gate {event.gate} failed {fails} times: {event.why}"
        _fail(draft, why)
        if draft.head is baking:  # onFailure: Continue
            passed = _replace(record, last="Pass")
            gates = tuple(passed if g.name == event.gate else g for g in baking.gates)
            draft.head = _replace(baking, gates=gates)


def _wake_at(draft: Draft) -> datetime | None:
    head, now = draft.head, draft.now
    if isinstance(head, Ended):
        return None
    times = [draft.table.next_due]
    if _is_timed(head):
        times.append(draft.course.clock + draft.plan.rules.max_duration)
    if isinstance(head, Baking):
        times.append(head.until if head.until > now else None)
        times += [g.due for g in head.gates if g.asked is None]
    return min((t for t in times if t is not None), default=None)
