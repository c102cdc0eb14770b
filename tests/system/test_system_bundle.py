"""A site without a network: what the hub knows comes on a stick, and the node runs it."""

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from shell_of import Shell

from edgewise.testing.git import WorkTree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

HEAD = "apiVersion: edgewise.dev/v1\nkind: "
FILES = {
    "edgewise.yaml": f"{HEAD}Workspace\nmetadata: {{name: acme}}\nspec: {{}}\n",
    "fleets/shops.yaml": f"{HEAD}Fleet\nmetadata: {{name: shops}}\nspec:\n"
    "  selector: {matchLabels: {site: shop}}\n  apps: [{ref: {name: hello}}]\n",
    "nodes/all.yaml": f"{HEAD}NodeSet\nmetadata: {{name: all}}\nspec:\n"
    "  nodes: [{name: till, labels: {site: shop}}]\n",
}
APP = (
    HEAD + "App\nmetadata: {{name: hello}}\nspec:\n  type: process\n"
    '  artifact: {{ref: hello, version: "{version}"}}\n  command: [./hello]\n'
)


def good(shell: Shell, *arguments: str, cwd: Path | None = None) -> str:
    done = shell.run(*arguments, cwd=cwd)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def agent(shell: Shell, state: Path) -> Iterator[None]:
    with (shell.home / "agent.log").open("a") as log:
        running = subprocess.Popen(
            [sys.executable, "-P", "-m", "edgewise.roles.agent", "--state", str(state),
             "--root", str(shell.home / "root"), "--sessions", "--stop-apps"],
            env=shell.environment(), stdout=log, stderr=log,
        )  # fmt: skip
        try:
            yield
        finally:
            running.terminate()
            running.wait(20)


def publish(shell: Shell, tree: WorkTree, version: str) -> None:
    program = shell.home / f"tree-{version}"
    program.mkdir()
    (program / "hello").write_text(f"#!/bin/sh\nexec sleep {version.replace('.', '')}000\n")
    (program / "hello").chmod(0o755)
    for page in range(60):
        (program / f"page-{page}").write_text(f"This is page {page} of a manual. " * 40)
    data = random.Random(1).randbytes(1_000_000)
    (program / "data").write_bytes(data[:500_000] + version.encode() + data[500_000:])
    built = str(shell.home / "built")
    good(
        shell, "artifact", "build", str(program), "--name", "hello", "--version", version,
        "--to", built,
    )  # fmt: skip
    good(shell, "artifact", "publish", "hello", version, "--from", built)
    tree.commit({**FILES, "apps/hello.yaml": APP.format(version=version)})
    good(shell, "push", cwd=tree.path)


def checked_out_by_its_pack(shell: Shell, folder: Path) -> None:
    out = folder / "out"
    done = shell.run("artifact", "checkout", "hello", "2.0", "--to", str(out), "-o", "json")
    assert done.returncode == 0, done.stderr
    assert "fetched 62 of 62 contents" in done.stderr
    assert "each content by itself" not in done.stderr
    assert len(list(out.iterdir())) == 62
    assert (out / "page-7").read_bytes() == (shell.home / "tree-2.0" / "page-7").read_bytes()
    assert json.loads(done.stdout)["fetched"] < 1_050_000


def running(shell: Shell, state: Path) -> str:
    status = json.loads(good(shell, "agent", "status", "--state", str(state), "-o", "json"))
    return str(status.get("running", "")) if status.get("phase") == "Idle" else ""


def fleet(shell: Shell) -> dict[str, str]:
    found: dict[str, str] = json.loads(good(shell, "status", "-o", "json"))["fleets"][0]
    return found


@pytest.mark.parametrize("to", ["shops.bundle", "stick"])
async def test_a_node_without_a_network_runs_what_came_on_a_stick(tmp_path: Path, to: str) -> None:
    shell, state = Shell(tmp_path / "home"), tmp_path / "node"
    tree = WorkTree(shell.home / "shops")
    stick = tmp_path / to
    if to == "stick":
        stick.mkdir()
    with shell.up("--org", "acme") as url:
        publish(shell, tree, "1.0")
        token = good(shell, "node", "token").strip().splitlines()[-1]
        good(shell, "agent", "join", token, "--name", "till", "--state", str(state))
        with agent(shell, state):
            await _until(lambda: running(shell, state))
        first = running(shell, state)
        publish(shell, tree, "2.0")  # the node is away
        await _until(lambda: fleet(shell)["candidate"])
        second = fleet(shell)["candidate"]
        line = ("bundle", "export", "--fleet", "shops", "--to", str(stick), "--release", second)
        if to == "stick":
            checked_out_by_its_pack(shell, tmp_path)
        said = json.loads(good(shell, *line, "--from", first, "-o", "json"))
        assert (said["deltas"], said["brought"] >= 1_000_000) == (1, True)
        assert said["size"] < 100_000
        again = (*line[:5], str(tmp_path / "whole.bundle"), *line[6:], "--whole", "--from", first)
        assert json.loads(good(shell, *again, "-o", "json"))["size"] > 1_000_000
        packed = (*line[:5], str(tmp_path / "packed.bundle"), *line[6:], "--packs")
        assert json.loads(good(shell, *packed, "-o", "json"))["deltas"] == 1
    # From here on there is no hub.
    shown = json.loads(good(shell, "bundle", "show", str(stick), "-o", "json"))
    assert (shown["release"], shown["verified"], shown["nodes"]) == (second, True, ["till"])
    assert (shown["deltas"], shown["leaves_out"]) == (1, [first])
    with agent(shell, state):
        await _until(lambda: running(shell, state) == first)
        line = ("bundle", "import", str(stick), "--state", str(state))
        assert "would take" in good(shell, *line, "--dry-run")
        assert json.loads(good(shell, *line, "-o", "json"))["agent"] > 0
        await _until(lambda: running(shell, state) == second)
    assert json.loads(good(shell, *line, "-o", "json"))["agent"] == 0
    # The hub is back, hears of it, and has the last word again.
    with shell.up("--org", "acme", listen=url.removeprefix("https://")), agent(shell, state):
        await _until(lambda: second in good(shell, "node", "show", "till", "-o", "json"))


async def _until(holds: object, within: float = 40) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while not await asyncio.to_thread(holds):  # type: ignore[arg-type]
        assert loop.time() < end
        await asyncio.sleep(0.2)
