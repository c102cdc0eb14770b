"""What an event says of one node: contact, receipts, silence.

Receipts decide; observations only move a node between the states of being at work, tell
online from offline and healthy from sick, and start its clock.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Literal

import msgspec

from edgewise.model.quantity import format_duration
from edgewise.protocol.api import NodeState
from edgewise.protocol.report import Observation, Receipt
from edgewise.rollout import returning
from edgewise.rollout.draft import Draft
from edgewise.rollout.states import (
    IN_FLIGHT,
    Heard,
    Offline,
    Online,
    Paused,
    Pending,
    Received,
    RollingBack,
    Row,
    WaitingForApproval,
)

_replace = msgspec.structs.replace
_AT_WORK: Final[dict[str, NodeState]] = {
    "Downloading": "Downloading",
    "Ready": "Ready",
    "Applying": "Applying",
    "Verifying": "Verifying",
}


def take(draft: Draft, event: object) -> None:
    """Apply one event about one node; events about unknown nodes change nothing."""
    index = getattr(event, "index", -1)
    if index not in draft.table.rows:
        return
    match event:
        case Online():
            draft.table.set_online(index, True)
            _came_back(draft, index)
        case Offline():
            draft.table.set_online(index, False)
            _went_away(draft, index)
        case Heard():
            _heard(draft, event)
        case Received(_, receipt):
            _received(draft, index, receipt)
        case _:
            return


def begun(draft: Draft) -> int:
    """The last stage that has begun; -1 before the first."""
    head = draft.head
    if isinstance(head, Pending):
        return draft.plan.first - 1
    active = head.before if isinstance(head, Paused) else head
    stage = getattr(active, "stage", -1)
    return stage - 1 if isinstance(active, WaitingForApproval) else stage


def await_turn(draft: Draft, index: int) -> None:
    """Its stage has begun: queue it when it is connected, else it is Deferred."""
    table, row = draft.table, draft.table.rows[index]
    if row.back or row.state not in ("Queued", "Deferred"):
        return
    if index in table.online:
        table.put(index, _replace(row, state="Queued", reason=""))
        table.make_ready(index)
        return
    table.unready(index)
    table.put(index, _replace(row, state="Deferred", reason="it is offline"))
    if draft.plan.rules.offline == "Failed":
        table.remind(draft.now + draft.plan.rules.node_timeout, index)


def _came_back(draft: Draft, index: int) -> None:
    row = draft.table.rows[index]
    if not isinstance(draft.head, RollingBack) and row.stage <= begun(draft):
        await_turn(draft, index)


def _went_away(draft: Draft, index: int) -> None:
    row = draft.table.rows[index]
    if isinstance(draft.head, RollingBack) or row.back:
        return
    if row.state == "Queued" and row.stage <= begun(draft):
        await_turn(draft, index)


def dispatch(draft: Draft, index: int) -> None:
    """Tell it: from now on it is at work, until its receipt or its time is over."""
    row = draft.table.rows[index]
    fresh = _replace(row, contact=None, waits=None, opens=None)
    told = _replace(fresh, state="Dispatched", told=True, dispatched=draft.now)
    draft.table.put(index, told)
    draft.table.remind(draft.now + draft.plan.rules.node_timeout, index)
    draft.announce()


def rearm(draft: Draft, index: int, row: Row) -> None:
    """After a restart: rebuild what is not saved (queue and reminders)."""
    table = draft.table
    rolling_back = isinstance(draft.head, RollingBack)
    if row.state in IN_FLIGHT and row.dispatched is not None:
        _remind(draft, index, row)
    elif row.state == "Queued" and (
        row.back if rolling_back else not row.back and row.stage <= begun(draft)
    ):
        table.set_online(index, True)  # it was, when this was saved
        table.make_ready(index)
    elif row.state == "Deferred" and draft.plan.rules.offline == "Failed":
        started = draft.course.stages[row.stage].started
        if started is not None:
            table.remind(started + draft.plan.rules.node_timeout, index)


def _heard(draft: Draft, event: Heard) -> None:
    table, row, seen = draft.table, draft.table.rows[event.index], event.observation
    if row.state in IN_FLIGHT and row.contact is None and _since_told(draft, row, event):
        row = _replace(row, contact=event.at)
        table.put(event.index, row)
        _remind(draft, event.index, row)
    if seen is None:
        return
    table.set_unhealthy(event.index, seen.health in ("Degraded", "Missing"))
    if row.state not in IN_FLIGHT or not _since_told(draft, row, event):
        return
    row = _follow_window(draft, row, event, seen)
    if row.back:
        returning.observed(draft, event.index, seen)
        return
    state = _AT_WORK.get(seen.phase) if seen.target == draft.plan.release else None
    if state is not None and state != row.state:
        reason = row.reason if row.waits else seen.reason[:500]
        table.put(event.index, _replace(row, state=state, reason=reason))


def _follow_window(draft: Draft, row: Row, event: Heard, seen: Observation) -> Row:
    """Stop the node's clock while it says that it waits for its update window."""
    wanted = draft.plan.previous if row.back else draft.plan.release
    if seen.window and seen.target == wanted:
        opens = f"opens {seen.opens:%Y-%m-%d %H:%M} UTC" if seen.opens else "never opens"
        why = f"waits for its {seen.window} window, which {opens}"
        after = _replace(row, waits=row.waits or event.at, opens=seen.opens, reason=why)
    elif row.waits is not None and row.contact is not None:
        waited = max(event.at - row.waits, timedelta())
        contact = row.contact + waited
        after = _replace(row, contact=contact, waits=None, opens=None, reason="")
    else:
        return row
    if after != row:
        draft.table.put(event.index, after)
        _remind(draft, event.index, after)
    return after


def _deadline(draft: Draft, row: Row) -> datetime | None:
    """When a node at work has had its time; None: it waits for a window that never opens."""
    start = row.contact or row.dispatched
    if start is None or (row.waits is not None and row.opens is None):
        return None
    due = start + draft.plan.rules.node_timeout
    if row.waits is not None and row.opens is not None:
        due += max(row.opens - row.waits, timedelta())
    return due


def _remind(draft: Draft, index: int, row: Row) -> None:
    due = _deadline(draft, row)
    if due is not None:
        draft.table.remind(due, index)


def _since_told(draft: Draft, row: Row, event: Heard) -> bool:
    if row.dispatched is None:
        return False
    # Told in the future: the clock has gone back since, and every contact is newer.
    return event.at >= row.dispatched or row.dispatched > draft.now


def _received(draft: Draft, index: int, receipt: Receipt) -> None:
    row, plan = draft.table.rows[index], draft.plan
    if not row.told or receipt.sequence <= row.sequence:
        return
    if receipt.release == plan.release and receipt.rollout == plan.id:
        if receipt.outcome == "Failed":
            _failed(draft, index, row, receipt)
        elif receipt.outcome == "Succeeded" and receipt.running == plan.release:
            _succeeded(draft, index, row, receipt)
    elif row.back and receipt.release == plan.previous:
        returning.received(draft, index, receipt)


def _succeeded(draft: Draft, index: int, row: Row, receipt: Receipt) -> None:
    after = _replace(row, confirmed=True, sequence=receipt.sequence)
    if not row.back:  # on the way back it only tells that the node has to come back
        after = _replace(after, state="Succeeded", failed=False, restored=False, reason="")
        draft.table.unready(index)
    draft.table.put(index, after)


def _failed(draft: Draft, index: int, row: Row, receipt: Receipt) -> None:
    plan = draft.plan
    restored = receipt.running != plan.release
    after = _replace(
        row,
        failed=True,
        restored=restored,
        confirmed=row.confirmed and not restored,
        sequence=receipt.sequence,
        reason=receipt.reason[:1000],
    )
    if not row.back:
        after = _replace(after, state="Failed")
    elif restored and receipt.running == plan.previous:
        after = _replace(after, state="RolledBack")
        draft.table.unready(index)
    draft.table.put(index, after)


def judge_silence(draft: Draft, index: int) -> None:
    """A reminder came up: is the node's time over?"""
    table, rules = draft.table, draft.plan.rules
    row = table.rows[index]
    grace = draft.course.grace_until
    if grace is not None and draft.now < grace:
        table.remind(grace, index)
        return
    limit = format_duration(rules.node_timeout)
    if row.state == "Deferred" and not row.back:
        started = draft.course.stages[row.stage].started
        if rules.offline == "Failed" and started and draft.now >= started + rules.node_timeout:
            table.put(index, _replace(row, state="Failed", reason=f"offline for {limit}"))
        return
    if row.state not in IN_FLIGHT or row.dispatched is None:
        return
    due = _deadline(draft, row)
    if due is None or draft.now < due:
        return  # a later reminder is set, or it waits for a window that never opens
    if row.contact is None or index not in table.online:
        table.put(index, _replace(row, state="Unknown", reason=f"not heard of for {limit}"))
    elif row.back:
        table.put(index, _replace(row, state="Failed", reason=f"did not return within {limit}"))
    else:
        reason = f"not done {limit} after the first contact"
        if row.opens is not None:
            at = f"{row.opens:%Y-%m-%d %H:%M}"
            reason = f"still waits for its window {limit} after it opened at {at}: see its clock"
        table.put(index, _replace(row, state="Failed", failed=True, reason=reason))


def leave(draft: Draft, index: int, why: str, state: Literal["Held", "Skipped"]) -> None:
    """It takes no further part: held by somebody, or gone from the fleet."""
    row = draft.table.rows.get(index)
    if row is None or row.state == state:
        return
    draft.table.unready(index)
    if not row.back and row.state == "Succeeded":
        return  # it has done its part
    draft.table.put(index, _replace(row, state=state, reason=why))
    draft.announce()


def unhold(draft: Draft, index: int) -> None:
    """A held node takes part again: it waits for its turn, if it has not had it."""
    row = draft.table.rows.get(index)
    if row is None or row.state != "Held" or row.back or isinstance(draft.head, RollingBack):
        return
    # Told again in its turn, not by the hold's end: a paused rollout tells nobody.
    waiting = _replace(row, state="Queued", reason="", told=False, dispatched=None, contact=None)
    draft.table.put(index, waiting)
    draft.announce()
    if row.stage <= begun(draft):
        await_turn(draft, index)
