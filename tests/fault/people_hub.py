"""A real hub in this process, and the real command line against it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from edgewise.cli.client import Client, Context
from edgewise.cli.main import app
from edgewise.roles.hub import Hub, open_hub
from edgewise.roles.hub_parts import HubSettings
from edgewise.runtime.credentials import certificates_in, fingerprint
from edgewise.testing.git import WorkTree
from edgewise.testing.log import ListLog

PASSWORD = "correct horse battery"
WORKSPACE = "apiVersion: edgewise.dev/v1\nkind: Workspace\nmetadata: {name: acme}\n"


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class PeopleHub:
    hub: Hub
    folder: Path
    log: ListLog
    work: WorkTree = field(init=False)

    def __post_init__(self) -> None:
        self.work = WorkTree(self.folder / "work")

    @property
    def root(self) -> str:
        return fingerprint(certificates_in(self.admin / "roots.pem")[0])

    @property
    def admin(self) -> Path:
        return self.hub.settings.data / "operator"

    async def cli(self, who: str, *arguments: str, stdin: str = "", token: str = "") -> Said:
        """``who``: a login's folder, or ``admin``."""
        context = self.admin if who == "admin" else self.folder / who
        env = {"EDGEWISE_API_TOKEN": token}

        def run() -> Said:
            asked = ["--context", str(context), *arguments]
            done = CliRunner().invoke(app, asked, input=stdin, env=env)
            if done.exception and not isinstance(done.exception, SystemExit):
                raise done.exception
            return Said(done.exit_code, done.stdout, done.stderr)

        return await asyncio.to_thread(run)

    async def login(self, name: str, password: str = PASSWORD) -> Said:
        return await self.cli(
            name, "login", "--hub", self.hub.url, "--root", self.root, "--user", name,
            "--password-stdin", stdin=password + "\n",
        )  # fmt: skip

    async def add(self, name: str, *groups: str, password: str = PASSWORD) -> None:
        options = [word for group in groups for word in ("--group", group)]
        done = await self.cli(
            "admin", "user", "add", name, "--password-stdin", *options, stdin=password + "\n"
        )
        assert done.code == 0, done.err

    async def bind(self, *bindings: str) -> None:
        """``name role Kind/subject [label=value]``: the administrator pushes them."""
        files = {"edgewise.yaml": WORKSPACE}
        for line in bindings:
            name, role, subject, *label = line.split()
            kind, _, who = subject.partition("/")
            selector = ""
            if label:
                key, _, value = label[0].partition("=")
                selector = f"\n  selector: {{matchLabels: {{{key}: {value}}}}}"
            files[f"policies/{name}.yaml"] = (
                "apiVersion: edgewise.dev/v1\nkind: RoleBinding\n"
                f"metadata: {{name: {name}}}\nspec:\n  role: {role}\n"
                f"  subjects: [{{kind: {kind}, name: {who}}}]{selector}\n"
            )
        self.work.commit(files)
        done = await self.push("admin")
        assert done.code == 0, done.err

    async def push(self, who: str, token: str = "") -> Said:
        return await self.cli(who, "push", "--repo", str(self.work.path), token=token)

    def client(self, who: str) -> Client:
        return Client(Context(self.folder / who / "context.json"))


@contextlib.asynccontextmanager
async def people_hub(folder: Path, **settings: Any) -> AsyncIterator[PeopleHub]:
    log = ListLog()
    os.environ.pop("EDGEWISE_CONTEXT", None)
    wanted = {"data": folder / "hub", "organisation": "acme", "listen": "127.0.0.1:0", **settings}
    hub = await open_hub(HubSettings(**wanted), log=log)
    running = asyncio.create_task(hub.run())
    try:
        yield PeopleHub(hub, folder, log)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await hub.close()
