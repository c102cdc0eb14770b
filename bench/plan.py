"""From a commit to a plan: 10,000 nodes in 20 fleets, cold and after a change of one config.

`make bench-plan`; `--nodes N --fleets N` for other sizes. No hub, git or network: this is
what `compile_workspace` and `plan_change` cost in one process.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from edgewise.delivery.deltas import weigh
from edgewise.protocol.api import Plan
from edgewise.protocol.content import Artifact, TreeRef
from edgewise.protocol.delta import DeltaRef
from edgewise.sync.compile import compile_workspace
from edgewise.sync.parse import ParseCache, Report, parse_revision
from edgewise.sync.plan import Planning, plan_change
from edgewise.sync.ports import Compiled, Inputs, JoinedNode, Snapshot
from edgewise.sync.validate import snapshot_of
from result import write

T = TypeVar("T")
HEAD = "apiVersion: edgewise.dev/v1\nkind: {}\nmetadata: {{name: {}}}\nspec:\n"
ROWS = 500
"""Nodes in one file."""


def repo(nodes: int, fleets: int, tuning: str, version: str = "1.0.0") -> dict[str, str]:
    """Every fleet has two apps and two configs; parts vary by region, site and fleet vars."""
    files = {
        "edgewise.yaml": HEAD.format("Workspace", "bench") + "  vars: {domain: acme.net}\n",
        "policies/careful.yaml": HEAD.format("RolloutPolicy", "careful")
        + "  stages:\n    - {name: canary, limit: 5, minTargets: 3, bake: 10m}\n"
        "    - {name: early, limit: 10%}\n    - {name: rest, maxConcurrent: 20%}\n",
        "configs/tuning.yaml": HEAD.format("Config", "tuning")
        + "  files:\n    - path: /etc/tuning.conf\n      content: |\n"
        f"        region={{{{ node.labels.region }}}}\n        tuning={tuning}\n",
        "configs/site.yaml": HEAD.format("Config", "site")
        + "  files:\n    - path: /etc/site.conf\n      content: |\n"
        "        site={{ node.labels.site }}\n        mqtt={{ vars.mqtt }}\n",
    }
    for name in ("till", "telemetry"):
        files[f"apps/{name}.yaml"] = (
            HEAD.format("App", name)
            + f"  type: process\n  artifact: {{ref: {name}, version: {version}}}\n"
            f'  command: [bin/{name}]\n  env: {{REGION: "{{{{ node.labels.region }}}}"}}\n'
        )
    for index in range(fleets):
        files[f"fleets/f{index:02}.yaml"] = HEAD.format("Fleet", f"f{index:02}") + (
            f"  selector: {{matchLabels: {{type: t{index:02}}}}}\n"
            f'  vars: {{mqtt: "mqtt-{index}.{{{{ node.labels.region }}}}.{{{{ vars.domain }}}}"}}\n'
            "  apps: [{ref: {name: till}}, {ref: {name: telemetry}}]\n"
            "  configs: [{ref: {name: tuning}}, {ref: {name: site}}]\n"
            "  rolloutPolicyRef: {name: careful}\n"
        )
    for start in range(0, nodes, ROWS):
        rows = "".join(
            f"    - {{name: node-{i:06}, labels: {{type: t{i % fleets:02}, region: r{i % 8}, "
            f"site: s{i // 20:04}}}}}\n"
            for i in range(start, min(nodes, start + ROWS))
        )
        files[f"nodes/n{start:06}.yaml"] = (
            HEAD.format("NodeSet", f"n{start:06}") + "  nodes:\n" + rows
        )
    return files


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds of wall time, and the result."""
    gc.collect()
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def parse(files: Mapping[str, str]) -> float:
    """Seconds to parse everything from nothing."""
    snapshot = snapshot_of(files)
    report = Report(snapshot.files)
    return timed(lambda: parse_revision(snapshot.files, ParseCache(), report))[0]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--nodes", type=int, default=10_000)
    options.add_argument("--fleets", type=int, default=20)
    options.add_argument("--runs", type=int, default=5)
    given = options.parse_args()
    inputs = Inputs(
        {
            (name, version): Artifact(
                name, version, {"linux/amd64": TreeRef(f"{app}{number}" * 32, 5000, 9)}
            )
            for app, name in enumerate(("till", "telemetry"))
            for number, version in enumerate(("1.0.0", "1.1.0"))
        },
        tuple(JoinedNode(f"node-{i:06}", {}, "linux/amd64") for i in range(given.nodes)),
    )
    first = repo(given.nodes, given.fleets, "0")
    snapshot = snapshot_of(first, "0" * 40)
    cache = ParseCache()
    cold_s, before = timed(lambda: compile_workspace(snapshot, inputs, cache, None))
    warm, plans = [], []
    for run in range(given.runs):
        # The hub reads blob ids from git; here the hashes are made before the clock starts.
        changed = snapshot_of(repo(given.nodes, given.fleets, str(run + 1)), f"{run + 1:040x}")
        compile_s, after = timed(_compiling(changed, inputs, cache, before))
        plan_s, plan = timed(_planning(before, after))
        warm.append(compile_s + plan_s)
        plans.append(plan_s)
        before = after
    assert sum(fleet.changed_nodes for fleet in plan.fleets) == given.nodes
    update = snapshot_of(repo(given.nodes, given.fleets, str(given.runs), "1.1.0"), "f" * 40)
    update_s, updated = timed(_updating(update, inputs, cache, before))
    assert 0 < updated.bytes < updated.bytes_full
    joined_s, _ = timed(
        lambda: compile_workspace(
            changed,
            Inputs(inputs.artifacts, (*inputs.joined, JoinedNode("new", {"type": "t00",
                "region": "r0", "site": "s0000"}))),
            cache,
            before,
        )
    )  # fmt: skip
    write(
        "plan",
        {
            "nodes": given.nodes,
            "fleets": given.fleets,
            "cold_s": cold_s,
            "cold_parse_s": parse(first),
            "warm_s": statistics.median(warm),
            "warm_worst_s": max(warm),
            "warm_plan_s": statistics.median(plans),
            "warm_two_apps_s": update_s,
            "one_node_joins_s": joined_s,
        },
        "make bench-plan",
    )


def _compiling(
    snapshot: Snapshot, inputs: Inputs, cache: ParseCache, before: Compiled
) -> Callable[[], Compiled]:
    return lambda: compile_workspace(snapshot, inputs, cache, before)


def _updating(
    snapshot: Snapshot, inputs: Inputs, cache: ParseCache, before: Compiled
) -> Callable[[], Plan]:
    """Both apps get a new version on every node, and what travels is weighed with deltas."""
    sizes = {
        f"{app}{n}" * 32: {f"f{app}": 900_000, f"v{app}{n}": 900_000}
        for app in range(2)
        for n in range(2)
    }
    refs = [
        DeltaRef(f"d{app}" * 32, 10, 20, 40_000, f"{app}1" * 32, f"{app}0" * 32) for app in range(2)
    ]

    def plan() -> Plan:
        planning = Planning(before, compile_workspace(snapshot, inputs, cache, before))
        return planning.plan({one: weigh(one, sizes, refs) for one in planning.changes})

    return plan


def _planning(before: Compiled, after: Compiled) -> Callable[[], object]:
    return lambda: plan_change(before, after)


if __name__ == "__main__":
    main()
