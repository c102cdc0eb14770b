"""Who calls the gateway: the kernel's word over TCP and unix sockets, for real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgewise.host.callers import Facts
from edgewise.host.egress_callers import KernelCallers, SocketTable

CONNECT = """
import os, socket, sys
kind, place, uid = sys.argv[1:4]
if uid: os.setuid(int(uid))
s = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
s.connect(place if kind == "unix" else ("127.0.0.1", int(place)))
print(os.getpid(), flush=True)
sys.stdin.read(1)
"""


@contextmanager
def listening(kind: str, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    if kind == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as sock:
            yield sock, str(sock.getsockname()[1])
    else:
        path = str(tmp_path / "s")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            os.chmod(path, 0o666)
            sock.listen()
            yield sock, path


@contextmanager
def caller(kind: str, place: str, uid: str = "") -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", CONNECT, kind, place, uid],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.communicate("x")


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_caller_is_the_process_that_connected(kind: str, tmp_path: Path) -> None:
    callers = KernelCallers(Facts(lambda pid: f"app-of-{pid}"))
    with listening(kind, tmp_path) as (server, place), caller(kind, place) as pid:
        sock, _ = server.accept()
        with sock:
            found = callers.of_tcp(sock) if kind == "tcp" else callers.of_unix(sock)
        assert found is not None
        assert (found.pid, found.uid, found.app) == (pid, os.geteuid(), f"app-of-{pid}")
        assert found.gid == os.getegid()
        assert found.executable == os.path.realpath(sys.executable)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_another_user_over_tcp_is_known_as_that_user() -> None:
    callers = KernelCallers(Facts(lambda pid: None))
    with listening("tcp", Path()) as (server, place), caller("tcp", place, "65534") as pid:
        sock, _ = server.accept()
        with sock:
            found = callers.of_tcp(sock)
        assert found is not None
        assert (found.pid, found.uid) == (pid, 65534)


def test_a_caller_that_has_gone_is_nobody() -> None:
    callers = KernelCallers(Facts(lambda pid: "till"))
    with listening("tcp", Path()) as (server, place):
        with caller("tcp", place):
            sock, _ = server.accept()
        with sock:
            assert callers.of_tcp(sock) is None


def test_many_connections_of_one_process_are_all_its_own() -> None:
    callers = KernelCallers(Facts(lambda pid: "till"))
    with listening("tcp", Path()) as (server, _):
        socks = []
        for _ in range(20):
            ours = socket.create_connection(server.getsockname())
            theirs, _ = server.accept()
            found = callers.of_tcp(theirs)
            assert found is not None
            assert found.pid == os.getpid()
            socks += [ours, theirs]
        for sock in socks:
            sock.close()


def test_a_socket_that_is_not_there_is_not_found() -> None:
    table = SocketTable()
    assert table.look_up(("127.0.0.1", 1), ("127.0.0.1", 2)) is None
    table.close()
