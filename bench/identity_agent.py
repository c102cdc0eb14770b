"""What identities cost a whole agent: two nodes on one hub, the same app, once with everything.

The app of ``plain`` has no identity. The app of ``trust`` has one, watches its X.509-SVID with the
``spiffe`` package, is called through an ingress, and calls itself through the node's egress
gateway. Both nodes take the same two releases. Resident memory is that of every process of the
agent's own, read when no worker lives: it does for ten seconds after a task. MB are 10**6.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from urllib.request import urlopen

from agent import children, memory
from edgewise.cli.client import Client, Context
from edgewise.cli.story import until
from edgewise.protocol.api import RolloutSummary, TokenCreated, TokenRequest, Trace
from edgewise.roles.laptop import Laptop, laptop
from egress import free_port

CALLS, FETCHES, AT_ONCE = 2000, 2000, 16
QUIET = timedelta(seconds=60)
"""A worker ends after ten seconds without a task."""
WITHIN = timedelta(seconds=60)
NODES = ("plain", "trust")
OURS = (
    "h2", "hpack", "hyperframe", "edgewise.host.callers", "edgewise.host.egress",
    "edgewise.host.svids", "edgewise.identity.egress", "edgewise.identity.es256",
    "edgewise.identity.ingress", "edgewise.identity.jwt_check", "edgewise.identity.protobuf",
    "edgewise.identity.registrations", "edgewise.identity.sds", "edgewise.identity.supply",
    "edgewise.identity.workload_messages", "edgewise.net.egress", "edgewise.net.ingress",
    "edgewise.net.workload", "edgewise.roles.agent_",
)  # fmt: skip
"""Modules that only identities of workloads need; every agent loads them."""
LOADED = """
import sys
names = [n for n in sys.argv[1].split(",") if n]
for name in names:
    __import__(name)
print("\\n".join(sys.modules), file=sys.stderr)
print(next(l.split()[1] for l in open("/proc/self/smaps_rollup") if l.startswith("Rss")))
"""

TILL = """\
#!{python}
import http.client, http.server, os, threading, urllib.parse
from concurrent.futures import ThreadPoolExecutor

socket = os.environ.get("SPIFFE_ENDPOINT_SOCKET")
if socket:
    from spiffe import WorkloadApiClient, X509Source
    source = X509Source(timeout_in_seconds=60)
    api = WorkloadApiClient()
local = threading.local()

def call(_):
    if not hasattr(local, "line"):
        local.line = http.client.HTTPConnection(os.environ["HTTP_PROXY"][7:], timeout=30)
    local.line.request("GET", os.environ["STOCK"])
    answer = local.line.getresponse()
    answer.read()
    return answer.status

def fetch(_):
    return 200 if api.fetch_jwt_svid(audience={{"stock"}}).token else 500

class Till(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        parts = urllib.parse.urlsplit(self.path)
        body = b"42"
        if parts.query and socket:
            work = {{"/call": call, "/fetch": fetch}}[parts.path]
            with ThreadPoolExecutor({at_once}) as pool:
                body = repr(set(pool.map(work, range(int(parts.query))))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Till).serve_forever()
"""

WORKSPACE = """\
apiVersion: edgewise.dev/v1
kind: Workspace
metadata: {name: bench}
---
apiVersion: edgewise.dev/v1
kind: RolloutPolicy
metadata: {name: quick}
spec: {stages: [{name: all, bake: 1s}]}
"""

FLEET = """\
apiVersion: edgewise.dev/v1
kind: Fleet
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{kind: {name}}}}}
  apps: [{{ref: {{name: {name}}}}}]
  rolloutPolicyRef: {{name: quick}}
{egress}---
apiVersion: edgewise.dev/v1
kind: App
metadata: {{name: {name}}}
spec:
  type: process
  artifact: {{ref: till, version: 1.0.0}}
  command: [bin/till]
  env: {{PORT: "{port}", STOCK: "http://127.0.0.1:{door}/", STEP: "{step}"}}
  probes: {{readiness: {{tcpSocket: {{port: {port}}}, periodSeconds: 1}}}}
  healthPolicy: {{minReady: 1s}}
{identity}"""

IDENTITY = """\
  identity: {{}}
  ingress: [{{port: {door}, to: {port}, address: 127.0.0.1, allow: [/app/trust/trust]}}]
---
apiVersion: edgewise.dev/v1
kind: EgressPolicy
metadata: {{name: out}}
spec:
  apps: [{{name: trust}}]
  allow:
  - {{host: 127.0.0.1, ports: [{door}], spiffeIDs: ["spiffe://default.demo/app/trust/trust"]}}
"""


class Pair:
    """Both nodes, and the hub."""

    def __init__(self, fleet: Laptop) -> None:
        self.fleet = fleet
        self.data = fleet.directory / "hub"
        self.repo = fleet.directory / "repo"
        self.ports = {name: free_port() for name in NODES}
        self.door = free_port()

    async def start(self) -> None:
        """Hub, agents, artifact."""
        hub = ("hub", "--data", str(self.data), "--listen", "127.0.0.1:0", "--org", "demo")
        await self.fleet.start("hub", hub, self.data / "ready.json")
        client = Client(Context.find(str(self.data)))
        for name in NODES:
            request = TokenRequest("node", {"kind": name})
            token = client.post("/v1/tokens", request, TokenCreated).token
            state = self.fleet.directory / name
            node = ("agent", "--state", str(state), "--name", name, "--stop-apps")
            await self.fleet.start(
                name, (*node, "--root", str(state / "root")), state / "ready.json", token=token
            )
        tree = self.fleet.directory / "till" / "bin" / "till"
        tree.parent.mkdir(parents=True)
        tree.write_text(TILL.format(python=sys.executable, at_once=AT_ONCE))
        tree.chmod(0o755)
        built = str(self.fleet.directory / "built")
        build = ("build", str(tree.parents[1]), "--name", "till", "--version", "1.0.0")
        await self.edgewise("artifact", *build, "--to", built)
        await self.edgewise("artifact", "publish", "till", "1.0.0", "--from", built)
        await self.fleet.run("git", "init", "-q", "-b", "main", str(self.repo))

    async def edgewise(self, *arguments: str) -> None:
        """One command."""
        command = (sys.executable, "-m", "edgewise", "--context", str(self.data), *arguments)
        await self.fleet.run(*command)

    async def release(self, step: int) -> None:
        """A commit that changes both apps; waits for the end of both rollouts."""
        (self.repo / "edgewise.yaml").write_text(WORKSPACE)
        for name in NODES:
            trust = name == "trust"
            places = {"door": self.door, "port": self.ports[name]}
            egress = "  egressPolicyRef: {name: out}\n" if trust else ""
            identity = IDENTITY.format(**places) if trust else ""
            text = FLEET.format(name=name, egress=egress, identity=identity, step=step, **places)
            (self.repo / "fleets").mkdir(exist_ok=True)
            (self.repo / "fleets" / f"{name}.yaml").write_text(text)
        git = ("git", "-C", str(self.repo), "-c", "user.name=Bench", "-c", "user.email=b@e")
        await self.fleet.run(*git, "add", "-A")
        await self.fleet.run(*git, "commit", "-qm", f"Step {step}")
        commit = await self.fleet.run(*git, "rev-parse", "HEAD")
        await self.edgewise("push", "--wait", "-C", str(self.repo))
        client = Client(Context.find(str(self.data)))

        def ended() -> list[RolloutSummary] | None:
            found = client.get(f"/v1/commits/{commit}", Trace).rollouts
            return list(found) if len(found) == 2 and all(r.ended for r in found) else None

        for rollout in await until(ended, what=f"the rollouts of step {step}", within=WITHIN):
            if rollout.state != "Succeeded":
                raise SystemExit(f"{rollout.fleet}: {rollout.state}, {rollout.reason}")

    async def ask(self, work: str) -> None:
        """Let the app of ``trust`` do so many of something; all must be well."""
        url = f"http://127.0.0.1:{self.ports['trust']}/{work}"
        said = await asyncio.to_thread(lambda: urlopen(url, timeout=120).read())
        if said != b"{200}":
            raise SystemExit(f"{work}: {said!r}")

    async def resident_mb(self) -> dict[str, float]:
        """Of all processes of each agent's own, at a moment when neither has a worker."""
        await asyncio.sleep(1)
        pids = {name: self.fleet.processes[name].pid for name in NODES}

        def quiet() -> dict[str, float] | None:
            if any(is_worker(child) for pid in pids.values() for child in children(pid)):
                return None
            return {name: memory(pid)["Rss"] for name, pid in pids.items()}

        return await until(quiet, what="both agents without a worker", within=QUIET)


def is_worker(pid: int) -> bool:
    """Whether it is an agent's worker; False for a process that has just ended."""
    try:
        return b"edgewise.roles.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


async def measure(directory: Path) -> dict[str, float]:
    """Idle after two releases, then after calls and fetches."""
    async with laptop(directory) as fleet:
        pair = Pair(fleet)
        await pair.start()
        await pair.release(1)
        await pair.release(2)
        await pair.ask("call?1")
        idle = await pair.resident_mb()
        await pair.ask(f"call?{CALLS}")
        await pair.ask(f"fetch?{FETCHES}")
        busy = await pair.resident_mb()
        return {
            "agent_plain_rss_mb": busy["plain"],
            "added_rss_used_mb": busy["trust"] - busy["plain"],
            "added_rss_idle_mb": idle["trust"] - idle["plain"],
        }


def loaded(names: list[str]) -> tuple[list[str], float]:
    """A fresh interpreter after these imports: its modules, and its resident MB."""
    command = [sys.executable, "-c", LOADED, ",".join(names)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stderr.splitlines(), int(done.stdout) * 1024 / 1e6


def imports_mb() -> float:
    """What those modules add to an agent that loads nothing else but what it needs."""
    modules, _ = loaded(["edgewise.roles.agent"])
    most = [m for m in modules if m.startswith(("edgewise", "asyncio", "ssl", "msgspec"))]
    rest = [m for m in most if m != "edgewise.roles.agent" and not m.startswith(OURS)]
    without, base = loaded(rest)
    if stray := [m for m in without if m.startswith(OURS)]:
        raise SystemExit(f"not left out: {stray}")
    return loaded([*rest, *(m for m in modules if m.startswith(OURS))])[1] - base


def figures() -> dict[str, float]:
    """Measure. ``added_rss_mb``: the modules, and everything that using them adds."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1] / "src")
    with tempfile.TemporaryDirectory() as name:
        found = asyncio.run(measure(Path(name)))
    imports = imports_mb()
    return found | {
        "added_rss_imports_mb": imports,
        "added_rss_mb": found["added_rss_used_mb"] + imports,
    }


if __name__ == "__main__":
    print(figures())
