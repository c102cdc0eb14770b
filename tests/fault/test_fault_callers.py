"""Attacks on the attestation of local callers, with real processes and sockets.

A process that is not who it seems to be gets no identity: one that got a handed-on socket, one
that got a reused pid, one that became another program, one that runs its own file under a
famous path.
"""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgewise.host import callers
from edgewise.host.callers import Facts, Peer
from edgewise.model.errors import Forbidden, TryLater

FACTS = Facts(lambda pid: None)
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        yield listening


def child(work: Callable[[], None]) -> int:
    """A forked process; it ends with ``work``."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def connecting(server: socket.socket, then: Callable[[socket.socket], None]) -> Callable[[], None]:
    def work() -> None:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(server.getsockname())
            then(line)

    return work


def wait_for_end(line: socket.socket) -> None:
    line.recv(1)


def accepted(server: socket.socket) -> socket.socket:
    server.settimeout(10)
    return server.accept()[0]


def test_a_caller_that_runs_is_who_the_kernel_says(server: socket.socket) -> None:
    pid = child(connecting(server, wait_for_end))
    with accepted(server) as line:
        peer = Peer.of(line)
        found = peer.caller(FACTS)
        assert (found.pid, found.uid, found.gid) == (pid, os.getuid(), os.getgid())
        assert os.path.samefile(found.executable, sys.executable)
        peer.close()
    os.waitpid(pid, 0)


def test_a_socket_that_was_handed_on_proves_nothing_after_its_maker_ended(
    server: socket.socket,
) -> None:
    ours, theirs = socket.socketpair()
    pid = child(connecting(server, lambda line: socket.send_fds(theirs, [b"x"], [line.fileno()])))
    _, (handed, *_), _, _ = socket.recv_fds(ours, 1, 1)
    with accepted(server) as line:
        peer = Peer.of(line)
        os.waitpid(pid, 0)
        with pytest.raises(Forbidden, match="has ended"):
            peer.caller(FACTS)
        peer.close()
    os.close(handed)
    ours.close()
    theirs.close()


def test_a_maker_that_ended_before_the_server_looked_is_nobody(server: socket.socket) -> None:
    ours, theirs = socket.socketpair()
    pid = child(connecting(server, lambda line: socket.send_fds(theirs, [b"x"], [line.fileno()])))
    _, (handed, *_), _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(pid, 0)
    with accepted(server) as line, pytest.raises(Forbidden):
        Peer.of(line)
    os.close(handed)
    ours.close()
    theirs.close()


@pytest.fixture(params=["SO_PEERPIDFD", "pidfd_open"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without the kernel's own pidfd of the peer."""
    if request.param == "pidfd_open":
        monkeypatch.setattr(callers, "SO_PEERPIDFD", 9999)
        with socket.socketpair()[0] as line, pytest.raises(OSError) as refused:
            line.getsockopt(socket.SOL_SOCKET, callers.SO_PEERPIDFD, 4)
        assert refused.value.errno == errno.ENOPROTOOPT
    return str(request.param)


def test_a_forged_pid_reuse_is_not_attested(server: socket.socket, way: str) -> None:
    """The maker hands its socket on and ends; a victim that may have an identity gets its pid."""
    if not os.access(LAST_PID, os.W_OK):
        pytest.skip(f"needs {LAST_PID}, which only root may write: a pid cannot be forced")
    ours, theirs = socket.socketpair()
    pid = child(connecting(server, lambda line: socket.send_fds(theirs, [b"x"], [line.fileno()])))
    _, (handed, *_), _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(pid, 0)
    victim, before = 0, LAST_PID.read_text()
    for _ in range(200):  # others start processes too
        LAST_PID.write_text(str(pid - 1))
        victim = child(signal.pause)
        if victim == pid:
            break
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
    LAST_PID.write_text(before)  # or every test after this one lives with reused pids
    assert victim == pid
    with accepted(server) as line:
        credentials = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        assert int.from_bytes(credentials[:4], sys.byteorder) == victim  # the kernel's old word
        with pytest.raises((Forbidden, TryLater)):
            Peer.of(line)
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    os.close(handed)
    ours.close()
    theirs.close()


def test_a_process_that_was_held_is_not_confused_with_the_next_one_of_its_number(
    server: socket.socket, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "SETTLED_S", -1.0)
    pid = child(connecting(server, wait_for_end))
    with accepted(server) as line:
        peer = Peer.of(line)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(Forbidden):  # a zombie still has its number
            peer.caller(FACTS)
        peer.close()
    os.waitpid(pid, 0)


def test_without_the_kernels_pidfd_a_young_process_has_to_wait(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "SO_PEERPIDFD", 9999)
    monkeypatch.setattr(callers, "SETTLED_S", 3600.0)
    pid = child(connecting(server, wait_for_end))
    with accepted(server) as line, pytest.raises(TryLater, match="too young"):
        Peer.of(line)
    os.waitpid(pid, 0)


def test_a_process_that_became_another_program_is_not_attested_as_it(
    server: socket.socket,
) -> None:
    ours, theirs = socket.socketpair()

    def become(line: socket.socket) -> None:
        theirs.recv(1)
        os.set_inheritable(line.fileno(), True)
        os.dup2(line.fileno(), 0)
        os.execv("/bin/cat", ["cat"])

    pid = child(connecting(server, become))
    with accepted(server) as line:
        peer = Peer.of(line)
        assert peer.caller(FACTS).pid == pid
        ours.send(b"x")
        while os.readlink(f"/proc/{pid}/exe") != os.path.realpath("/bin/cat"):
            os.sched_yield()
        with pytest.raises(Forbidden, match="another program"):
            peer.caller(FACTS)
        peer.close()
    os.waitpid(pid, 0)
    ours.close()
    theirs.close()


def test_a_file_of_ones_own_under_a_famous_path_does_not_have_that_path(
    server: socket.socket, tmp_path: Path
) -> None:
    """Every user can make a mount namespace, and in it put anything anywhere."""
    famous = tmp_path / "famous"
    famous.write_bytes(Path("/bin/true").read_bytes())
    famous.chmod(0o755)
    mine = tmp_path / "mine"
    shutil.copy(os.path.realpath(sys.executable), mine)
    code = (
        "import socket,os;s=socket.socket(socket.AF_UNIX);"
        f"s.connect({server.getsockname()!r});s.recv(1)"
    )
    script = f'mount --bind {mine} {famous} && exec {famous} -S -c "{code}"'
    unshare = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--mount", "-r"]
    home = {"PYTHONHOME": sys.base_prefix, "PATH": os.environ["PATH"]}
    with subprocess.Popen([*unshare, "sh", "-c", script], env=home) as process:
        try:
            with accepted(server) as line:
                peer = Peer.of(line)
                pid = peer.pid
                assert os.readlink(f"/proc/{pid}/exe") == str(famous)
                assert peer.caller(FACTS).executable == ""
                peer.close()
        finally:
            process.kill()


def test_the_digest_is_of_the_program_that_runs(server: socket.socket, tmp_path: Path) -> None:
    import hashlib

    facts = Facts(lambda pid: None, {"sha256"})
    pid = child(connecting(server, wait_for_end))
    with accepted(server) as line:
        peer = Peer.of(line)
        assert peer.caller(facts).sha256 == ""
        assert facts.needs_digest(pid)
        facts.digest(pid)
        assert not facts.needs_digest(pid)
        wanted = hashlib.sha256(Path(sys.executable).resolve().read_bytes()).hexdigest()
        assert peer.caller(facts).sha256 == wanted
        peer.close()
    os.waitpid(pid, 0)
