"""What goes wrong on a machine: forking trees, full disks, foreign links, growing logs."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from edgewise.heal.drift import Wanted, Write, plan, wanted_files
from edgewise.heal.ports import Launch, Memory
from edgewise.host import files, machine, processes
from edgewise.host.cgroups import Cgroups
from edgewise.host.files import ConfigFiles, Place
from edgewise.host.machine import HostMachine
from edgewise.host.memory import NodeFile
from edgewise.host.secrets import SecretFiles
from edgewise.model.errors import NeedsPerson
from edgewise.protocol.content import ConfigFile, FilesConfig, ProcessApp, SealedSecret
from edgewise.protocol.installed import InstalledSecret
from edgewise.rollout.node import Node
from edgewise.rollout.node_ports import Kept
from edgewise.runtime.clock import SystemClock

FORKING = """
import os, time
for _ in range(4):
    os.fork()
os.setsid() if os.getpid() != os.getpgid(0) else None
print(os.getpid(), flush=True)
time.sleep(1000)
"""


@pytest.fixture(params=["cgroup", "session"])
async def real(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[HostMachine]:
    cgroups = Cgroups.find(tmp_path) if request.param == "cgroup" else None
    if request.param == "cgroup" and cgroups is None:
        pytest.skip("there is no writable cgroup v2 here")
    made = HostMachine(tmp_path, SystemClock(), cgroups)
    yield made
    await made.kill("web")
    await made.close()
    if cgroups is not None:
        cgroups.dissolve()


def launch(*command: str, **fields: object) -> Launch:
    app = ProcessApp("web", {}, command, **fields)  # type: ignore[arg-type]
    return Launch(app, "p", "r", "/")


async def until(good: Callable[[], bool]) -> None:
    """Look again and again, for twenty seconds at most."""
    async with asyncio.timeout(20):
        while not good():  # noqa: ASYNC110 - another process cannot set our events
            await asyncio.sleep(0.01)


async def lines(path: Path, count: int) -> list[str]:
    """Wait until the log has so many lines."""
    await until(lambda: len(path.read_text().split()) >= count)
    return path.read_text().split()


async def test_a_tree_of_forks_that_left_their_session_dies_whole(
    real: HostMachine, tmp_path: Path
) -> None:
    await real.start(launch("python3", "-c", FORKING))
    members = [int(word) for word in await lines(tmp_path / "apps/web/log/app.log", 16)]
    assert len(members) == 16
    assert any(processes.session_of(pid) == pid for pid in members)
    await real.kill("web")
    assert [pid for pid in members if processes.alive(pid)] == []


async def test_a_dying_process_that_has_no_environment_any_more_is_waited_for(
    real: HostMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await real.start(launch("python3", "-c", FORKING))
    members = [int(word) for word in await lines(tmp_path / "apps/web/log/app.log", 16)]
    (leaver, *_) = [pid for pid in members if processes.session_of(pid) == pid]
    alive, looks = processes.alive, 0

    def slow_to_die(pid: int) -> bool:
        nonlocal looks
        looks += pid == leaver and not alive(pid)
        return alive(pid) or (pid == leaver and looks < 3)

    began = processes.start_ticks(leaver)
    monkeypatch.setattr(processes, "alive", slow_to_die)
    monkeypatch.setattr(
        processes,
        "start_ticks",
        lambda pid, ask=processes.start_ticks: began if pid == leaver else ask(pid),
    )
    await real.kill("web")
    assert looks >= 3 or real.cgroups is not None


async def test_an_agent_that_died_between_start_and_record_leaves_nothing_behind(
    real: HostMachine, tmp_path: Path
) -> None:
    process = await real.start(launch("sleep", "1000"))
    real.remember("web", Memory("p"))
    (tmp_path / "apps/web/run.json").unlink()
    assert await real.adopt("web") is None
    assert not processes.alive(process.pid)


async def test_a_record_of_another_boot_adopts_nobody(real: HostMachine, tmp_path: Path) -> None:
    process = await real.start(launch("sleep", "1000"))
    record = tmp_path / "apps/web/run.json"
    record.write_text(record.read_text().replace(processes.boot_id(), "another"))
    assert await real.adopt("web") is None
    assert not processes.alive(process.pid)


async def test_an_app_runs_as_its_user_and_owns_its_data(real: HostMachine, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can run apps as other users")
    await real.start(launch("sh", "-c", "id -un; sleep 1000", user="nobody"))
    assert await lines(tmp_path / "apps/web/log/app.log", 1) == ["nobody"]
    assert (tmp_path / "apps/web/data").owner() == "nobody"
    with pytest.raises(NeedsPerson, match="no user of this node"):
        await real.start(launch("true", user="no-such-user"))


async def test_notify_messages_count_for_the_app_whose_process_sent_them(
    real: HostMachine, tmp_path: Path
) -> None:
    real.listen()
    script = (
        "import os, socket, time\n"
        "line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "where = '\\0' + os.environ['NOTIFY_SOCKET'][1:]\n"
        "line.sendto(b'READY=1\\nWATCHDOG_USEC=2000000\\nSTATUS=warm', where)\n"
        "time.sleep(1000)\n"
    )
    real.remember("web", Memory("p"))
    await real.start(launch("python3", "-c", script))
    await until(lambda: real.beat("web").ready)
    assert (real.beat("web").watchdog_s, real.beat("web").status) == (2.0, "warm")
    assert real.notify.receive(0.0) is None


async def test_two_agents_on_one_state_directory_are_refused(
    real: HostMachine, tmp_path: Path
) -> None:
    real.listen()
    second = HostMachine(tmp_path, SystemClock(), None)
    with pytest.raises(OSError, match="in use"):
        second.listen()


async def test_a_log_stays_within_its_bound(
    real: HostMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LOG_BYTES", 10_000)
    log = tmp_path / "apps/web/log/app.log"
    await real.start(launch("sh", "-c", "seq 100000; echo; echo the end; sleep 1000"))
    await until(lambda: "the end" in real.log_tail("web"))
    real.trim_logs()
    assert log.stat().st_size == 0
    assert log.with_name("app.log.1").stat().st_size <= 10_000
    assert "the end" in log.with_name("app.log.1").read_text()
    real.trim_logs()
    assert log.with_name("app.log.1").exists()


# Files


def config(path: str, content: str) -> Wanted:
    return wanted_files([FilesConfig("c", (ConfigFile(path, content),))])[path]


def apply(configs: ConfigFiles, *wants: Wanted) -> None:
    wanted = {want.file.path: want for want in wants}
    for step in plan(wanted, configs.look(wanted), configs.written):
        if isinstance(step, Write):
            configs.write(step)
        else:
            configs.remove(step)


def place(tmp_path: Path) -> tuple[ConfigFiles, Path]:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "state").mkdir()
    return ConfigFiles(tmp_path / "state", Place(root)), root


def test_what_lay_there_before_comes_back_when_the_release_does_not_stay(tmp_path: Path) -> None:
    configs, root = place(tmp_path)
    (root / "motd").write_text("by hand\n")
    (root / "motd").chmod(0o600)
    apply(configs, config("/motd", "ours\n"))
    assert (root / "motd").read_text() == "ours\n"
    again = ConfigFiles(tmp_path / "state", Place(root))
    apply(again)
    assert (root / "motd").read_text() == "by hand\n"
    assert (root / "motd").stat().st_mode & 0o777 == 0o600
    apply(again, config("/motd", "ours\n"))
    again.confirm()
    apply(again)
    assert not (root / "motd").exists()
    assert list((tmp_path / "state/originals").iterdir()) == []


def test_a_full_disk_leaves_the_old_file_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs, root = place(tmp_path)
    apply(configs, config("/motd", "old\n"))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(NeedsPerson, match="full"):
        apply(configs, config("/motd", "new\n"))
    monkeypatch.undo()
    assert (root / "motd").read_text() == "old\n"
    assert os.listdir(root) == ["motd"]
    apply(configs, config("/motd", "new\n"))
    assert (root / "motd").read_text() == "new\n"


def test_a_link_never_leads_out_of_the_root(tmp_path: Path) -> None:
    configs, root = place(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "etc").symlink_to("../outside")
    (root / "abs").symlink_to("/inside")
    apply(configs, config("/etc/motd", "x"), config("/abs/motd", "x"))
    assert list(outside.iterdir()) == []
    assert (root / "outside/motd").read_text() == "x"
    assert (root / "inside/motd").read_text() == "x"


def test_a_link_of_another_user_is_not_followed(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make links of other users")
    configs, root = place(tmp_path)
    (root / "target").mkdir()
    (root / "etc").symlink_to("target")
    os.lchown(root / "etc", 65534, 65534)
    with pytest.raises(NeedsPerson, match="of user 65534"):
        apply(configs, config("/etc/motd", "x"))


def test_what_lies_at_the_path_itself_is_replaced_and_not_followed(tmp_path: Path) -> None:
    configs, root = place(tmp_path)
    (root / "shadow").write_text("precious")
    (root / "motd").symlink_to("shadow")
    apply(configs, config("/motd", "ours"))
    assert (root / "shadow").read_text() == "precious"
    assert not (root / "motd").is_symlink()


def test_a_loop_of_links_ends_in_an_error(tmp_path: Path) -> None:
    configs, root = place(tmp_path)
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(NeedsPerson, match="no directory"):
        apply(configs, config("/a/motd", "x"))


# Secrets


def secret(part: str = "p", *keys: str) -> InstalledSecret:
    sealed = SealedSecret("s", "0" * 64, "/run/s", keys or ("a", "b"), 0o400)
    return InstalledSecret(part, sealed, "f" * 64)


def test_a_secret_is_written_once_again_after_a_boot_and_removed_with_its_config(
    tmp_path: Path,
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    secrets = SecretFiles(tmp_path, Place(root))
    assert secrets.missing([secret()]) == (secret(),)
    secrets.write(secret(), {"a": "1", "b": "2"})
    assert secrets.missing([secret()]) == ()
    assert (root / "run/s/a").stat().st_mode & 0o777 == 0o400
    (root / "run/s/a").unlink()  # tmpfs is empty after a boot
    assert secrets.missing([secret()]) == (secret(),)
    secrets.write(secret("p2", "b"), {"a": "1", "b": "3"})
    assert sorted(os.listdir(root / "run/s")) == ["b"]
    SecretFiles(tmp_path, Place(root)).remove_others(())
    assert os.listdir(root / "run/s") == []
    assert b"3" not in (tmp_path / "secrets.json").read_bytes()


def test_a_key_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    secrets = SecretFiles(tmp_path, Place(tmp_path))
    with pytest.raises(NeedsPerson, match="no file name"):
        secrets.write(secret("p", "../../etc/passwd"), {"../../etc/passwd": "x"})
    with pytest.raises(NeedsPerson, match="has no key"):
        secrets.write(secret("p", "c"), {"a": "1"})


# What the node half remembers


def test_a_damaged_memory_needs_a_person_and_says_what_to_do(tmp_path: Path) -> None:
    memory = NodeFile(tmp_path)
    assert memory.load() is None
    memory.save(Kept(Node("n")))
    assert NodeFile(tmp_path).load() == Kept(Node("n"))
    (tmp_path / "node.json").write_text("{")
    with pytest.raises(NeedsPerson, match="cannot be read"):
        memory.load()


KERNEL = tuple(int(part) for part in os.uname().release.split(".")[:2])


@pytest.mark.parametrize(("ends", "code"), [("exit 3", 3), ("kill -9 $$", 137), ("exit 0", 0)])
async def test_a_new_agent_learns_how_an_app_that_always_restarts_ended(
    real: HostMachine, tmp_path: Path, ends: str, code: int
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    await real.start(launch("/bin/sh", "-c", f"read word < {gate}; {ends}", restart="Always"))
    real.remember("web", Memory("p"))
    await real.close()
    after = HostMachine(tmp_path, SystemClock(), real._cgroups)
    adopted = await after.adopt("web")
    assert adopted is not None
    with gate.open("w") as opened:
        opened.write("go\n")
    async with asyncio.timeout(20):
        assert (await after.ended(adopted)).code == code
    await after.kill("web")
    await after.close()


async def test_the_end_of_a_process_that_is_not_our_child_is_told_by_the_kernel(
    tmp_path: Path,
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    # Its parent, the first shell, ends at once: it becomes init's child, as an app does.
    orphan = f"(read word < {gate}; exit 7) > /dev/null 2>&1 & echo $!"
    started = await processes.run(("/bin/sh", "-c", orphan))
    pid = int(started.tail)
    pidfd = os.pidfd_open(pid)
    try:
        with gate.open("w") as opened:
            opened.write("go\n")
        async with asyncio.timeout(20):
            await processes.gone(pidfd)
        # Before Linux 6.15 init may have been quicker, and then nobody knows.
        known = {7} if KERNEL >= (6, 15) else {7, None}
        assert processes.exit_code(pid, pidfd) in known
    finally:
        os.close(pidfd)
