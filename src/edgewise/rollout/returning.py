"""The way back: attempted nodes return to the previous release, under the budget.

No stages and no threshold: all at once, but never more of a group down than the
disruption budget allows. Ends when every node was heard of or its time is over.
"""

from __future__ import annotations

import msgspec

from edgewise.protocol.report import Observation, Receipt
from edgewise.rollout.draft import Draft
from edgewise.rollout.states import (
    Cancelled,
    End,
    Failed,
    RolledBack,
    RollingBack,
    name_of,
)

_replace = msgspec.structs.replace


def begin(draft: Draft, why: str, end: End, actor: str) -> None:
    """Stop telling nodes and turn the attempted ones round."""
    plan, table = draft.plan, draft.table
    stage = getattr(draft.head, "stage", plan.first)
    only_stage = end == "RolledBack" and plan.rules.scope == "Stage"
    from_stage = stage if only_stage else 0
    table.clear_ready()
    if not plan.previous and table.attempted:
        reason = f"{why}; there is no earlier release to return to, nodes keep what they run"
        ended = Failed(draft.now, reason) if end == "RolledBack" else None
        draft.move(ended or Cancelled(draft.now, reason), actor)
        draft.notify("RolloutEnded", reason)
        draft.announce()
        return
    table.turn_round()
    for index, row in list(table.rows.items()):
        if not row.told or row.stage < from_stage or row.state == "Held":
            continue
        if row.restored and row.state == "Failed":
            table.put(index, _replace(row, state="RolledBack", back=True))
            continue
        row = _replace(row, dispatched=None, contact=None, waits=None, opens=None)
        table.put(index, _replace(row, state="Queued", back=True))
        table.make_ready(index)
    draft.move(RollingBack(stage, draft.now, why, end, from_stage), actor, why)
    draft.announce()


def go_on(draft: Draft, head: RollingBack) -> None:
    """Tell the next ones to return; end when nobody is left."""
    table, rules = draft.table, draft.plan.rules
    for index in table.take(len(table.rows), rules.max_unavailable):
        row = table.rows[index]
        table.put(index, _replace(row, state="Dispatched", dispatched=draft.now, contact=None))
        table.remind(draft.now + rules.node_timeout, index)
        draft.announce()
    if table.ready or table.in_flight:
        return
    _end(draft, head)


def _end(draft: Draft, head: RollingBack) -> None:
    table = draft.table
    stuck = [i for i in table.indexes(("Failed",)) if table.rows[i].back]
    silent = sum(1 for i in table.indexes(("Unknown",)) if table.rows[i].back)
    draft.announce()
    if stuck:
        names = ", ".join(table.planned[i].name for i in stuck[:5])
        reason = f"{head.reason}; {len(stuck)} nodes could not return: {names}"
        draft.move(Failed(draft.now, reason), "hub")
        draft.notify("RolloutFailed", reason)
        if head.end == "RolledBack":
            draft.undo()
        return
    reason = head.reason
    if silent:
        reason += f"; {silent} nodes are silent and return when they are back"
    ended = RolledBack(draft.now, reason) if head.end == "RolledBack" else None
    draft.move(ended or Cancelled(draft.now, reason), "hub")
    draft.notify("RolloutEnded", f"{name_of(draft.head)}: {reason}")
    if ended is not None:
        draft.undo()


def received(draft: Draft, index: int, receipt: Receipt) -> None:
    """A receipt about the previous release from a node on its way back."""
    row = draft.table.rows[index]
    after = _replace(row, sequence=receipt.sequence)
    if receipt.outcome == "Failed":
        after = _replace(after, state="Failed", reason=receipt.reason[:1000])
    elif receipt.running == draft.plan.previous:
        after = _replace(after, state="RolledBack", confirmed=False)
    draft.table.unready(index)
    draft.table.put(index, after)


def observed(draft: Draft, index: int, seen: Observation) -> None:
    """A node that never took the target has nothing to sign: its own word is enough.

    Only for nodes without a receipt for the target, so that nobody can end a rollback by
    inventing observations for nodes that run the bad release.
    """
    row, previous = draft.table.rows[index], draft.plan.previous
    settled = seen.running == previous and seen.target in ("", previous)
    if settled and not row.confirmed and seen.phase in ("Idle", "Blocked"):
        draft.table.put(index, _replace(row, state="RolledBack"))
