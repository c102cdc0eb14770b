"""Rollout stores in memory, and an outside world that notes what it is asked to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from edgewise.model.rules import Gate
from edgewise.protocol.api import HeldChange
from edgewise.protocol.channel import Channel
from edgewise.protocol.report import Receipt
from edgewise.rollout.fleet import FleetState, Member, Proposal
from edgewise.rollout.ports import (
    LOG_LINES,
    RECEIPTS_PER_NODE,
    ROLLOUTS_KEPT,
    Announcer,
    Change,
    GateCheck,
    Loaded,
    NodeSeen,
    NodeStates,
    Notice,
    Notices,
    Revert,
    Reverted,
    Reverts,
    RolloutStore,
    Saved,
    Undone,
)
from edgewise.rollout.states import Moved, RolloutPlan, Row


class MemoryRollouts:
    """A RolloutStore that lives as long as the test."""

    def __init__(self) -> None:
        self._fleets: dict[str, FleetState] = {}
        self._members: dict[str, dict[str, Member]] = {}
        self._proposals: dict[tuple[str, str], Proposal] = {}
        self._plans: dict[str, RolloutPlan] = {}
        self._saved: dict[str, Saved] = {}
        self._rows: dict[str, dict[int, Row]] = {}
        self._log: dict[str, list[Moved]] = {}
        self._announce: dict[str, Channel] = {}
        self._notices: dict[str, Notice] = {}
        self._reverts: dict[str, Revert] = {}
        self._receipts: dict[str, dict[int, Receipt]] = {}
        self._held: dict[str, HeldChange] = {}

    async def load(self) -> Loaded:
        return Loaded(
            fleets=dict(self._fleets),
            members={f: dict(m) for f, m in self._members.items()},
            proposals=tuple(self._proposals.values()),
            running=tuple(s for s in self._saved.values() if s.ended is None),
            held=tuple(self._held.values()),
            undone=Undone(
                dict(self._announce),
                tuple(self._notices.values()),
                tuple(self._reverts.values()),
            ),
        )

    async def commit(self, change: Change) -> None:
        self._fleets.update(change.fleets)
        for fleet, members in change.members.items():
            self._members.setdefault(fleet, {}).update(members)
        self._proposals.update({(p.fleet, p.release): p for p in change.proposals})
        self._commit_rollouts(change)
        self._announce.update(change.announce)
        for notice in change.notices:
            self._notices.setdefault(notice.id, notice)
        for revert in change.reverts:
            self._reverts.setdefault(revert.rollout, revert)
        for identifier in change.reverted:
            self._reverts.pop(identifier, None)
        for receipt in change.receipts:
            kept = self._receipts.setdefault(receipt.node, {})
            kept.setdefault(receipt.sequence, receipt)
            for old in sorted(kept)[:-RECEIPTS_PER_NODE]:
                del kept[old]
        self._held.update({h.id: h for h in change.held})
        for identifier in change.unheld:
            self._held.pop(identifier, None)

    def _commit_rollouts(self, change: Change) -> None:
        for plan in change.plans:
            self._plans[plan.id] = plan
            if plan.id in self._saved:
                self._saved[plan.id] = replace(self._saved[plan.id], plan=plan)
        for identifier, (head, course, ended) in change.heads.items():
            self._saved[identifier] = Saved(self._plans[identifier], head, course, ended)
            fleet = self._plans[identifier].fleet
            over = [i for i, s in self._saved.items() if s.ended and s.plan.fleet == fleet]
            for old in over[:-ROLLOUTS_KEPT]:
                for table in (self._saved, self._plans, self._rows, self._log):
                    table.pop(old, None)
        for rollout, rows in change.rows.items():
            self._rows.setdefault(rollout, {}).update(rows)
        for rollout, lines in change.log.items():
            self._log.setdefault(rollout, []).extend(lines)

    async def announced(self, channel: Channel) -> None:
        waiting = self._announce.get(channel.fleet)
        if waiting is not None and waiting.sequence <= channel.sequence:
            del self._announce[channel.fleet]

    async def notified(self, notice: str) -> None:
        self._notices.pop(notice, None)

    async def rows(self, rollout: str) -> Mapping[int, Row]:
        return dict(self._rows.get(rollout, {}))

    async def rollouts(
        self, fleet: str = "", *, limit: int = 100, after: str = ""
    ) -> tuple[Saved, ...]:
        order = list(reversed(self._saved))
        if after:
            order = order[order.index(after) + 1 :] if after in order else []
        found = [self._saved[i] for i in order if fleet in ("", self._saved[i].plan.fleet)]
        return tuple(found[:limit])

    async def rollout(self, identifier: str) -> Saved | None:
        return self._saved.get(identifier)

    async def log(self, rollout: str) -> tuple[Moved, ...]:
        return tuple(self._log.get(rollout, [])[-LOG_LINES:])

    async def receipts(self, node: str, *, limit: int = 50) -> tuple[Receipt, ...]:
        kept = self._receipts.get(node, {})
        return tuple(kept[s] for s in sorted(kept, reverse=True)[:limit])

    async def receipts_for(self, releases: Sequence[str]) -> tuple[Receipt, ...]:
        found = []
        for _, kept in sorted(self._receipts.items()):
            about = [r for _, r in sorted(kept.items()) if r.release in releases]
            found += about[-1:]
        return tuple(found)

    async def drop_proposals(self, fleet: str, keep: Sequence[str]) -> None:
        for key in [k for k in self._proposals if k[0] == fleet and k[1] not in keep]:
            del self._proposals[key]

    async def forget(self, node: str) -> None:
        self._receipts.pop(node, None)


class MemoryNodeStates:
    """Last contacts in memory."""

    def __init__(self) -> None:
        self._seen: dict[str, NodeSeen] = {}

    async def save(self, seen: Sequence[NodeSeen]) -> None:
        for new in seen:
            old = self._seen.get(new.node)
            said = new.observation or (old.observation if old else None)
            self._seen[new.node] = NodeSeen(new.node, new.heard, said, new.via)

    async def all(self) -> tuple[NodeSeen, ...]:
        return tuple(self._seen[n] for n in sorted(self._seen))

    async def forget(self, node: str) -> None:
        self._seen.pop(node, None)


class Noticeboard:
    """Announcer, gates, notices and reverts in one; ``before`` runs first and may raise."""

    def __init__(self) -> None:
        self.channels: list[Channel] = []
        self.notices: dict[str, Notice] = {}
        self.reverts: list[Revert] = []
        self.asked: list[str] = []
        self.answers: dict[str, tuple[Literal["Pass", "Fail", "Inconclusive"], str]] = {}
        self.before: Callable[[str], None] = lambda what: None

    async def announce(self, channel: Channel) -> None:
        self.before("announce")
        self.channels.append(channel)
        self.before("announced")

    async def notify(self, notice: Notice) -> None:
        self.before("notify")
        self.notices[notice.id] = notice
        self.before("notified")

    async def revert(self, wanted: Revert) -> Reverted:
        self.before("revert")
        if wanted not in self.reverts:
            self.reverts.append(wanted)
        self.before("reverted")
        return Reverted(True, f"{wanted.revision} is reverted")

    async def ask(self, gate: Gate) -> tuple[Literal["Pass", "Fail", "Inconclusive"], str]:
        self.before("ask")
        self.asked.append(gate.name)
        return self.answers.get(gate.name, ("Pass", ""))


def _meets_its_port(
    store: MemoryRollouts, states: MemoryNodeStates, board: Noticeboard
) -> tuple[RolloutStore, NodeStates, Announcer, GateCheck, Notices, Reverts]:
    return store, states, board, board, board, board
