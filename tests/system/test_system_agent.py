"""A real agent process under a small hub over mutual TLS, with real apps."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pyrage
import pytest

from edgewise.host import processes
from edgewise.identity.on_agent import MachineIdentity
from edgewise.model.names import Digest
from edgewise.protocol.codec import encode
from edgewise.protocol.content import (
    ConfigFile,
    ExecProbe,
    FilesConfig,
    NodeSettings,
    OnChange,
    Probe,
    Probes,
    ProcessApp,
    SealedSecret,
)
from edgewise.roles.agent import local_status
from edgewise.testing.small_hub import PLATFORM, SmallHub

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

STEADY = '#!/bin/sh\necho "$EDGEWISE_APP runs $1"\nexec sleep 1000\n'


class Node:
    """An agent process, its state and its hub."""

    def __init__(self, folder: Path, hub: SmallHub, *options: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.root = folder / "root"
        self.hub = hub
        self.options = options
        self.agent: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        with (self.folder / "agent.log").open("ab") as log:
            self.agent = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "edgewise.roles.agent"),
                *("--state", str(self.state), "--root", str(self.root), "--ready", str(ready)),
                *self.options,
                stdout=log,
                stderr=log,
            )
        await until(ready.exists)

    async def end(self, how: signal.Signals) -> int:
        assert self.agent is not None
        self.agent.send_signal(how)
        return await self.agent.wait()

    def pid(self, app: str) -> int:
        return next((a["pid"] for a in local_status(self.state)["apps"] if a["name"] == app), 0)

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    async def outcome(self, release: str) -> str:
        await until(lambda: any(r.release == release for r in self.hub.receipts), self.log)
        return next(r.outcome for r in self.hub.receipts if r.release == release)

    async def app(self, name: str, script: str = STEADY, **fields: object) -> ProcessApp:
        directory = self.folder / "trees" / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "run").write_text(script)
        (directory / "run").chmod(0o755)
        tree = await self.hub.tree(directory)
        fields = {"min_ready_s": 0.5, "stop_timeout_s": 2.0, **fields}
        return ProcessApp(
            name=name,
            trees={PLATFORM: tree},
            command=("./run", name),
            **fields,  # type: ignore[arg-type]
        )


async def until(good: Callable[[], bool], say: Callable[[], str] = lambda: "") -> None:
    """Look again and again, for thirty seconds at most."""
    try:
        async with asyncio.timeout(30):
            while not good():  # noqa: ASYNC110 - another process cannot set our events
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it did not happen in 30 s\n{say()}") from None


@pytest.fixture(params=["cgroup", "session"])
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    hub = await SmallHub.start(tmp_path / "hub")
    options = ("--sessions",) if request.param == "session" else ()
    node = Node(tmp_path, hub, *options)
    await hub.enrol(node.state)
    await node.start()
    yield node
    if node.agent is not None and node.agent.returncode is None:
        await node.end(signal.SIGKILL)
    node.options = (*options, "--stop-apps")
    await node.start()
    await until(lambda: "ready" in node.log())
    assert await node.end(signal.SIGTERM) == 0
    await hub.close()


async def test_a_release_travels_runs_and_is_receipted(node: Node) -> None:
    config = FilesConfig("motd", (ConfigFile("/etc/motd", "hello\n", 0o640),))
    release = await node.hub.publish(await node.app("web"), await node.app("db"), config)
    assert await node.outcome(release) == "Succeeded"
    assert (node.root / "etc/motd").read_text() == "hello\n"
    assert processes.alive(node.pid("web"))
    log = (node.state / "apps/web/log/app.log").read_text()
    assert log == "web runs web\n"
    status = local_status(node.state)
    assert (status["running"], status["phase"], status["fleet"]) == (release, "Idle", "f")
    await until(lambda: node.hub.observations[-1].running == release)
    mode = "session" if "--sessions" in node.options else "cgroup"
    assert node.hub.observations[-1].mode == mode
    assert node.hub.observations[-1].health == "Healthy"


async def test_an_agent_that_is_killed_leaves_its_apps_and_adopts_them(node: Node) -> None:
    release = await node.hub.publish(await node.app("web"), await node.app("db"))
    assert await node.outcome(release) == "Succeeded"
    before = node.pid("web"), node.pid("db")
    await node.end(signal.SIGKILL)
    assert processes.alive(before[0])
    await node.start()
    await until(lambda: node.log().count("adopted") >= 2, node.log)
    assert (node.pid("web"), node.pid("db")) == before
    os.kill(before[0], signal.SIGKILL)
    await until(lambda: node.pid("web") not in (0, before[0]), node.log)
    assert node.pid("db") == before[1]


async def test_only_what_changed_is_restarted(node: Node) -> None:
    web, db = await node.app("web"), await node.app("db")
    first = await node.hub.publish(web, db)
    assert await node.outcome(first) == "Succeeded"
    pids = node.pid("web"), node.pid("db")
    newer = await node.app("web", STEADY + "# newer\n")
    second = await node.hub.publish(newer, db, stable=first)
    assert await node.outcome(second) == "Succeeded"
    assert node.pid("db") == pids[1]
    assert node.pid("web") not in (0, pids[0])


async def test_a_release_whose_app_crashes_goes_back_by_itself(node: Node) -> None:
    config = FilesConfig("motd", (ConfigFile("/etc/motd", "old\n"),))
    good = await node.hub.publish(await node.app("web"), config)
    assert await node.outcome(good) == "Succeeded"
    crashing = await node.app("web", "#!/bin/sh\nexit 3\n")
    changed = FilesConfig("motd", (ConfigFile("/etc/motd", "new\n"),))
    bad = await node.hub.publish(crashing, changed, stable=good)
    assert await node.outcome(bad) == "Failed"
    receipt = next(r for r in node.hub.receipts if r.release == bad)
    assert "exit code 3" in receipt.reason
    assert receipt.running == good
    assert os.readlink(node.state / "current").endswith(good)
    assert (node.root / "etc/motd").read_text() == "old\n"
    await until(lambda: processes.alive(node.pid("web")))


async def test_a_release_that_never_becomes_ready_goes_back_by_itself(node: Node) -> None:
    good = await node.hub.publish(await node.app("web"))
    assert await node.outcome(good) == "Succeeded"
    never = Probe(ExecProbe(("false",)), period_s=0.1, timeout_s=1.0, failure_threshold=3)
    bad = await node.hub.publish(
        await node.app("web", STEADY + "# 2\n", probes=Probes(startup=never)), stable=good
    )
    assert await node.outcome(bad) == "Failed"
    assert "startup probe" in next(r for r in node.hub.receipts if r.release == bad).reason


async def test_drift_is_corrected_and_a_file_that_left_the_config_is_removed(node: Node) -> None:
    quick = NodeSettings(drift_interval_s=0.2)
    rule = OnChange(paths=("/etc",), action="restart", app="web")
    files = (ConfigFile("/etc/a", "a\n"), ConfigFile("/etc/b", "b\n"))
    web = await node.app("web")
    first = await node.hub.publish(web, FilesConfig("c", files, (rule,)), settings=quick)
    assert await node.outcome(first) == "Succeeded"
    pid = node.pid("web")
    (node.root / "etc/a").write_text("changed by hand\n")
    # The interval of the first release counts from the next look on.
    await node.end(signal.SIGTERM)
    await node.start()
    await until(lambda: (node.root / "etc/a").read_text() == "a\n", node.log)
    await until(lambda: node.pid("web") not in (0, pid), node.log)
    second = await node.hub.publish(web, FilesConfig("c", files[:1]), stable=first)
    assert await node.outcome(second) == "Succeeded"
    assert not (node.root / "etc/b").exists()


async def test_a_secret_is_opened_on_the_node_and_lies_nowhere_else(node: Node) -> None:
    recipient = str(MachineIdentity(node.state / "identity").age_identity().to_public())
    sealed = pyrage.encrypt(
        encode({"password": "hunter2-hunter2"}), [pyrage.x25519.Recipient.from_str(recipient)]
    )
    digest, source = Digest.of(sealed).sha256, "5" * 64
    await node.hub.objects.put(digest, sealed)
    node.hub.seal(source, digest)
    secret = SealedSecret("mqtt", source, "/run/secrets/mqtt", ("password",))
    script = '#!/bin/sh\ntest -r "$2/run/secrets/mqtt/password" || exit 9\nexec sleep 1000\n'
    app = await node.app("web", script)
    app = msgspec.structs.replace(app, command=("./run", "web", str(node.root)))
    first = await node.hub.publish(app, secret)
    assert await node.outcome(first) == "Succeeded", node.log()
    written = node.root / "run/secrets/mqtt/password"
    assert written.read_text() == "hunter2-hunter2"
    assert written.stat().st_mode & 0o777 == 0o400
    for path in node.state.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes()
    second = await node.hub.publish(app, stable=first)
    assert await node.outcome(second) == "Succeeded"
    assert not written.exists()
