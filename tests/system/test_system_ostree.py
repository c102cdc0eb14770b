"""Debian's ostree pulls commits from a real relay over mutual TLS, and deploys them."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "fault"))

from image_region import publish
from relay_region import Node, RelayProcess, SecureHub, join_node, region

from edgewise.backends.files.builds import BuildFolder
from edgewise.backends.files.ostree_import import import_commit
from edgewise.cli.main import app
from edgewise.delivery.builder import make_artifact
from edgewise.model.errors import BadUsage
from edgewise.testing.images import program

pytestmark = [pytest.mark.slow, pytest.mark.images]

Place = tuple[SecureHub, RelayProcess, Node]
REF = "os/x86_64/stable"


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    for needed in ("ostree", "gpg"):
        assert shutil.which(needed), f"{needed} is missing: `make test-oci` installs it"
    async with region(tmp_path) as (hub, relay):
        token = await hub.token(role="node", region="eu", via="frankfurt")
        (tmp_path / "node").mkdir()
        yield hub, relay, await join_node(tmp_path / "node", "identity", token)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture
def gpg() -> Iterator[str]:
    """A folder with a key; gpg's agent wants a short path."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o700)
        run(
            "gpg", "--homedir", folder, "--batch", "--passphrase", "", "--quick-gen-key",
            "os@example.test", "ed25519", "sign", "never",
        )  # fmt: skip
        yield folder
        subprocess.run(["gpgconf", "--homedir", folder, "--kill", "all"], check=False)


class Source:
    """An operating system's repository, with a commit for each call."""

    def __init__(self, folder: Path, gpg: str = "") -> None:
        self.repo = folder / "source"
        self.root = folder / "root"
        self._sign = ("--gpg-sign=os@example.test", f"--gpg-homedir={gpg}") if gpg else ()
        run("ostree", "init", f"--repo={self.repo}", "--mode=bare-user")
        for file in ("usr/lib/os-release", "usr/etc/hostname", "usr/lib/modules/6.1/vmlinuz"):
            (self.root / file).parent.mkdir(parents=True, exist_ok=True)
            (self.root / file).write_text('ID=test\nVERSION_ID=1\nPRETTY_NAME="Test"\n')
        (self.root / "usr/lib/modules/6.1/initramfs.img").write_bytes(program(8, 4000))
        (self.root / "usr/bin").mkdir()
        for number in range(200):
            (self.root / f"usr/bin/program-{number}").write_bytes(program(number, 20_000))

    def commit(self, changed: int) -> str:
        (self.root / f"usr/bin/program-{changed}").write_bytes(program(changed + 1000, 20_000))
        return run(
            "ostree", "commit", f"--repo={self.repo}", "-b", REF, f"--tree=dir={self.root}",
            "--owner-uid=0", "--owner-gid=0", "--bootable", *self._sign,
        ).strip()  # fmt: skip


async def publish_commit(
    hub: SecureHub, built: Path, source: Source, version: str, static_delta: str = ""
) -> None:
    folder = BuildFolder(built)
    tree, _ = import_commit(folder, source.repo, REF, static_delta)
    artifact = make_artifact("os", version, {"linux/amd64": tree}, shape="ostree")
    folder.add(artifact)
    await publish(hub, built, artifact)
    await asyncio.sleep(0)


def remote(tmp_path: Path, repo: Path, *more: str) -> None:
    """As a person does on a node."""
    done = CliRunner().invoke(
        app,
        [
            "agent",
            "ostree-remote",
            "os",
            "--state",
            str(tmp_path / "node"),
            "--repo",
            str(repo),
            *more,
        ],
    )
    assert done.exit_code == 0, done.output


async def pulled(repo: Path, commit: str, *more: str) -> str:
    """Pull until this commit has come: a relay looks every five seconds."""
    for _ in range(40):
        said = await asyncio.to_thread(_tried, repo, *more)
        ref = repo / "refs" / "remotes" / "edgewise" / REF
        if ref.exists() and ref.read_text().strip() == commit:
            return said
        await asyncio.sleep(0.2)
    raise AssertionError(said)


def _tried(repo: Path, *more: str) -> str:
    command = ["ostree", f"--repo={repo}", "pull", *more, "edgewise", REF]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


async def test_ostree_pulls_signed_commits_from_a_relay_and_deploys_them(
    place: Place, tmp_path: Path, gpg: str
) -> None:
    hub, _, _ = place
    source, built = Source(tmp_path, gpg), tmp_path / "built"
    key = tmp_path / "os.gpg"
    run("gpg", "--homedir", gpg, "--batch", "--export", "-o", str(key), "os@example.test")
    sysroot = tmp_path / "sysroot"
    sysroot.mkdir()
    run("ostree", "admin", "init-fs", str(sysroot))
    run("ostree", "admin", "os-init", "test", f"--sysroot={sysroot}")
    repo = sysroot / "ostree" / "repo"
    remote(tmp_path, repo, "--gpg-key", str(key))
    first = source.commit(1)
    await publish_commit(hub, built, source, "1")
    await pulled(repo, first)
    assert "Good signature" in run("ostree", f"--repo={repo}", "show", f"edgewise:{REF}")
    second = source.commit(2)
    await publish_commit(hub, built, source, "2")
    said = await pulled(repo, second)
    # One program of 20,000 bytes changed, of 4 MB; and what leads to it.
    assert "1 content object" in said or "1 content" in said, said
    run("ostree", f"--repo={repo}", "fsck", "--quiet")
    for revision in (first, second):
        run(
            "ostree", "admin", "deploy", f"--sysroot={sysroot}", "--os=test",
            f"--origin-file={_origin(tmp_path)}", revision,
        )  # fmt: skip
    deployed = run("ostree", "admin", "status", f"--sysroot={sysroot}")
    assert first in deployed
    assert second in deployed


def _origin(tmp_path: Path) -> Path:
    file = tmp_path / "origin"
    file.write_text(f"[origin]\nrefspec=edgewise:{REF}\n")
    return file


async def test_a_commit_that_nobody_signed_is_refused_by_the_node(
    place: Place, tmp_path: Path, gpg: str
) -> None:
    hub, _, _ = place
    source = Source(tmp_path)
    commit = source.commit(1)
    await publish_commit(hub, tmp_path / "built", source, "1")
    key = tmp_path / "os.gpg"
    run("gpg", "--homedir", gpg, "--batch", "--export", "-o", str(key), "os@example.test")
    careful, careless = tmp_path / "careful", tmp_path / "careless"
    for repo, more in ((careful, ("--gpg-key", str(key))), (careless, ("--unsigned",))):
        run("ostree", "init", f"--repo={repo}", "--mode=bare-user")
        remote(tmp_path, repo, *more)
    await pulled(careless, commit)
    assert "signatures" in await asyncio.to_thread(_tried, careful)


async def test_a_static_delta_is_used_where_the_node_has_its_base(
    place: Place, tmp_path: Path
) -> None:
    hub, _, _ = place
    source, repo = Source(tmp_path), tmp_path / "repo"
    run("ostree", "init", f"--repo={repo}", "--mode=bare-user")
    remote(tmp_path, repo, "--unsigned")
    first = source.commit(1)
    await publish_commit(hub, tmp_path / "built", source, "1")
    await pulled(repo, first)
    second = source.commit(2)
    await publish_commit(hub, tmp_path / "built", source, "2", f"{REF}^")
    said = await pulled(repo, second, "--require-static-deltas")
    assert "delta parts" in said, said
    run("ostree", f"--repo={repo}", "fsck", "--quiet")


def test_what_is_no_ref_or_repository_is_refused(tmp_path: Path) -> None:
    folder = BuildFolder(tmp_path / "built")
    for ref in ("--help", "../x", "a b", ""):
        with pytest.raises(BadUsage, match="not the name of a ref"):
            import_commit(folder, tmp_path, ref)
    with pytest.raises(BadUsage, match="ostree pull-local"):
        import_commit(folder, tmp_path, "os/stable")
