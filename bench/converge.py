"""From `git push` to the first node's app, and to the whole fleet: 12, 100 and 1,000 nodes.

``make bench-converge``; ``--sizes 12 100`` for others. One real hub process and real git
pushes over mutual TLS. 12 nodes are 12 real agent processes with real apps. More are the
agents' own code, many in one process (bench/converge_nodes.py): real mTLS, TUF, downloads,
staging, signed receipts; only the apps are not started. Everything shares this machine, so
the nodes' own work (their handshakes, hashing, files) competes with the hub for its cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewise.cli.client import Client, Context
from edgewise.protocol.api import Page, RolloutSummary, TokenCreated, TokenRequest, Trace
from edgewise.protocol.tasks import LINGER_S
from edgewise.roles.laptop import Laptop, laptop, resident_mb
from result import write

REAL_AGENTS = 12
"""Up to here every node is a process of its own."""
FIRST, LAST = "first_start_s", "converged_s"
HEAD = "apiVersion: edgewise.dev/v1\nkind: {}\nmetadata: {{name: {}}}\nspec:\n"
PROGRAM = '#!/bin/sh\n# version {}\ndate +%s.%N > "$EDGEWISE_DATA/started"\nexec sleep 100000\n'


def repo(nodes: int, version: str) -> dict[str, str]:
    """One fleet, one app, one config, all at once."""
    rows = "".join(
        f"  - {{name: node-{i:05d}, labels: {{site: s{i // 20}}}}}\n" for i in range(nodes)
    )
    return {
        "edgewise.yaml": HEAD.format("Workspace", "bench") + "  vars: {}\n",
        "policies/all.yaml": HEAD.format("RolloutPolicy", "all")
        + "  stages: [{name: all, maxConcurrent: 100%}]\n  failureThreshold: 50%\n"
        "  minFailures: 10\n",
        "nodes/all.yaml": HEAD.format("NodeSet", "all") + "  nodes:\n" + rows,
        "apps/till.yaml": HEAD.format("App", "till")
        + f"  type: process\n  artifact: {{ref: till, version: {version}}}\n"
        "  command: [bin/till]\n  healthPolicy: {minReady: 0s}\n",
        "configs/tuning.yaml": HEAD.format("Config", "tuning")
        + "  files:\n    - path: /etc/till.conf\n"
        f"      content: |\n        tuning {version} of {{{{ node.labels.site }}}}\n",
        "fleets/shops.yaml": HEAD.format("Fleet", "shops")
        + "  selector: {matchExpressions: [{key: site, operator: Exists}]}\n"
        "  apps: [{ref: {name: till}}]\n  configs: [{ref: {name: tuning}}]\n"
        "  rolloutPolicyRef: {name: all}\n",
    }


@dataclass
class Bench:
    """One fleet of one size."""

    fleet: Laptop
    nodes: int
    states: Path
    """Where the nodes keep their state."""
    crowds: list[asyncio.subprocess.Process] = field(default_factory=list)
    profile: str = ""

    @property
    def data(self) -> Path:
        return self.fleet.directory / "hub"

    @property
    def _hub_pid(self) -> int:
        return self.fleet.processes["hub"].pid

    def client(self) -> Client:
        return Client(Context.find(str(self.data)))

    async def start(self) -> dict[str, float]:
        """Hub, nodes, and the first release on all of them."""
        ready = self.data / "ready.json"
        arguments = ("hub", "--data", str(self.data), "--listen", "127.0.0.1:0")
        await self.fleet.start("hub", arguments, ready)
        begun = time.time()
        request = TokenRequest(uses=self.nodes)
        token = self.client().post("/v1/tokens", request, TokenCreated).token
        if self.nodes <= REAL_AGENTS:
            await asyncio.gather(*(self._agent(i, token) for i in range(self.nodes)))
        else:
            await self._crowds(token)
        joined = time.time() - begun
        await self.commit("1.0.0")
        await self.push()
        await self.everybody_runs(await self.revision())
        return {"join_s": joined}

    async def _agent(self, number: int, token: str) -> None:
        name = f"node-{number:05d}"
        state = self.states / name
        await self.fleet.start(
            name,
            (
                "agent", "--state", str(state), "--name", name,
                "--ready", str(state / "ready.json"),
                "--root", str(state / "root"), "--stop-apps",
            ),
            state / "ready.json",
            token=token,
        )  # fmt: skip

    async def _crowds(self, token: str) -> None:
        program = str(Path(__file__).with_name("converge_nodes.py"))
        processes = min(os.cpu_count() or 1, 1 + self.nodes // 200)
        share = -(-self.nodes // processes)
        for first in range(0, self.nodes, share):
            count = min(share, self.nodes - first)
            crowd = await asyncio.create_subprocess_exec(
                sys.executable, program, str(self.states), token, str(first), str(count),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 24,
            )  # fmt: skip
            self.crowds.append(crowd)
        while sum(one["joined"] for one in await self.ask()) < self.nodes:
            await asyncio.sleep(0.5)

    async def ask(self) -> list[dict[str, Any]]:
        """What the processes with many nodes say."""
        answers = []
        for crowd in self.crowds:
            assert crowd.stdin is not None
            assert crowd.stdout is not None
            crowd.stdin.write(b"stats\n")
            answers.append(json.loads(await crowd.stdout.readline()))
        return answers

    async def stop(self) -> None:
        """The nodes; the hub and real agents are stopped with ``laptop``."""
        for crowd in self.crowds:
            assert crowd.stdin is not None
            crowd.stdin.close()
            await crowd.wait()

    async def commit(self, version: str) -> None:
        """Publish this version of the app, and commit it without pushing."""
        directory = self.fleet.directory
        tree, built, work = directory / f"till-{version}", directory / "built", directory / "repo"
        program = tree / "bin" / "till"
        program.parent.mkdir(parents=True)
        program.write_text(PROGRAM.format(version))
        program.chmod(0o755)
        edgewise = (sys.executable, "-m", "edgewise", "--context", str(self.data), "artifact")
        await self.fleet.run(
            *edgewise, "build", str(tree), "--name", "till", "--version", version,
            "--platform", "linux/amd64", "--platform", "linux/arm64", "--to", str(built),
        )  # fmt: skip
        await self.fleet.run(*edgewise, "publish", "till", version, "--from", str(built))
        if not work.exists():
            await self.fleet.run("git", "init", "-q", "-b", "main", str(work))
        for path, text in repo(self.nodes, version).items():
            file = work / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        git = ("git", "-C", str(work), "-c", "user.name=Bench", "-c", "user.email=b@example.com")
        await self.fleet.run(*git, "add", "-A")
        await self.fleet.run(*git, "commit", "-q", "-m", version)

    async def push(self) -> float:
        """Push what is committed; returns when git came back."""
        context = Context.find(str(self.data))
        await self.fleet.run(
            "git", "-C", str(self.fleet.directory / "repo"), "push", "-q", context.git_url,
            "main", env=context.git_environment(),
        )  # fmt: skip
        return time.time()

    async def revision(self) -> str:
        work = str(self.fleet.directory / "repo")
        return await self.fleet.run("git", "-C", work, "rev-parse", "HEAD")

    async def everybody_runs(self, revision: str) -> None:
        """Wait for it: before the clock of the first round starts."""
        while True:
            trace = await asyncio.to_thread(self.client().get, f"/v1/commits/{revision}", Trace)
            if sum(node.state == "Running" for node in trace.nodes) == self.nodes:
                return
            await asyncio.sleep(1)

    async def round(self, number: int) -> dict[str, float]:
        """One commit: when the first app starts and when the rollout has succeeded."""
        await self.commit(f"1.0.{number}")
        revision = await self.revision()
        # What the commit left on the disk, and last observations. Real agents' workers shall
        # have gone since the round before: a node that has nothing to do has none.
        await asyncio.sleep(3 if self.crowds else LINGER_S + 3)
        await self.ask()
        cpu, crowd_cpu = self._cpu(), sum(one["cpu"] for one in await self.ask())
        profiler = await self._profiler(number)
        began = time.time()
        push = asyncio.create_task(self.push())
        ended = await self._ended(revision)
        starts = self._starts(began) + [t for one in await self.ask() for t in one["starts"]]
        pushed = await push - began
        assert len(starts) == self.nodes, f"{len(starts)} apps of {self.nodes} were started"
        if profiler is not None:
            await profiler.wait()
        crowd_now = sum(one["cpu"] for one in await self.ask())
        figures = {
            FIRST: min(starts) - began,
            "half_started_s": statistics.median(starts) - began,
            "last_start_s": max(starts) - began,
            LAST: ended - began,
            "push_s": pushed,
            "hub_cpu_s": self._cpu() - cpu,
            "hub_rss_mb": resident_mb(self._hub_pid),
        }
        if self.crowds:
            figures["nodes_cpu_s"] = crowd_now - crowd_cpu
        print(json.dumps({k: round(v, 3) for k, v in figures.items()}), file=sys.stderr)
        return figures

    async def _profiler(self, number: int) -> asyncio.subprocess.Process | None:
        if not self.profile:
            return None
        file = f"{self.profile}.{number}"
        spy = ("py-spy", "record", "-f", "raw", "-r", "200", "-d", "8")
        return await asyncio.create_subprocess_exec(*spy, "-o", file, "-p", str(self._hub_pid))

    async def _ended(self, revision: str) -> float:
        """By the hub's own clock, which is ours."""
        client = self.client()
        while True:
            page = await asyncio.to_thread(client.get, "/v1/rollouts", Page[RolloutSummary])
            for one in page.items:
                if one.revision.endswith(revision) and one.ended is not None:
                    assert one.state == "Succeeded", one.reason
                    assert one.succeeded == self.nodes, one
                    return one.ended.timestamp()
            await asyncio.sleep(0.1)

    def _starts(self, since: float) -> list[float]:
        found = self.states.glob("*/apps/till/data/started")
        times = [float(path.read_text() or 0) for path in found]
        return [when for when in times if when >= since]

    def _cpu(self) -> float:
        """Seconds of the hub and of the git commands that it ran."""
        fields = Path(f"/proc/{self._hub_pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


async def measure(nodes: int, rounds: int, profile: str, states: Path) -> dict[str, float]:
    directory = Path(tempfile.mkdtemp(prefix="edgewise-converge-"))
    states = Path(tempfile.mkdtemp(prefix="edgewise-nodes-", dir=states))
    try:
        async with laptop(directory, "bench") as fleet:
            bench = Bench(fleet, nodes, states, profile=profile)
            try:
                started = await bench.start()
                print(f"{nodes} nodes joined: {started}", file=sys.stderr)
                done = [await bench.round(number + 1) for number in range(rounds)]
            finally:
                await bench.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(states, ignore_errors=True)
    figures = {key: statistics.median(one[key] for one in done) for key in done[0]}
    figures["worst_converged_s"] = max(one[LAST] for one in done)
    return figures | started


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--sizes", type=int, nargs="+", default=[12, 100, 1000])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--states", type=Path, help="where nodes keep their state; /dev/shm")
    options.add_argument("--profile", default="", help="py-spy writes the hub's stacks here")
    options.add_argument("--dry", action="store_true", help="keep the results as they are")
    given = options.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # A thousand nodes have a thousand disks; here they would queue for the syncs of one.
    memory = Path("/dev/shm")
    states = given.states or (memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir()))
    figures: dict[str, float] = {}
    for nodes in given.sizes:
        print(f"{nodes} nodes, state in {states}", file=sys.stderr)
        found = asyncio.run(measure(nodes, given.rounds, given.profile, states))
        figures |= {f"nodes_{nodes}.{key}": value for key, value in found.items()}
    if given.dry:
        print(json.dumps(figures, indent=1))
    else:
        write("converge", figures, "make bench-converge")


if __name__ == "__main__":
    main()
