"""The egress gateway against nginx: plain HTTP in, mTLS out with keep-alive, in one run.

``make bench-egress``. Both are measured by the CPU seconds of all their processes, each with
one worker, in front of the same nginx that asks for client certificates; ``wrk`` is the client.
Needs Debian's nginx-light and wrk (`make bench-rivals`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgewise.identity.workload_ports import Caller, LocalSvid
from edgewise.model.errors import TryLater
from edgewise.net.egress.bridge import AgentSupply, serve
from edgewise.net.egress.gateway import Gateway
from edgewise.protocol.bundles import DomainBundle, TrustBundles
from edgewise.protocol.egress import EgressRule, EgressRules
from edgewise.runtime.clock import SystemClock
from edgewise.runtime.credentials import pem_of
from edgewise.runtime.log import StreamLog
from result import write

SECONDS = int(os.environ.get("EDGEWISE_BENCH_SECONDS", "5"))
BODY, BIG = 1024, 256 << 20

UPSTREAM = """
daemon off; worker_processes 1; pid {run}/up.pid; error_log {run}/up.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; keepalive_requests 100000000; client_body_temp_path {run}/t1;
  proxy_temp_path {run}/t2; fastcgi_temp_path {run}/t3; uwsgi_temp_path {run}/t4;
  scgi_temp_path {run}/t5;
  server {{
    listen 127.0.0.1:{up} ssl backlog=1024; listen 127.0.0.1:{plain} backlog=1024;
    ssl_protocols TLSv1.3; ssl_certificate {run}/stock.pem; ssl_certificate_key {run}/stock.key;
    ssl_client_certificate {run}/roots.pem; ssl_verify_client on;
    root {run}/www;
  }}
}}
"""
RIVAL = """
daemon off; worker_processes 1; pid {run}/rival.pid; error_log {run}/rival.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_temp_path {run}/r1;
  proxy_temp_path {run}/r2; fastcgi_temp_path {run}/r3; uwsgi_temp_path {run}/r4;
  scgi_temp_path {run}/r5;
  upstream far {{ server 127.0.0.1:{up}; keepalive 128; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{rival} backlog=1024;
    location / {{
      proxy_pass https://far; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host localhost:{up}; proxy_max_temp_file_size 0;
      proxy_ssl_certificate {run}/till.pem; proxy_ssl_certificate_key {run}/till.key;
      proxy_ssl_trusted_certificate {run}/roots.pem; proxy_ssl_verify on;
      proxy_ssl_name localhost; proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.3;
    }}
  }}
}}
"""


class OneSvid:
    """``LocalSvids`` of a node with one workload; without cryptography, as in the agent."""

    version = 0

    def __init__(self, svid: LocalSvid, bundles: TrustBundles) -> None:
        self._svid, self._bundles = svid, bundles

    async def newer_than(self, version: int) -> int:
        await asyncio.Event().wait()
        return version

    def entitled(self, caller: Caller) -> tuple[str, ...]:
        return (self._svid.spiffe_id,)

    async def x509(self, spiffe_id: str) -> LocalSvid:
        if spiffe_id != self._svid.spiffe_id:
            raise TryLater("there is none")
        return self._svid

    def bundles(self) -> TrustBundles | None:
        return self._bundles


class Till:
    """Every caller is app ``till``."""

    def of_unix(self, sock: socket.socket) -> Caller | None:
        return Caller(1, 0, 0, app="till")

    def of_tcp(self, sock: socket.socket) -> Caller | None:
        return Caller(1, 0, 0, app="till")


@dataclass
class Load:
    """What wrk saw, and what the process spent."""

    rps: float
    p99_us: float
    cpu_us: float


def cpu_s(pids: list[int]) -> float:
    """CPU seconds of processes (clock_getcpuclockid(3))."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def rss_mb(pids: list[int]) -> float:
    """Resident memory of processes."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/status").read_text()
        total += int(re.findall(r"VmRSS:\s+(\d+)", text)[0])
    return total / 1024


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def keep(run: Path, name: str, svid: LocalSvid) -> None:
    """A certificate and its key, as nginx reads them."""
    from cryptography.hazmat.primitives import serialization

    (run / f"{name}.pem").write_text(pem_of(svid.chain))
    key = serialization.load_der_private_key(svid.key, None)
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (run / f"{name}.key").write_bytes(key.private_bytes(*pem, serialization.NoEncryption()))


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[list[int]]:
    """A server until the end; yields its pids, children first."""
    with subprocess.Popen(command) as process:
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            else:
                raise RuntimeError(f"{command[0]} does not listen on {port}")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            yield [*map(int, children.split()), process.pid]
        finally:
            process.send_signal(signal.SIGTERM)


def wrk(run: Path, port: int, url: str, connections: int, pids: list[int]) -> Load:
    """Load for some seconds; the CPU is that of ``pids``."""
    script = run / "ask.lua"
    script.write_text(
        f'local r = wrk.format("GET", "{url}", {{["Host"] = "{host_of(url)}", '
        '["User-Agent"] = "till/1.0", ["Accept"] = "application/json"})\n'
        "request = function() return r end\n"
    )
    command = ["wrk", "-t1", f"-c{connections}", "--latency", "-s", str(script)]
    target = f"http://127.0.0.1:{port}/"
    subprocess.run([*command, "-d1", target], capture_output=True, check=True)
    before = cpu_s(pids)
    done = subprocess.run(
        [*command, f"-d{SECONDS}", target], capture_output=True, check=True, text=True
    )
    spent = cpu_s(pids) - before
    said = done.stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(said)
    requests = int(re.findall(r"(\d+) requests in", said)[0])
    rps = float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0])
    return Load(rps, _us(re.findall(r"99%\s+([\d.]+\w+)", said)[0]), spent / requests * 1e6)


def host_of(url: str) -> str:
    return url.removeprefix("http://").partition("/")[0] or "localhost"


def _us(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def bulk(port: int, target: str, pids: list[int]) -> tuple[float, float]:
    """MB/s and CPU seconds for each GB of one big answer."""
    before, began = cpu_s(pids), time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        host = host_of(target) if "//" in target else "localhost"
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        buffer = bytearray(1 << 20)
        total = 0
        while size := sock.recv_into(buffer):
            total += size
    took = time.perf_counter() - began
    if total < BIG:
        raise RuntimeError(f"only {total} bytes came")
    return total / took / 1e6, (cpu_s(pids) - before) / (total / 1e9)


async def gateway(run: Path, port: int, up: int) -> None:
    """The far process: the agent's modules, and the gateway in its thread."""
    import msgspec

    import edgewise.roles.agent  # noqa: F401 - the memory that is there anyway

    gc.collect()
    base = rss_mb([os.getpid()])
    svid = msgspec.json.decode((run / "till.json").read_bytes(), type=LocalSvid)
    root = (run / "root.der").read_bytes()
    bundles = TrustBundles(1, {"eu.acme": DomainBundle((root,))})
    rule = EgressRule(
        "localhost",
        (up,),
        spiffe_ids=("spiffe://eu.acme/app/shops/stock",),
        addresses=("127.0.0.0/8",),
    )
    clock = SystemClock()
    supply = AgentSupply(OneSvid(svid, bundles), clock)
    one = Gateway(Till(), supply, clock, StreamLog(clock, "egress"))
    one.listen(port)
    one.follow(EgressRules("bench", allow=(rule,)))
    late: list[float] = []

    def tell() -> None:
        found = sorted(late)
        late.clear()
        said = {"base_mb": base, "late_p99_us": found[int(len(found) * 0.99)] * 1e6}
        (run / "said.part").write_text(json.dumps(said))
        (run / "said.part").rename(run / "said")

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(one, supply))
        while True:  # how late the agent's own loop is, beside the gateway
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            late.append(time.perf_counter() - began - 0.005)


def said_by(run: Path, pid: int) -> dict[str, float]:
    """What the far process knows of itself, since the last time."""
    (run / "said").unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    for _ in range(500):
        if (run / "said").exists():
            return {k: float(v) for k, v in json.loads((run / "said").read_text()).items()}
        time.sleep(0.01)
    raise RuntimeError("the gateway does not answer")


def measure(run: Path) -> dict[str, float]:
    """Everything, one after the other."""
    import msgspec

    from edgewise.testing.egress import TestAuthority

    authority = TestAuthority()
    till = authority.svid("/app/shops/till")
    keep(run, "till", till)
    keep(run, "stock", authority.svid("/app/shops/stock", "localhost"))
    (run / "till.json").write_bytes(msgspec.json.encode(till))
    (run / "root.der").write_bytes(authority.root)
    (run / "roots.pem").write_text(pem_of([authority.root]))
    (run / "www").mkdir()
    (run / "www" / "item").write_bytes(b"x" * BODY)
    with (run / "www" / "big").open("wb") as file:
        file.truncate(BIG)
    run.chmod(0o755)
    ports = {name: free_port() for name in ("up", "plain", "rival", "gateway")}
    for name, text in (("up", UPSTREAM), ("rival", RIVAL)):
        (run / f"{name}.conf").write_text(text.format(run=run, **ports))
    found: dict[str, float] = {}
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    ours = [sys.executable, __file__, "--serve", str(run), str(ports["gateway"]), str(ports["up"])]
    with (
        running([nginx, "-c", str(run / "up.conf")], ports["up"]),
        running([nginx, "-c", str(run / "rival.conf")], ports["rival"]) as rival,
        running(ours, ports["gateway"]) as own,
    ):
        far = f"http://localhost:{ports['up']}"
        base = said_by(run, own[-1])
        found["agent_loop_late_p99_us_idle"] = base["late_p99_us"]
        for connections in (1, 64):
            plain = wrk(run, ports["plain"], "/item", connections, [])
            theirs = wrk(run, ports["rival"], "/item", connections, rival)
            mine = wrk(run, ports["gateway"], f"{far}/item", connections, own)
            found |= {
                f"gateway_rps_{connections}": mine.rps,
                f"nginx_rps_{connections}": theirs.rps,
                f"gateway_cpu_us_{connections}": mine.cpu_us,
                f"nginx_cpu_us_{connections}": theirs.cpu_us,
                f"gateway_cpu_ratio_nginx_{connections}": mine.cpu_us / theirs.cpu_us,
                f"gateway_p99_added_us_{connections}": mine.p99_us - plain.p99_us,
                f"nginx_p99_added_us_{connections}": theirs.p99_us - plain.p99_us,
            }
        found["agent_loop_late_p99_us_loaded"] = said_by(run, own[-1])["late_p99_us"]
        found["gateway_cpu_ratio_nginx"] = max(
            found["gateway_cpu_ratio_nginx_1"], found["gateway_cpu_ratio_nginx_64"]
        )
        found["gateway_rss_mb"], found["nginx_rss_mb"] = rss_mb(own), rss_mb(rival)
        found["gateway_added_rss_mb"] = rss_mb(own) - base["base_mb"]
        for name, port, target, pids in (
            ("gateway", ports["gateway"], f"{far}/big", own),
            ("nginx", ports["rival"], "/big", rival),
        ):
            bulk(port, target, pids)
            speed, cost = bulk(port, target, pids)
            found |= {f"{name}_bulk_mb_s": speed, f"{name}_bulk_cpu_s_per_gb": cost}
        found["gateway_rss_after_bulk_mb"] = rss_mb(own)
    return found


def figures() -> dict[str, float]:
    """Measure; ends the program where nginx or wrk are missing."""
    for program in ("nginx", "wrk"):
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
            sys.exit(f"bench-egress needs {program}: make bench-rivals")
    with tempfile.TemporaryDirectory() as name:
        return measure(Path(name))


def main() -> None:
    """Measure, print, keep."""
    write("egress", figures(), "make bench-egress")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(gateway(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
    else:
        main()
