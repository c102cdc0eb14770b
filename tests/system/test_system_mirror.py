"""A hub that follows somebody else's repository: by looking, and when a webhook tells it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.client
import json
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fleet_on_laptop import Fleet, free_port

from edgewise.roles.laptop import laptop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
WORKSPACE = "apiVersion: edgewise.dev/v1\nkind: Workspace\nmetadata:\n  name: demo\n"
SECRET = "battery-staple"


class Elsewhere:
    """A git server: a bare repository and a clone to commit in."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        top = fleet.laptop.directory
        self.bare = top / "server" / "fleet.git"
        self.clone = top / "clone"

    async def open(self) -> None:
        run = self._fleet.laptop.run
        await run("git", "init", "-q", "--bare", "-b", "main", str(self.bare))
        await run("git", "clone", "-q", str(self.bare), str(self.clone))

    async def commit(self, extra: str = "") -> str:
        """Commit a Workspace that ends in ``extra`` and push it to the bare repository."""
        (self.clone / "edgewise.yaml").write_text(WORKSPACE + extra)
        git = ("git", "-C", str(self.clone), "-c", "user.name=T", "-c", "user.email=t@example")
        run = self._fleet.laptop.run
        await run(*git, "add", "-A")
        await run(*git, "commit", "-q", "-m", f"change {extra!r}")
        await run(*git, "push", "-q", "origin", "HEAD:main")
        return await run(*git, "rev-parse", "HEAD")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """A hub is all there is, and it is not started yet."""
    async with laptop(tmp_path) as processes:
        yield Fleet(processes)


def hook(fleet: Fleet, body: bytes, secret: str) -> int:
    """POST a GitHub push event, as GitHub does: with a signature and no certificate."""
    context = fleet.client().context
    address = context.told.url.removeprefix("https://")
    tls = ssl.create_default_context(cafile=str(context.roots))
    line = http.client.HTTPSConnection(address, context=tls, timeout=10)
    mac = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    headers = {"X-GitHub-Event": "push", "X-Hub-Signature-256": f"sha256={mac}"}
    try:
        line.request("POST", "/v1/hooks/github", body, headers)
        return line.getresponse().status
    finally:
        line.close()


async def test_a_local_repository_is_followed_by_looking(fleet: Fleet) -> None:
    elsewhere = Elsewhere(fleet)
    await elsewhere.open()
    first = await elsewhere.commit()
    await fleet.start_hub("--git-url", str(elsewhere.bare))
    await fleet.until(lambda: fleet.status().source.compiled.endswith(first), "the first commit")
    second = await elsewhere.commit("spec: {prune: false}\n")
    await fleet.until(lambda: fleet.status().source.compiled.endswith(second), "the next", 10)
    broken = await elsewhere.commit("spec: {prune: perhaps}\n")
    await fleet.until(lambda: fleet.status().source.revision.endswith(broken), "a bad one", 10)
    source = fleet.status().source
    assert source.compiled.endswith(second)
    assert [(p.file, p.line) for p in source.problems] == [("edgewise.yaml", 5)]


async def test_a_webhook_wakes_a_hub_that_looks_once_an_hour(fleet: Fleet) -> None:
    elsewhere = Elsewhere(fleet)
    await elsewhere.open()
    first = await elsewhere.commit()
    port, secret = free_port(), fleet.laptop.directory / "secret"
    secret.write_text(SECRET + "\n")
    daemon = await asyncio.create_subprocess_exec(
        "git", "daemon", "--export-all", "--listen=127.0.0.1", f"--port={port}",
        f"--base-path={elsewhere.bare.parent}", "--reuseaddr",
    )  # fmt: skip
    try:
        await fleet.start_hub(
            "--git-url", f"git://127.0.0.1:{port}/fleet.git",
            "--poll", "1h", "--webhook-secret", str(secret),
        )  # fmt: skip
        await fleet.until(lambda: fleet.status().source.compiled.endswith(first), "the first")
        second = await elsewhere.commit("spec: {prune: false}\n")
        push = json.dumps({"ref": "refs/heads/main", "after": second}).encode()
        assert hook(fleet, push, "a guess") == 422
        await asyncio.sleep(1.5)
        assert fleet.status().source.revision.endswith(first), "nobody has told it yet"
        assert hook(fleet, push, SECRET) == 202
        await fleet.until(lambda: fleet.status().source.compiled.endswith(second), "the next", 10)
    finally:
        daemon.terminate()
        await daemon.wait()


async def test_a_hub_whose_repository_is_away_says_so_and_catches_up(fleet: Fleet) -> None:
    elsewhere = Elsewhere(fleet)
    await elsewhere.open()
    first = await elsewhere.commit()
    await fleet.start_hub("--git-url", str(elsewhere.bare))
    await fleet.until(lambda: fleet.status().source.compiled.endswith(first), "the first commit")
    away = elsewhere.bare.rename(elsewhere.bare.with_name("away.git"))
    await fleet.kill("hub")
    await fleet.start_hub("--git-url", str(elsewhere.bare))

    def told() -> bool:
        return [c.reason for c in fleet.status().source.conditions][:1] == ["SourceUnreachable"]

    await fleet.until(told, "it says that it cannot reach its repository", 10)
    assert fleet.status().source.compiled.endswith(first), "what it follows is still known"
    away.rename(elsewhere.bare)
    second = await elsewhere.commit("spec: {prune: false}\n")
    await fleet.until(lambda: fleet.status().source.compiled.endswith(second), "the next", 20)
    assert not told()
