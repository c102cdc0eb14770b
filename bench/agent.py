"""What an idle agent costs: a real one, on Debian's own Python, with three apps.

    make bench-agent                      five minutes
    bench/agent.py --seconds 60           shorter

The agent runs under /usr/bin/python3 (``--python`` for another) against a small hub over
mutual TLS in this process. Its msgspec, and for the worker the rest, come from a venv made
of that very interpreter; making it is not measured. Each app has an HTTP probe every 10 s.

``rss_mb`` is the resident memory of every process of the agent's own: the agent, a worker
if one lives, and the shell that stays beside an app whose exit status matters (not here:
these apps are always restarted). The apps themselves are ``apps_rss_mb``. MB are 10**6.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from edgewise.protocol.content import HttpProbe, Probe, Probes, ProcessApp
from edgewise.roles.agent import local_status
from edgewise.testing.small_hub import PLATFORM, SmallHub
from result import write

SOURCE = Path(__file__).parents[1] / "src"
NEEDS = ("msgspec", "h2", "cryptography", "zstandard", "tuf", "securesystemslib", "pyrage")
SERVER = """#!/bin/sh
exec /usr/bin/python3 -S -m http.server --bind 127.0.0.1 "$1"
"""


def interpreter(python: str, folder: Path) -> str:
    """A venv of that interpreter with what a node needs, compiled as an image would have it."""
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    install = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install"]
    subprocess.run([*install, "-q", *NEEDS], check=True)
    # As an image ships it: without cached bytecode an agent takes 8 MB more.
    compiled = [folder / "bin/python", "-m", "compileall", "-q", SOURCE / "edgewise"]
    subprocess.run(compiled, check=True)
    return str(folder / "bin/python")


def memory(pid: int) -> dict[str, float]:
    """Rss and Pss of a process in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    return {name: int(fields[name]) * 1024 / 1e6 for name in ("Rss", "Pss")}


def children(pid: int) -> list[int]:
    """Direct children."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def switches(pid: int) -> int:
    """Voluntary context switches: how often it woke up and slept again."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches"):
            return int(line.split()[1])
    return 0


def cpu_s(pid: int) -> float:
    """Processor time of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


async def app(hub: SmallHub, folder: Path, name: str, port: int) -> ProcessApp:
    """A small web server."""
    directory = folder / name
    directory.mkdir(parents=True)
    (directory / "run").write_text(SERVER)
    (directory / "run").chmod(0o755)
    probe = Probe(HttpProbe(port=port), period_s=10.0, timeout_s=2.0)
    return ProcessApp(
        name=name,
        trees={PLATFORM: await hub.tree(directory)},
        command=("./run", str(port)),
        probes=Probes(liveness=probe, readiness=probe),
        min_ready_s=2.0,
    )


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now."""
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [line.getsockname()[1] for line in sockets]
    for line in sockets:
        line.close()
    return ports


async def measure(python: str, seconds: float, folder: Path) -> dict[str, float]:
    """Start it all, wait until it is quiet, look at it for so long."""
    hub = await SmallHub.start(folder / "hub")
    state = folder / "state"
    await hub.enrol(state)
    ready = folder / "ready"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with (folder / "agent.log").open("wb") as log:
        agent = await asyncio.create_subprocess_exec(
            *(python, "-m", "edgewise.roles.agent", "--stop-apps"),
            *("--state", str(state), "--root", str(folder / "root"), "--ready", str(ready)),
            stdout=log,
            stderr=log,
            env=environment,
        )
    try:
        apps = [
            await app(hub, folder / "trees", f"app{number}", port)
            for number, port in enumerate(free_ports(3))
        ]
        release = await hub.publish(*apps)
        async with asyncio.timeout(60):
            while not any(r.release == release for r in hub.receipts):
                await asyncio.sleep(0.1)
        if hub.receipts[-1].outcome != "Succeeded":
            raise SystemExit(f"the apps did not start: {hub.receipts[-1].reason}")
        await asyncio.sleep(10)
        return await watch(agent.pid, state, seconds)
    finally:
        agent.send_signal(signal.SIGTERM)
        await agent.wait()
        await hub.close()


async def watch(pid: int, state: Path, seconds: float) -> dict[str, float]:
    """The figures over so many seconds of rest."""
    before, woke, loop = cpu_s(pid), switches(pid), asyncio.get_running_loop()
    start = loop.time()
    await asyncio.sleep(seconds)
    passed = loop.time() - start
    running = [line["pid"] for line in local_status(state)["apps"]]
    own = [pid, *(child for child in children(pid) if child not in running)]
    if 0 in running:
        raise SystemExit("an app does not run")
    return {
        "rss_mb": sum(memory(p)["Rss"] for p in own),
        "pss_mb": sum(memory(p)["Pss"] for p in own),
        "own_processes": len(own),
        "wakeups_per_s": (switches(pid) - woke) / passed,
        "idle_cpu_pct": (cpu_s(pid) - before) / passed * 100,
        "apps_rss_mb": sum(memory(p)["Rss"] for p in running),
        "apps": len(running),
        "seconds": passed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--python", default="/usr/bin/python3")
    settings = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="edgewise-bench-agent-"))
    try:
        python = interpreter(settings.python, folder / "venv")
        figures = asyncio.run(measure(python, settings.seconds, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write("agent", figures, f"make bench-agent ARGS='--seconds {settings.seconds:g}'")


if __name__ == "__main__":
    main()
