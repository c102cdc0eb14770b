"""``edgewise demo``: the whole story on this machine, with real processes over mutual TLS."""

from __future__ import annotations

import asyncio
import http.client
import shutil
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from edgewise.cli.client import Client, Context
from edgewise.cli.session import Session
from edgewise.cli.story import Story, until
from edgewise.model.errors import BadUsage, EdgewiseError, NeedsPerson
from edgewise.protocol.api import (
    NodeSummary,
    RolloutDetail,
    RolloutSummary,
    TokenCreated,
    TokenRequest,
    Trace,
)
from edgewise.protocol.travel import DeltaStatus
from edgewise.roles.agent_egress import read_state
from edgewise.roles.demo_fleet import (
    DemoNode,
    DemoStock,
    demo_nodes,
    fleet_repo,
    program,
    region_name,
    stock_program,
)
from edgewise.roles.laptop import Laptop, Link, laptop, resident_mb
from edgewise.runtime.clock import SystemClock

Figures = dict[str, float | str]

_WITHIN = timedelta(seconds=60)
_MOST_NODES = 100


def verb(
    ctx: typer.Context,
    nodes: Annotated[int, typer.Option(help="How many agents.")] = 12,
    relays: Annotated[int, typer.Option(help="How many relays, one region each.")] = 2,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running until Ctrl-C.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the steps and figures here.")
    ] = None,
) -> None:
    if not 4 <= nodes <= _MOST_NODES:
        raise BadUsage(f"--nodes {nodes}: the story needs 4 to {_MOST_NODES} nodes")
    if not 2 <= relays <= nodes // 2:
        raise BadUsage(f"--relays {relays}: 2 to {nodes // 2} for {nodes} nodes")
    quiet = Session.of(ctx).as_json
    console = Console(stderr=quiet, highlight=False)
    story = Story(SystemClock(), console)
    try:
        ok = asyncio.run(_tell(story, console, DemoSize(nodes, relays), keep=keep))
    except (KeyboardInterrupt, asyncio.CancelledError):
        # With --keep this is the way to end it.
        ok = bool(story.steps) and all(step.ok for step in story.steps) and keep
    if json_file is not None:
        story.save(json_file, finished=ok)
    if quiet:
        Session.of(ctx).json(story.report(finished=ok))
    raise typer.Exit(0 if ok else 4)


class DemoSize:
    """How large the demo is, and the names of what is in it."""

    def __init__(self, nodes: int, relays: int) -> None:
        first = _free_ports(nodes + 2)
        self.nodes = demo_nodes(nodes, relays, first + 2)
        self.regions = tuple(region_name(number) for number in range(relays))
        keeper = self.nodes[0]
        self.stock = DemoStock(keeper.name, keeper.region, first, first + 1)

    def of_region(self, region: str) -> tuple[DemoNode, ...]:
        """The nodes of one region."""
        return tuple(node for node in self.nodes if node.region == region)


async def _tell(story: Story, console: Console, size: DemoSize, *, keep: bool) -> bool:
    directory = Path(tempfile.mkdtemp(prefix="edgewise-demo-"))
    console.print(f"everything lives in {directory}, and goes with it at the end")
    ok = failed = False
    here = asyncio.current_task()
    assert here is not None
    # Whoever ends the demo, the processes end with it.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, here.cancel)
    try:
        async with AsyncExitStack() as stack:
            demo = Demo(await stack.enter_async_context(laptop(directory)), size)
            try:
                await demo.tell(story)
                ok = True
            except EdgewiseError as error:
                failed = True
                # The step has said what went wrong; what remains is where to look.
                console.print(f"[red]the story ends here[/red]: {error}; logs: {directory}/logs")
            if keep:
                console.print(
                    f"running; try: edgewise --context {demo.data} status   (Ctrl-C ends)"
                )
                await asyncio.Event().wait()
    finally:
        if not failed:  # the logs of a failure stay
            shutil.rmtree(directory, ignore_errors=True)
    if ok:
        report = story.report(finished=True)
        console.print(f"[bold green]every step held[/bold green], {report.seconds:.0f} s in all")
    return ok


class Demo:
    """The fleet on this laptop and what is done to it."""

    def __init__(self, fleet: Laptop, size: DemoSize) -> None:
        self._fleet = fleet
        self._size = size
        self._links: dict[str, Link] = {}
        self._repo = fleet.directory / "shops"
        self._last = ""
        self.data = fleet.directory / "hub"

    async def tell(self, story: Story) -> None:
        """All steps; raises at the first that does not hold."""
        await story.step("a hub starts", self.start_hub)
        await story.step("relays and agents join with one-time tokens", self.join_everybody)
        await story.step("an artifact is built, signed and published", self.publish_good)
        await story.step("a good commit reaches the fleet in stages", self.push_good)
        await story.step("the program answers on every node", self.ask_every_node)
        await story.step("an app calls another through two gateways", self.call_stock)
        await story.step("calls without an identity are refused", self.call_as_nobody)
        await story.step("a bad commit stops at the canary and comes back", self.push_bad)
        await story.step("a region is cut off and the rest moves on", self.cut_region)
        await story.step("the region is back and catches up", self.mend_region)
        await story.step("a commit is traced to every node", self.trace)
        await story.step("what it took", self.measure)

    async def start_hub(self) -> Figures:
        """A hub with its own git repository."""
        await self._fleet.start(
            "hub",
            (
                "hub",
                "--data",
                str(self.data),
                "--listen",
                "127.0.0.1:0",
                "--org",
                "demo",
                "--hold",
                "4s",
            ),
            self.data / "ready.json",
        )
        return {"url": self._client().context.told.url}

    async def join_everybody(self) -> Figures:
        """Relays through a line that can be cut; agents through their region's relay."""
        hub = self._client().context.told.url.removeprefix("https://")
        host, _, port = hub.partition(":")
        for region in self._size.regions:
            link = await self._fleet.link(host, int(port))
            self._links[region] = link
            token = await self._token(TokenRequest("relay", {}, region))
            state = self._fleet.directory / f"relay-{region}"
            await self._fleet.start(
                f"relay-{region}",
                (
                    "relay", "--state", str(state), "--name", region,
                    "--hub", f"https://127.0.0.1:{link.port}",
                    "--listen", "127.0.0.1:0", "--hold", "4",
                ),
                state / "ready.json",
                token=token,
            )  # fmt: skip
        await asyncio.gather(*(self._start_node(node) for node in self._size.nodes))
        await self._until(lambda: self._online() == len(self._size.nodes), "all nodes online")
        return {"relays": len(self._size.regions), "nodes": len(self._size.nodes)}

    async def _start_node(self, node: DemoNode) -> None:
        request = TokenRequest(
            "node", {"region": node.region, "ring": node.ring}, node.region, via=node.region
        )
        token = await self._token(request)
        state = self._fleet.directory / node.name
        await self._fleet.start(
            node.name,
            (
                "agent", "--state", str(state), "--name", node.name,
                "--ready", str(state / "ready.json"),
                "--root", str(state / "root"), "--stop-apps",
            ),
            state / "ready.json",
            token=token,
        )  # fmt: skip

    async def publish_good(self) -> Figures:
        """Version 1.0.0 for this machine's platform, and the app that others call."""
        await self._build("stock", "1.0.0", stock_program())
        return await self._publish("1.0.0", healthy=True)

    async def push_good(self) -> Figures:
        """The first commit: hello 1.0.0 everywhere."""
        return await self._push("1.0.0", "good morning", "Roll out hello 1.0.0", "Succeeded")

    async def ask_every_node(self) -> Figures:
        """A real HTTP request to every app."""
        answers = {await asyncio.to_thread(_hello, node.port) for node in self._size.nodes}
        if answers != {"hello 1.0.0"}:
            raise NeedsPerson(f"the apps answer {sorted(answers)}, not hello 1.0.0")
        return {"answers": len(self._size.nodes), "each says": "hello 1.0.0"}

    async def call_stock(self) -> Figures:
        """hello on a node of another region asks stock: plain HTTP at both ends, mutual TLS
        with the apps' own identities between the gateways."""
        stock = self._size.stock
        caller = next(node for node in self._size.nodes if node.region != stock.region)
        await self._until(
            lambda: _hello(caller.port, "/stock") == "42 in stock", "an answer from stock"
        )
        return {
            "caller": f"{caller.name}, spiffe://{caller.region}.demo/app/shops/hello",
            "called": f"{stock.node}, {stock.spiffe_id}",
            "answer": "42 in stock",
        }

    async def call_as_nobody(self) -> Figures:
        """This process is no app of any node: neither gateway lets it through."""
        stock, caller = self._size.stock, self._size.nodes[1]
        status, reason = await asyncio.to_thread(_call_without_certificate, stock.port)
        if (status, reason) != (401, "no-certificate"):
            raise NeedsPerson(f"stock's ingress answered {status} {reason!r}, not 401")
        state = self._fleet.directory / caller.name
        gateway = read_state(state)
        if gateway is None:
            raise NeedsPerson(f"{caller.name} has no egress gateway", hint=f"look into {state}")
        status, why = await asyncio.to_thread(_call_through, gateway.port, stock.port)
        if status != 403:
            raise NeedsPerson(f"the gateway of {caller.name} answered {status} {why!r}, not 403")
        return {"at the ingress": f"401 {reason}", "at the egress gateway": f"403 {why}"}

    async def push_bad(self) -> Figures:
        """hello 1.1.0 never becomes healthy."""
        await self._publish("1.1.0", healthy=False)
        figures = await self._push("1.1.0", "good noon", "Roll out hello 1.1.0", "RolledBack")
        touched = int(figures["nodes_touched"])
        canaries = sum(node.ring == "canary" for node in self._size.nodes)
        if touched > canaries:
            raise NeedsPerson(f"{touched} nodes ran the bad release; only {canaries} are canaries")
        await self.ask_every_node()
        return figures

    async def cut_region(self) -> Figures:
        """The last region loses its line to the hub; its apps keep answering."""
        away = self._size.regions[-1]
        self._links[away].cut()
        here = [node for node in self._size.nodes if node.region != away]
        gone = self._size.of_region(away)
        # A node counts as offline after the policy's offline.after (8 s in the demo's repo).
        await self._until(lambda: self._online() <= len(here), f"{away} seen as offline")
        figures = await self._publish("1.2.0", healthy=True)
        commit = await self._commit("1.2.0", "good evening", "Roll out hello 1.2.0")
        await self._until(lambda: all(_says(n, "hello 1.2.0") for n in here), "the rest on 1.2.0")
        if not all(_says(node, "hello 1.0.0") for node in gone):
            raise NeedsPerson(f"an app in the cut-off region {away} does not answer any more")
        self._last = commit
        return {**figures, "moved": len(here), "cut off and still serving": len(gone)}

    async def mend_region(self) -> Figures:
        """The line is back: nodes go straight to the newest release."""
        away = self._size.regions[-1]
        self._links[away].mend()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        gone = self._size.of_region(away)
        await self._until(lambda: all(_says(n, "hello 1.2.0") for n in gone), f"{away} on 1.2.0")
        seconds = round(loop.time() - begun, 2)
        await self._until(lambda: self._ended(self._last) is not None, "the rollout's end")
        return {"caught up in s": seconds}

    async def trace(self) -> Figures:
        """Every node has a receipt for the last commit."""

        def all_running() -> Trace | None:
            trace = self._client().get(f"/v1/commits/{self._last}", Trace)
            running = sum(node.state == "Running" for node in trace.nodes)
            return trace if running == len(self._size.nodes) else None

        trace = await until(all_running, what="a receipt from every node", within=_WITHIN)
        moved, full = trace.bytes_fetched, trace.bytes_full
        return {
            "receipts": len(trace.nodes),
            "bytes_fetched_mb": round(moved / 1e6, 2),
            "bytes_full_mb": round(full / 1e6, 2),
            "saved": f"{100 - 100 * moved / max(1, full):.0f} %",
        }

    async def measure(self) -> Figures:
        """Memory of each role."""
        processes = self._fleet.processes
        agents = [resident_mb(processes[node.name].pid) for node in self._size.nodes]
        return {
            "hub_rss_mb": round(resident_mb(processes["hub"].pid), 1),
            "relay_rss_mb": round(
                max(resident_mb(processes[f"relay-{r}"].pid) for r in self._size.regions), 1
            ),
            "agent_rss_mb": round(max(agents), 1),
        }

    # What the steps are made of

    def _client(self) -> Client:
        return Client(Context.find(str(self.data)))

    async def _token(self, request: TokenRequest) -> str:
        made = await asyncio.to_thread(
            lambda: self._client().post("/v1/tokens", request, TokenCreated)
        )
        return made.token

    async def _edgewise(self, *arguments: str) -> str:
        return await self._fleet.run(
            sys.executable, "-m", "edgewise", "--context", str(self.data), *arguments
        )

    async def _publish(self, version: str, *, healthy: bool) -> Figures:
        return await self._build("hello", version, program(version, healthy=healthy, library=True))

    async def _build(self, name: str, version: str, files: dict[str, bytes]) -> Figures:
        tree = self._fleet.directory / f"{name}-{version}"
        for path, content in files.items():
            file = tree / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(0o755 if path.startswith("bin/") else 0o644)
        built = self._fleet.directory / "built"
        await self._edgewise(
            "artifact", "build", str(tree), "--name", name, "--version", version,
            "--platform", "linux/amd64", "--platform", "linux/arm64", "--to", str(built),
        )  # fmt: skip
        await self._edgewise("artifact", "publish", name, version, "--from", str(built))
        size = sum(file.stat().st_size for file in tree.rglob("*") if file.is_file())
        figures: Figures = {"artifact": f"{name} {version}", "tree_mb": round(size / 1e6, 2)}
        made = await asyncio.to_thread(lambda: self._client().get("/v1/deltas", DeltaStatus))
        for one in made.deltas:
            if (one.artifact, one.version, one.state) == (name, version, "Ready"):
                start = f"delta from {one.base_version}" if one.base else "pack"
                figures[f"{start}, mb"] = f"{one.size / 1e6:.3f} of {one.plain / 1e6:.2f}"
        return figures

    async def _commit(self, version: str, greeting: str, message: str) -> str:
        """Commit this version to the fleet repo and push it; returns the commit id."""
        if not self._repo.exists():
            await self._fleet.run("git", "init", "-q", "-b", "main", str(self._repo))
        texts = fleet_repo(self._size.nodes, version, greeting, self._size.stock)
        for path, text in texts.items():
            file = self._repo / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        git = ("git", "-C", str(self._repo), "-c", "user.name=Demo", "-c", "user.email=demo@shop")
        await self._fleet.run(*git, "add", "-A")
        await self._fleet.run(*git, "commit", "-q", "-m", message)
        await self._edgewise("push", "-C", str(self._repo))
        return await self._fleet.run(*git, "rev-parse", "HEAD")

    async def _push(self, version: str, greeting: str, message: str, end: str) -> Figures:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        commit = await self._commit(version, greeting, message)
        rollout = await until(lambda: self._ended(commit), what=f"{message}: {end}", within=_WITHIN)
        detail = await asyncio.to_thread(
            lambda: self._client().get(f"/v1/rollouts/{rollout.id}", RolloutDetail)
        )
        if rollout.state != end:
            raise NeedsPerson(f"the rollout ended {rollout.state}, not {end}: {rollout.reason}")
        untouched = {"Queued", "Deferred", "Held", "Skipped"}
        touched = sum(
            count
            for stage in detail.stages
            for state, count in stage.counts.items()
            if state not in untouched
        )
        return {
            "state": rollout.state,
            "reason": rollout.reason,
            "stages": ", ".join(f"{s.name} {s.total}" for s in detail.stages),
            "nodes_touched": touched,
            "push_to_end_s": round(loop.time() - begun, 2),
        }

    def _ended(self, commit: str) -> RolloutSummary | None:
        trace = self._client().get(f"/v1/commits/{commit}", Trace)
        if trace.problems:
            raise NeedsPerson("; ".join(map(str, trace.problems)))
        return next((one for one in trace.rollouts if one.ended is not None), None)

    def _online(self) -> int:
        page = self._client().pages("/v1/nodes", NodeSummary)
        return sum(node.online for node in page.items)

    async def _until(self, ask: Callable[[], bool], what: str) -> None:
        await until(lambda: ask() or None, what=what, within=_WITHIN)


def _hello(port: int, path: str = "/") -> str:
    """What the app on this port answers; empty when it does not."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        line.request("GET", path)
        return line.getresponse().read(100).decode().strip()
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        line.close()


def _call_without_certificate(port: int) -> tuple[int, str]:
    """(status, reason) of a call to an ingress with TLS and no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # what is shown is who is refused, not who refuses
    return _refusal(http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context), "/")


def _call_through(gateway: int, port: int) -> tuple[int, str]:
    """(status, reason) of a call through a node's gateway by a process that is no app."""
    line = http.client.HTTPConnection("127.0.0.1", gateway, timeout=5)
    return _refusal(line, f"http://127.0.0.1:{port}/")


def _refusal(line: http.client.HTTPConnection, target: str) -> tuple[int, str]:
    try:
        line.request("GET", target)
        answer = line.getresponse()
        body = msgspec.json.decode(answer.read(64 << 10))
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        return 0, str(error)
    finally:
        line.close()
    return answer.status, str(body.get("reason", "") if isinstance(body, dict) else "")


def _says(node: DemoNode, words: str) -> bool:
    return _hello(node.port) == words


def _free_ports(count: int) -> int:
    """The first of ``count`` loopback ports in a row that nobody listens on."""
    for first in range(21_000, 31_000, _MOST_NODES):
        sockets = []
        try:
            for port in range(first, first + count):
                one = socket.socket()
                sockets.append(one)
                one.bind(("127.0.0.1", port))
        except OSError:
            continue
        else:
            return first
        finally:
            for one in sockets:
                one.close()
    raise NeedsPerson(f"there are no {count} free ports in a row on 127.0.0.1")
