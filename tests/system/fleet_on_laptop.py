"""A hub, a relay behind a line that can be cut, and two agents: real processes, real TLS."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, TypeVar

from edgewise.cli.client import Client, Context
from edgewise.model.errors import EdgewiseError
from edgewise.protocol.api import (
    HubStatus,
    NodeDetail,
    NodeSummary,
    RolloutCommand,
    RolloutSummary,
    TokenCreated,
    TokenRequest,
    Trace,
)
from edgewise.roles.demo_fleet import DemoNode, fleet_repo, program
from edgewise.roles.laptop import Laptop, Link, RoleProcess, laptop

T = TypeVar("T")
REGION = "east"

_POLICY = """\
apiVersion: edgewise.dev/v1
kind: RolloutPolicy
metadata:
  name: careful
spec:
  stages:
  - name: canary
    selector: {matchLabels: {ring: canary}}
    bake: 1s
  - name: rest
  nodeTimeout: 2m
"""


class Fleet:
    """What the tests do to a fleet, and what they ask it."""

    def __init__(self, processes: Laptop, node_life: str = "45d") -> None:
        self.node_life = node_life
        self.laptop = processes
        self.data = processes.directory / "hub"
        self.nodes: tuple[DemoNode, ...] = ()
        self.link: Link | None = None
        self._repo = processes.directory / "shops"
        self._hub_port = free_port()

    # Starting

    async def start_hub(self, *more: str) -> RoleProcess:
        """On the same port every time, as a hub behind a name would be."""
        return await self.laptop.start(
            "hub",
            (
                "hub", "--data", str(self.data), "--listen", f"127.0.0.1:{self._hub_port}",
                "--org", "demo", "--hold", "20s", "--node-life", self.node_life, *more,
            ),
            self.data / "ready.json",
        )  # fmt: skip

    async def start_relay(self, token: str = "") -> RoleProcess:
        """Joins first when it gets a token."""
        if self.link is None:
            self.link = await self.laptop.link("127.0.0.1", self._hub_port)
        state = self.laptop.directory / "relay"
        join = ("--name", REGION) if token else ()
        return await self.laptop.start(
            "relay",
            (
                "relay", "--state", str(state), "--listen", "127.0.0.1:0", "--hold", "20",
                "--hub", f"https://127.0.0.1:{self.link.port}", "--node-life", self.node_life,
                *join,
            ),
            state / "ready.json",
            token=token,
        )  # fmt: skip

    async def start_agent(self, name: str, token: str = "") -> RoleProcess:
        """Joins first when it gets a token."""
        state = self.state(name)
        join = ("--name", name) if token else ()
        return await self.laptop.start(
            name,
            ("agent", "--state", str(state), "--root", str(state / "root"), *join),
            state / "ready.json",
            token=token,
        )

    async def start(self, *hub: str) -> None:
        """Everything, and both nodes online; with further arguments for the hub."""
        await self.start_hub(*hub)
        await self.start_relay(await self.token(TokenRequest("relay", {}, REGION)))
        await self.add_node("node-1", "canary")
        await self.add_node("node-2", "stable")

    async def add_node(self, name: str, ring: Literal["canary", "stable"]) -> None:
        """One more node behind the relay, online."""
        self.nodes += (DemoNode(name, REGION, ring, free_port()),)
        labels = {"region": REGION, "ring": ring}
        token = await self.token(TokenRequest("node", labels, REGION, via=REGION))
        await self.start_agent(name, token)
        await self.until(lambda: self.online() == len(self.nodes), f"{name} online")

    async def kill(self, name: str) -> None:
        """SIGKILL: no chance to say goodbye."""
        await self.laptop.processes[name].stop(signal.SIGKILL)

    # Doing

    async def token(self, request: TokenRequest) -> str:
        made = await asyncio.to_thread(
            lambda: self.client().post("/v1/tokens", request, TokenCreated)
        )
        return made.token

    async def publish(
        self, version: str, *, healthy: bool = True, beside: Mapping[str, bytes] | None = None
    ) -> None:
        """Build, sign and publish ``hello``, with further files."""
        tree = self.laptop.directory / f"hello-{version}"
        for path, content in {**program(version, healthy=healthy), **(beside or {})}.items():
            file = tree / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(0o755 if path.startswith("bin/") else 0o644)
        built = str(self.laptop.directory / "built")
        await self.edgewise(
            "artifact", "build", str(tree), "--name", "hello", "--version", version,
            "--platform", "linux/amd64", "--platform", "linux/arm64", "--to", built,
        )  # fmt: skip
        await self.edgewise("artifact", "publish", "hello", version, "--from", built)

    async def commit(self, version: str) -> str:
        """Commit and push the fleet repo with this version; returns the commit id."""
        return await self.change(self.files(version), f"hello {version}")

    def files(self, version: str) -> dict[str, str]:
        """The fleet repo with this version."""
        files = fleet_repo(self.nodes, version, f"hello {version}")
        return files | {"policies/careful.yaml": _POLICY}

    async def change(self, files: Mapping[str, str | None], subject: str) -> str:
        """Write (or, with None, remove) these files of the fleet repo, commit and push."""
        if not self._repo.exists():
            await self.laptop.run("git", "init", "-q", "-b", "main", str(self._repo))
        for path, text in files.items():
            file = self._repo / path
            if text is None:
                file.unlink()
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        git = ("git", "-C", str(self._repo), "-c", "user.name=T", "-c", "user.email=t@example")
        await self.laptop.run(*git, "add", "-A")
        await self.laptop.run(*git, "commit", "-q", "-m", subject)
        await self.edgewise("push", "-C", str(self._repo))
        return await self.laptop.run(*git, "rev-parse", "HEAD")

    async def roll_out(self, version: str, *, healthy: bool = True) -> RolloutSummary:
        """Publish, commit, and wait for the rollout's end."""
        await self.publish(version, healthy=healthy)
        return await self.ended(await self.commit(version))

    async def edgewise(self, *arguments: str) -> str:
        return await self.laptop.run(
            sys.executable, "-m", "edgewise", "--context", str(self.data), *arguments
        )

    # Asking

    def client(self) -> Client:
        return Client(Context.find(str(self.data)))

    def online(self) -> int:
        return sum(n.online for n in self.client().pages("/v1/nodes", NodeSummary).items)

    def status(self) -> HubStatus:
        return self.client().get("/v1/status", HubStatus)

    def node(self, name: str) -> NodeDetail:
        return self.client().get(f"/v1/nodes/{name}", NodeDetail)

    def act(self, path: str, reason: str = "") -> None:
        """POST a person's command, such as ``/v1/nodes/node-1/hold``."""
        self.client().command(path, RolloutCommand(reason))

    def rollout(self, commit: str) -> RolloutSummary | None:
        """The rollout of a commit, once it is there."""
        return next(iter(self.trace(commit).rollouts), None)

    def trace(self, commit: str) -> Trace:
        return self.client().get(f"/v1/commits/{commit}", Trace)

    async def ended(self, commit: str, within: float = 60) -> RolloutSummary:
        def look() -> RolloutSummary | None:
            trace = self.trace(commit)
            assert not trace.problems, trace.problems
            return next((one for one in trace.rollouts if one.ended is not None), None)

        return await self.until(look, f"the end of the rollout of {commit[:8]}", within)

    def answers(self) -> list[str]:
        """What the app of each node says."""
        return [hello(node.port) for node in self.nodes]

    async def until_all_say(self, words: str, within: float = 60) -> None:
        await self.until(lambda: set(self.answers()) == {words}, f"all say {words}", within)

    def state(self, name: str) -> Path:
        return self.laptop.directory / name

    def app_pid(self, name: str) -> int:
        """As the agent wrote it down."""
        return int(json.loads((self.state(name) / "apps/hello/run.json").read_bytes())["pid"])

    async def until(self, look: Callable[[], T], what: str, within: float = 60) -> T:
        """Ask (in a thread) until the answer is true; what cannot be reached is asked again."""
        deadline = asyncio.get_running_loop().time() + within
        last: object = None
        while True:
            try:
                last = answer = await asyncio.to_thread(look)
                if answer:
                    return answer
            except (EdgewiseError, OSError) as error:
                last = error
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"not within {within:.0f} s: {what}; last: {last}")
            await asyncio.sleep(0.1)

    def log(self, name: str) -> str:
        return (self.laptop.directory / "logs" / f"{name}.log").read_text()


@asynccontextmanager
async def fleet_on_laptop(
    directory: Path, *hub: str, node_life: str = "45d"
) -> AsyncIterator[Fleet]:
    """A running fleet, its hub with further arguments; at the end its processes, apps
    included, are gone."""
    async with laptop(directory) as processes:
        fleet = Fleet(processes, node_life)
        try:
            await fleet.start(*hub)
            yield fleet
        except BaseException:
            for log in sorted((directory / "logs").glob("*.log")):
                print(f"--- {log.name}", *log.read_text().splitlines()[-25:], sep="\n")
            raise
        finally:
            pids = [app_of(fleet, node.name) for node in fleet.nodes]
            await processes.stop()
            for pid in pids:
                if pid and alive(pid):
                    os.kill(pid, signal.SIGKILL)


def app_of(fleet: Fleet, name: str) -> int:
    try:
        return fleet.app_pid(name)
    except (OSError, ValueError, KeyError):
        return 0


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def hello(port: int) -> str:
    """What the app on this port answers; empty when it does not."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        line.request("GET", "/")
        return line.getresponse().read(100).decode().strip()
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        line.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
