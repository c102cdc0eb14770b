"""Trust mode ``builder``: a hub schedules only what a builder signed, from push to running."""

import asyncio
import json
from pathlib import Path

import pytest
from shell_of import Shell

from edgewise.testing.git import WorkTree

pytestmark = pytest.mark.slow

FLEET = """\
apiVersion: edgewise.dev/v1
kind: Fleet
metadata: {name: shops}
spec:
  selector: {matchLabels: {site: shop}}
  apps: [{ref: {name: hello}}]
"""
APP = """\
apiVersion: edgewise.dev/v1
kind: App
metadata: {name: hello}
spec:
  type: process
  artifact: {ref: hello, version: "1.0"}
  command: [./hello]
"""
NODES = """\
apiVersion: edgewise.dev/v1
kind: NodeSet
metadata: {name: all}
spec:
  nodes: [{name: till, labels: {site: shop, edgewise.dev/platform: linux-amd64}}]
"""


def workspace(trust: str) -> str:
    return (
        "apiVersion: edgewise.dev/v1\nkind: Workspace\nmetadata: {name: acme}\n"
        f"spec: {{trust: {trust}}}\n"
    )


def repo(shell: Shell, trust: str = "builder") -> WorkTree:
    tree = WorkTree(shell.home / "shops")
    tree.commit(
        {
            "edgewise.yaml": workspace(trust), "fleets/shops.yaml": FLEET,
            "apps/hello.yaml": APP, "nodes/all.yaml": NODES,
        }
    )  # fmt: skip
    return tree


def _head(tree: WorkTree) -> str:
    return tree.git("rev-parse", "HEAD").stdout.strip()


def program(shell: Shell) -> str:
    folder = shell.home / "tree"
    folder.mkdir()
    (folder / "hello").write_text("#!/bin/sh\nexec sleep 1000\n")
    (folder / "hello").chmod(0o755)
    return str(folder)


def good(shell: Shell, *arguments: str, cwd: Path | None = None) -> str:
    done = shell.run(*arguments, cwd=cwd)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def source(shell: Shell) -> dict[str, str]:
    conditions = json.loads(good(shell, "status", "-o", "json"))["source"]["conditions"]
    return {one["type"]: one["reason"] for one in conditions}


async def test_a_push_waits_for_the_builder_and_moves_once_it_is_signed(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "home")
    key = str(shell.home / "builder.pem")
    good(shell, "artifact", "key", key)
    tree = repo(shell)
    with shell.up("--org", "acme", "--trust", "builder", "--builder-key", f"{key}.pub"):
        built = ("--from", str(shell.home / "built"))
        good(
            shell, "artifact", "build", program(shell), "--name", "hello", "--version", "1.0",
            "--platform", "linux/amd64", "--to", built[1],
        )  # fmt: skip
        unsigned = shell.run("artifact", "publish", "hello", "1.0", *built)
        assert unsigned.returncode == 4
        assert "builder" in unsigned.stderr
        good(shell, "artifact", "publish", "hello", "1.0", *built, "--key", key)

        plan = json.loads(good(shell, "plan", str(tree.path), "-o", "json"))
        assert [fleet["fleet"] for fleet in plan["fleets"]] == ["shops"]
        good(shell, "push", cwd=tree.path)
        assert source(shell)["Stalled"] == "AwaitingBuilderSignature"
        said = shell.run("status").stdout
        assert f"edgewise release sign --head {_head(tree)[:12]} --key FILE" in said
        assert json.loads(good(shell, "status", "-o", "json"))["fleets"] == []
        waiting = shell.run("push", "--wait", "--timeout", "1s", cwd=tree.path)
        assert waiting.returncode == 3
        assert "builder" in waiting.stderr

        signed = json.loads(
            good(shell, "release", "sign", str(tree.path), "--key", key, "-o", "json")
        )
        assert signed["signed"]
        await _until(lambda: source(shell).get("Ready") == "Compiled")
        status = json.loads(good(shell, "status", "-o", "json"))
        (fleet,) = status["fleets"]
        assert signed["releases"] == {"shops": fleet["stable"] or fleet["candidate"]}
        # What CI says before anything moves is what the hub then does.
        assert plan["fleets"][0]["after"] == signed["releases"]["shops"]
        again = json.loads(
            good(shell, "release", "sign", str(tree.path), "--key", key, "-o", "json")
        )
        assert not again["signed"]
        assert again["releases"] == signed["releases"]
    # A restart follows what was signed, and remembers who signs.
    with shell.up():
        await _until(lambda: source(shell).get("Ready") == "Compiled")
        assert json.loads(good(shell, "status", "-o", "json"))["trust"] == "builder"


async def test_git_may_ask_for_a_builder_where_the_hub_could_sign(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "home")
    tree = repo(shell, trust="hub")
    with shell.up("--org", "acme"):
        built = ("--from", str(shell.home / "built"))
        good(
            shell, "artifact", "build", program(shell), "--name", "hello", "--version", "1.0",
            "--platform", "linux/amd64", "--to", built[1],
        )  # fmt: skip
        good(shell, "artifact", "publish", "hello", "1.0", *built)
        good(shell, "push", cwd=tree.path)
        assert source(shell) == {"Ready": "Compiled"}
        before = json.loads(good(shell, "status", "-o", "json"))["fleets"][0]["stable"]
        tree.commit(
            {
                "edgewise.yaml": workspace("builder"),
                "apps/hello.yaml": APP.replace("[./hello]", '[./hello, "2"]'),
            }
        )
        good(shell, "push", cwd=tree.path)
        assert source(shell)["Stalled"] == "AwaitingBuilderSignature"
        assert json.loads(good(shell, "status", "-o", "json"))["fleets"][0]["stable"] == before
        key = str(shell.home / "builder.pem")
        good(shell, "artifact", "key", key)
        stranger = shell.run("release", "sign", str(tree.path), "--key", key)
        assert stranger.returncode in (4, 5)
    good(shell, "key", "add", f"{key}.pub")
    with shell.up():
        careful = shell.run("release", "sign", str(tree.path), "--key", key)
        assert careful.returncode == 5
        assert "--adopt" in careful.stderr
        good(shell, "release", "sign", str(tree.path), "--key", key, "--adopt")
        await _until(lambda: source(shell) == {"Ready": "Compiled"})


async def test_the_offline_keys_live_elsewhere_and_come_back_for_a_moment(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "home")
    with shell.up("--trust", "builder"):
        assert shell.run("key", "ls").returncode == 4
    safe = shell.home / "safe"
    safe.mkdir()
    keys = shell.data / "keys"
    for name in ("root", "targets"):
        (keys / f"{name}.pem").rename(safe / f"{name}.pem")
    (keys / "builder.pem").unlink(missing_ok=True)
    public = shell.home / "ci.pem"
    good(shell, "artifact", "key", str(public))
    refused = shell.run("key", "add", f"{public}.pub")
    assert refused.returncode == 4
    assert "targets.pem is not here" in refused.stderr
    good(shell, "key", "add", f"{public}.pub", "--offline", str(safe))
    good(shell, "key", "rotate", "online", "--offline", str(safe))
    good(shell, "key", "rotate", "root", "--offline", str(safe))
    assert (safe / "root.old.pem").exists()
    assert not (keys / "root.pem").exists()
    ring = json.loads(good(shell, "key", "ls", "-o", "json"))
    assert len(ring["builders"]) == 1
    with shell.up():
        assert "offline keys" in good(shell, "doctor")
        assert shell.run("status").returncode == 0
    good(shell, "key", "remove", ring["builders"][0][:8], "--offline", str(safe))
    assert shell.run("key", "remove", "ffffffff", "--offline", str(safe)).returncode == 2


async def _until(holds: object, within: float = 20) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while not await asyncio.to_thread(holds):  # type: ignore[arg-type]
        assert loop.time() < end
        await asyncio.sleep(0.1)
