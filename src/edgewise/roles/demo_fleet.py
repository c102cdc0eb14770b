"""What the demo deploys: a small fleet repo and a small program, as text."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from random import Random  # noqa: TID251 - seeded: the same bytes on every machine
from typing import Final, Literal

REGIONS = ("east", "west")
FUNCTIONS: Final = 1500
"""In the demo's library: about 3 MB."""


@dataclass(frozen=True, slots=True)
class DemoNode:
    """One node of the demo: where it is, when it is updated, and its port."""

    name: str
    region: str
    ring: Literal["canary", "early", "stable"]
    port: int


@dataclass(frozen=True, slots=True)
class DemoStock:
    """The app that others call: on one node, behind its ingress."""

    node: str
    region: str
    port: int
    """Of the ingress."""
    behind: int
    """Of the app itself, on loopback."""

    @property
    def spiffe_id(self) -> str:
        """Who it proves to be."""
        return f"spiffe://{self.region}.demo/app/shops/stock"


def demo_nodes(count: int, relays: int, first_port: int) -> tuple[DemoNode, ...]:
    """``count`` nodes spread over the regions; two canaries, a sixth of them early."""
    nodes = []
    for number in range(count):
        ring: Literal["canary", "early", "stable"] = "stable"
        if number < 2:
            ring = "canary"
        elif number < 2 + max(1, count // 6):
            ring = "early"
        region = region_name(number % max(1, relays))
        nodes.append(DemoNode(f"node-{number + 1:02d}", region, ring, first_port + number))
    return tuple(nodes)


def region_name(number: int) -> str:
    """east, west, then region-3 and so on."""
    return REGIONS[number] if number < len(REGIONS) else f"region-{number + 1}"


def fleet_repo(
    nodes: tuple[DemoNode, ...], version: str, greeting: str, stock: DemoStock | None = None
) -> dict[str, str]:
    """The fleet repo: path to text. With ``stock``, hello has an identity and calls it."""
    keeper = stock.node if stock is not None else ""
    rows = "\n".join(
        f"    - {{name: {n.name}, labels: "
        f'{{region: {n.region}, ring: {n.ring}, port: "{n.port}"'
        f"{', role: warehouse' if n.name == keeper else ''}}}}}"
        for n in nodes
    )
    files = {
        "edgewise.yaml": _WORKSPACE,
        "nodes/shops.yaml": _NODES.format(rows=rows),
        "fleets/shops.yaml": _FLEET.format(stock="", egress=""),
        "apps/hello.yaml": _APP.format(version=version, stock="", identity=""),
        "configs/greeting.yaml": _CONFIG.format(greeting=greeting),
        "policies/careful.yaml": _POLICY,
    }
    if stock is None:
        return files
    places = {"port": stock.port, "behind": stock.behind, "spiffe_id": stock.spiffe_id}
    return files | {
        "fleets/shops.yaml": _FLEET.format(stock=_STOCK_REF, egress=_EGRESS_REF),
        "apps/hello.yaml": _APP.format(
            version=version,
            stock=f'    STOCK: "http://127.0.0.1:{stock.port}/"\n',
            identity="  identity: {}\n",
        ),
        "apps/stock.yaml": _STOCK.format(**places),
        "policies/egress.yaml": _EGRESS.format(**places),
    }


def program(version: str, *, healthy: bool, library: bool = False) -> dict[str, bytes]:
    """The app's tree: a real HTTP server, the check that asks it, a catalogue, and with
    ``library`` what makes a real app large. Path to content.

    The bad one starts, answers its health check with 500, and so never becomes ready.
    """
    texts = {
        "bin/hello": _PROGRAM.format(version=version, status=200 if healthy else 500),
        "bin/check": _CHECK,
        "share/catalogue.txt": "".join(f"{i:06d} {version} item\n" for i in range(20_000)),
    }
    files = {path: text.encode() for path, text in texts.items()}
    if library:
        files["lib/engine.so"] = machine_code(int(version.split(".")[1]))
    return files


def machine_code(build: int) -> bytes:
    """A library as a compiler would write it, the same on every machine.

    Its functions call each other by address. Each build grows a few of them, which moves all
    that lie behind, so that addresses change everywhere: what makes updates of programs large.
    """
    chance = Random(7)
    words = [chance.randbytes(4) for _ in range(3000)]
    sizes = [chance.randrange(200, 800) for _ in range(FUNCTIONS)]
    seeds = [chance.getrandbits(32) for _ in range(FUNCTIONS)]
    for number in range(FUNCTIONS):
        rebuilt = sum(number % 211 == 17 * one for one in range(1, build + 1))
        sizes[number] += 12 * rebuilt
        seeds[number] += rebuilt
    starts = [64]
    for size in sizes:
        starts.append(starts[-1] + 4 * size)
    code = [b"\x7fELF\x02\x01\x01".ljust(64, b"\0")]
    for size, seed in zip(sizes, seeds, strict=True):
        body = Random(seed)
        lines = body.choices(words, k=size)
        for at in range(0, size, 16):
            lines[at] = struct.pack("<I", starts[body.randrange(FUNCTIONS)])
        code += lines
    return b"".join(code)


def stock_program() -> dict[str, bytes]:
    """The tree of the app that others call. Path to content."""
    return {"bin/stock": _STOCK_PROGRAM.encode()}


_WORKSPACE = """\
apiVersion: edgewise.dev/v1
kind: Workspace
metadata:
  name: demo
spec:
  paths: [nodes, fleets, apps, configs, policies]
"""

_NODES = """\
apiVersion: edgewise.dev/v1
kind: NodeSet
metadata:
  name: shops
spec:
  nodes:
{rows}
"""

_FLEET = """\
apiVersion: edgewise.dev/v1
kind: Fleet
metadata:
  name: shops
spec:
  selector:
    matchExpressions:
    - {{key: ring, operator: In, values: [canary, early, stable]}}
  apps:
  - {{ref: {{name: hello}}}}
{stock}\
  configs:
  - {{ref: {{name: greeting}}}}
  rolloutPolicyRef: {{name: careful}}
{egress}"""
_STOCK_REF = "  - {ref: {name: stock}, selector: {matchLabels: {role: warehouse}}}\n"
_EGRESS_REF = "  egressPolicyRef: {name: out}\n"

_APP = """\
apiVersion: edgewise.dev/v1
kind: App
metadata:
  name: hello
spec:
  type: process
  artifact: {{ref: hello, version: {version}}}
  command: [bin/hello]
{identity}\
  env:
    PORT: "{{{{ node.labels.port }}}}"
{stock}\
  probes:
    startup:
      exec: {{command: [bin/check]}}
      periodSeconds: 1
      timeoutSeconds: 3
      failureThreshold: 5
    liveness:
      exec: {{command: [bin/check]}}
      periodSeconds: 5
      timeoutSeconds: 3
      failureThreshold: 3
  healthPolicy: {{minReady: 1s}}
"""

_STOCK = """\
apiVersion: edgewise.dev/v1
kind: App
metadata:
  name: stock
spec:
  type: process
  artifact: {{ref: stock, version: 1.0.0}}
  command: [bin/stock]
  env:
    PORT: "{behind}"
  identity: {{}}
  ingress:
  - {{port: {port}, to: {behind}, address: 127.0.0.1, allow: [/app/shops/hello]}}
  healthPolicy: {{minReady: 1s}}
"""

_EGRESS = """\
apiVersion: edgewise.dev/v1
kind: EgressPolicy
metadata:
  name: out
spec:
  apps: [{{name: hello}}]
  allow:
  - host: 127.0.0.1
    ports: [{port}]
    spiffeIDs: ["{spiffe_id}"]
    methods: [GET]
"""

_CONFIG = """\
apiVersion: edgewise.dev/v1
kind: Config
metadata:
  name: greeting
spec:
  files:
  - path: /etc/shop/greeting.txt
    mode: "0644"
    content: |
      {greeting} from {{{{ node.labels.region }}}}
"""

_POLICY = """\
apiVersion: edgewise.dev/v1
kind: RolloutPolicy
metadata:
  name: careful
spec:
  stages:
  - name: canary
    selector: {matchLabels: {ring: canary}}
    minTargets: 1
    successThreshold: 100%
    bake: 1s
  - name: early
    selector: {matchLabels: {ring: early}}
    successThreshold: 100%
    bake: 1s
  - name: rest
    maxConcurrent: 50%
    successThreshold: 90%
  failureThreshold: 10%
  nodeTimeout: 2m
  offline:
    treatAs: Deferred
    after: 8s
"""

_PROGRAM = """\
#!/usr/bin/env python3
\"\"\"A shop's till, as far as the demo needs one: an HTTP server that greets.\"\"\"
import http.client
import http.server
import os


def ask_stock():
    \"\"\"Plain HTTP to the node's gateway, which makes it mTLS with our identity.\"\"\"
    gateway = os.environ.get("HTTP_PROXY", "").removeprefix("http://")
    if not gateway:
        return 503, b"this node has no gateway\\n"
    line = http.client.HTTPConnection(gateway, timeout=10)
    line.request("GET", os.environ["STOCK"])
    answer = line.getresponse()
    return answer.status, answer.read()


class Till(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status, body = {status}, b"hello {version}\\n"
        if self.path == "/stock":
            status, body = ask_stock()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


print("hello {version} serves on", os.environ["PORT"], flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Till).serve_forever()
"""

_STOCK_PROGRAM = """\
#!/usr/bin/env python3
\"\"\"The warehouse: plain HTTP on loopback, because its node's ingress does the TLS.\"\"\"
import http.server
import os


class Stock(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"42 in stock\\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Stock).serve_forever()
"""

_CHECK = """\
#!/usr/bin/env python3
import http.client
import os
import sys

line = http.client.HTTPConnection("127.0.0.1", int(os.environ["PORT"]), timeout=2)
line.request("GET", "/")
sys.exit(line.getresponse().status != 200)
"""
