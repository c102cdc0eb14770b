"""nftables in a network namespace: an app has no way out but the gateway."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgewise.host import egress_rules
from edgewise.host.cgroups import Cgroups
from edgewise.host.egress_rules import HeldApp
from edgewise.protocol.content import ProcessApp
from edgewise.protocol.egress import EgressRules
from edgewise.roles.agent_egress import held_apps

pytestmark = pytest.mark.slow
PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
USER = 61234
TRY = """
import errno, os, socket, sys
if sys.argv[3]: open(sys.argv[3], "w").write(str(os.getpid()))
if sys.argv[2]: os.setuid(int(sys.argv[2]))
host, port = sys.argv[1].rsplit(":", 1)
kind = socket.SOCK_DGRAM if len(sys.argv) > 4 else socket.SOCK_STREAM
s = socket.socket(socket.AF_INET, kind)
s.settimeout(5)
try:
    s.connect((host, int(port)))
    if kind == socket.SOCK_DGRAM: s.send(b"x")
    print("open")
except OSError as error: print(errno.errorcode.get(error.errno, error))
"""
SERVE = """
import socket, sys, threading
def serve(s):
    while True: s.accept()
for place in (("127.0.0.1", 8080), ("127.0.0.1", 53), ("10.9.9.1", 8080)):
    threading.Thread(target=serve, args=(socket.create_server(place),), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if check and done.returncode:
        raise AssertionError(f"{command}: {done.stderr}")
    return done.stdout.strip()


@pytest.fixture
def place() -> Iterator[str]:
    """A network namespace; beyond its one link is another, which answers on 10.9.9.1."""
    if os.geteuid() != 0 or not shutil.which("nft", path=PATH) or not shutil.which("ip", path=PATH):
        pytest.skip("needs root, nft and ip: make tools")
    name = f"ew{uuid.uuid4().hex[:6]}"
    far = f"{name}f"
    for ns in (name, far):
        run("ip", "netns", "add", ns)
    servers = []
    try:
        run("ip", "link", "add", f"{name}0", "type", "veth", "peer", "name", f"{name}1")
        for ns, link, address in (
            (name, f"{name}0", "10.9.9.2/24"),
            (far, f"{name}1", "10.9.9.1/24"),
        ):
            run("ip", "link", "set", link, "netns", ns)
            run("ip", "-n", ns, "addr", "add", address, "dev", link)
            run("ip", "-n", ns, "link", "set", link, "up")
            run("ip", "-n", ns, "link", "set", "lo", "up")
        for ns, script in ((far, SERVE), (name, SERVE.replace(', ("10.9.9.1", 8080)', ""))):
            server = subprocess.Popen(
                ["nsenter", f"--net=/var/run/netns/{ns}", sys.executable, "-c", script],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            servers.append(server)
        yield name
    finally:
        for server in servers:
            server.communicate("")
        for ns in (name, far):
            run("ip", "netns", "del", ns, check=False)


def nft(place: str, text: str) -> None:
    """Apply rules inside the namespace, by the product's own code."""
    script = (
        "import sys; from edgewise.host import egress_rules; egress_rules.apply(sys.stdin.read())"
    )
    done = subprocess.run(
        ["nsenter", f"--net=/var/run/netns/{place}", sys.executable, "-c", script],
        input=text, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def connect(place: str, to: str, *, uid: str = "", procs: str = "", udp: bool = False) -> str:
    more = ["udp"] if udp else []
    return run(
        "nsenter", f"--net=/var/run/netns/{place}", sys.executable, "-c", TRY, to, uid, procs, *more
    )


def test_a_held_user_reaches_the_gateway_and_nothing_else(place: str) -> None:
    user = str(USER)
    assert connect(place, "10.9.9.1:8080", uid=user) == "open"
    nft(place, egress_rules.ruleset("ew_test", [HeldApp("till", uid=USER)]))
    assert connect(place, "10.9.9.1:8080", uid=user) in ("EHOSTUNREACH", "EACCES", "ECONNREFUSED")
    assert connect(place, "10.9.9.1:9", uid=user, udp=True) in ("EPERM", "EACCES", "EHOSTUNREACH")
    assert connect(place, "127.0.0.1:8080", uid=user) == "open", "where the gateway listens"
    assert connect(place, "127.0.0.1:53", uid=user) != "open", "names carry data out as well"
    assert connect(place, "10.9.9.1:8080") == "open", "the gateway itself, and everybody else"


def test_a_held_app_without_a_user_is_told_by_its_cgroup(place: str, tmp_path: Path) -> None:
    cgroups = Cgroups.find(tmp_path)
    if cgroups is None:
        pytest.skip("needs a writable cgroup v2 hierarchy")
    try:
        held = held_apps(
            EgressRules("out", apps=("till",)), [ProcessApp("till", {}, ("x",))], cgroups
        )
        procs = str(cgroups.path("till") / "cgroup.procs")
        assert held[0].uid is None
        assert connect(place, "10.9.9.1:8080", procs=procs) == "open"
        nft(place, egress_rules.ruleset("ew_test", held))
        assert connect(place, "10.9.9.1:8080", procs=procs) != "open"
        assert connect(place, "127.0.0.1:8080", procs=procs) == "open"
        assert connect(place, "10.9.9.1:8080") == "open"
    finally:
        cgroups.remove("till")
        cgroups.dissolve()


def test_rules_are_replaced_whole_and_taken_away(place: str) -> None:
    user = str(USER)
    nft(place, egress_rules.ruleset("ew_test", [HeldApp("till", uid=USER)]))
    nft(place, egress_rules.ruleset("ew_test", [HeldApp("other", uid=USER + 1)]))
    assert connect(place, "10.9.9.1:8080", uid=user) == "open"
    assert connect(place, "10.9.9.1:8080", uid=str(USER + 1)) != "open"
    nft(place, "table inet ew_test\ndelete table inet ew_test\n")
    assert connect(place, "10.9.9.1:8080", uid=str(USER + 1)) == "open"
