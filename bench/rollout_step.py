"""What one step of a rollout costs on the hub, against the size of the fleet.

`make bench-rollout_step`. The pure machine alone: no store, no network.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from edgewise.model.quantity import Share
from edgewise.model.rules import RolloutRules, StageRule
from edgewise.protocol.report import Receipt
from edgewise.rollout import waves
from edgewise.rollout.states import Online, PlannedNode, Received, RolloutPlan
from result import write

OLD, NEW, T0 = "a" * 64, "b" * 64, datetime(2026, 1, 1, tzinfo=UTC)
BATCH = 1000


def plan_of(nodes: int) -> RolloutPlan:
    """One stage, two nodes to a site, one of each down at most."""
    stages = (StageRule("all", max_concurrent=Share(percent=50)),)
    rules = RolloutRules(stages=stages, max_unavailable=Share(count=1))
    planned = tuple(PlannedNode(i, f"n{i}", 0, f"site{i // 2}") for i in range(nodes))
    return RolloutPlan("r", "shop", "main", NEW, OLD, rules, stages, T0, planned)


def receipt(index: int) -> Received:
    """A success."""
    return Received(index, Receipt(f"n{index}", 1, "Succeeded", NEW, NEW, "r", T0))


def main() -> None:
    """Milliseconds, for each fleet size."""
    figures: dict[str, float] = {}
    for nodes in (1_000, 10_000, 100_000):
        plan = plan_of(nodes)
        marks = [time.perf_counter()]
        state = waves.begin(plan)
        marks.append(time.perf_counter())
        out = waves.step(plan, state, [Online(i) for i in range(nodes)], T0)
        marks.append(time.perf_counter())
        told = list(range(0, nodes, 2))
        now = T0 + timedelta(minutes=1)
        out = waves.step(plan, out.state, [receipt(i) for i in told[: BATCH // 2]], now)
        marks.append(time.perf_counter())
        for i in told[BATCH // 2 : BATCH // 2 + 20] or told[-1:]:
            out = waves.step(plan, out.state, [receipt(i)], now)
        marks.append(time.perf_counter())
        times = [(b - a) * 1000 for a, b in pairwise(marks)]
        times[2] *= 2
        times[3] /= 20
        names = ("begin_ms", "first_step_ms", "batch_of_1000_receipts_ms", "one_receipt_ms")
        figures |= {f"nodes_{nodes}.{k}": v for k, v in zip(names, times, strict=True)}
    write("rollout_step", figures, "make bench-rollout_step")


if __name__ == "__main__":
    main()
