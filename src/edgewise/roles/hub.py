"""The hub: how it starts, what goes on by itself, how it stops."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal, cast

import msgspec
import uvloop

from edgewise.backends.sqlite.database import Database
from edgewise.delivery.deltas import DEFAULT, delta_settings
from edgewise.identity.rotation import checked_life
from edgewise.model.errors import BadUsage, EdgewiseError
from edgewise.model.quantity import parse_duration
from edgewise.net.api.attesting import Attestor
from edgewise.net.api.journal import Journal, JournaledLog
from edgewise.net.register import PeopleRegister
from edgewise.net.server import Server, tune_memory
from edgewise.net.sources import checked_urls
from edgewise.net.waiters import Waiters
from edgewise.roles.fleet_source import FleetSource
from edgewise.roles.hub_parts import HubSettings, Upkeep, assemble
from edgewise.roles.passphrase import passphrase_from
from edgewise.rollout.on_hub import Rollouts
from edgewise.runtime.chance import SystemChance
from edgewise.runtime.clock import SystemClock
from edgewise.runtime.credentials import write_private
from edgewise.runtime.log import Log, StreamLog


@dataclass(slots=True)
class Hub:
    """A hub that is open. Make it with ``open_hub``."""

    settings: HubSettings
    url: str
    database: Database
    server: Server
    rollouts: Rollouts
    source: FleetSource
    waiters: tuple[Waiters, Waiters]
    upkeep: Upkeep
    suspicions: asyncio.Queue[tuple[str, str]]
    journal: Journal
    decisions: JournaledLog
    people: PeopleRegister
    log: Log
    attestor: Attestor
    _closed: bool = field(default=False, init=False)

    @property
    def trust(self) -> str:
        """Who signs what runs: ``hub`` or ``builder``."""
        return self.source.trust

    async def run(self) -> None:
        """Everything that goes on by itself, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.rollouts.run())
            tasks.create_task(self.source.run())
            tasks.create_task(self.upkeep.run())
            tasks.create_task(self._note_suspicions())
            tasks.create_task(self.decisions.run())
            tasks.create_task(self.attestor.run())
            tasks.create_task(self.people.run())
            for waiters in self.waiters:
                tasks.create_task(waiters.run())

    async def _note_suspicions(self) -> None:
        while True:
            subject, what = await self.suspicions.get()
            await self.journal.note_once("hub", "suspicion", subject, what)

    async def close(self) -> None:
        """Answer nobody any more and let go of the data directory."""
        if not self._closed:
            self._closed = True
            await self.server.close()
            await self.rollouts.flush()
            await self.people.tidy()
            self.database.close()


async def open_hub(settings: HubSettings, *, log: Log | None = None) -> Hub:
    """Open the data directory, make what is missing, listen.

    Raises NeedsPerson when another hub has the directory, BadUsage for an address that
    cannot be listened on.
    """
    clock = SystemClock()
    log = log or StreamLog(clock, "hub", as_json=settings.log_json)
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = Database.open(settings.data / "hub.db")
    try:
        parts = await assemble(settings, clock, SystemChance(), log, database)
        await parts.server.start(parts.listen)
    except BaseException:
        database.close()
        raise
    return Hub(
        settings,
        parts.url,
        database,
        parts.server,
        parts.rollouts,
        parts.source,
        parts.waiters,
        parts.upkeep,
        parts.suspicions,
        parts.journal,
        parts.decisions,
        parts.people,
        log,
        parts.attestor,
    )


async def run(settings: HubSettings, ready: Callable[[Hub], None] | None = None) -> None:
    """A hub until SIGTERM or SIGINT. ``ready`` is called once it serves.

    ``ready.json`` in the data directory says where, while it runs.
    """
    hub = await open_hub(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, stop.set)
    file = settings.data / "ready.json"
    try:
        work = asyncio.create_task(hub.run())
        said = {"url": hub.url, "pid": os.getpid(), "spiffe_id": hub.upkeep.identity}
        write_private(file, msgspec.json.encode(said), mode=0o644)
        hub.log.event("serving", url=hub.url, data=str(settings.data))
        if ready is not None:
            ready(hub)
        tune_memory()
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if work.done():
            work.result()
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
    finally:
        file.unlink(missing_ok=True)
        await hub.close()


def duration(option: str, text: str) -> timedelta:
    """``90s``, ``5m``. Raises BadUsage for anything that is not, or not above zero."""
    try:
        found = parse_duration(text)
    except ValueError as error:
        raise BadUsage(f"{option}: {error}") from error
    if found <= timedelta():
        raise BadUsage(f"{option} {text} is not above zero", hint="for example 60s")
    return found


def main(arguments: list[str] | None = None) -> int:
    """``python -m edgewise.roles.hub``: `edgewise up` without the words."""
    parser = argparse.ArgumentParser(prog="edgewise.roles.hub", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--listen", default="127.0.0.1:8443")
    parser.add_argument("--org", default="edgewise")
    parser.add_argument("--url", action="append", default=[])
    parser.add_argument("--branch", default="main")
    parser.add_argument("--git-url", default="")
    parser.add_argument("--poll", default="1m")
    parser.add_argument("--trust", choices=("hub", "builder"))
    parser.add_argument("--builder-key", action="append", default=[], type=Path)
    parser.add_argument("--webhook-secret", type=Path)
    parser.add_argument("--oidc", type=Path)
    parser.add_argument("--hold", default="60s")
    parser.add_argument("--log-json", action="store_true")
    parser.add_argument("--node-life", default="45d")
    parser.add_argument("--root-passphrase-file", type=Path)
    parser.add_argument("--root-key", default="")
    parser.add_argument("--delta-versions", type=int, default=DEFAULT.versions)
    parser.add_argument("--content-url", action="append", default=[])
    parser.add_argument("--delta-percent", type=int, default=DEFAULT.percent)
    parser.add_argument("--delta-recompress", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args(arguments)
    try:
        settings = HubSettings(
            data=given.data,
            organisation=given.org,
            listen=given.listen,
            urls=tuple(given.url),
            branch=given.branch,
            git_url=given.git_url,
            poll=duration("--poll", given.poll),
            trust=cast(Literal["hub", "builder"] | None, given.trust),
            builder_keys=tuple(given.builder_key),
            hold=duration("--hold", given.hold),
            webhook_secret=given.webhook_secret,
            oidc=given.oidc,
            log_json=given.log_json,
            node_life=checked_life("--node-life", duration("--node-life", given.node_life)),
            root_key=given.root_key,
            root_passphrase=passphrase_from(given.root_passphrase_file),
            deltas=delta_settings(
                given.delta_versions, given.delta_percent, recompress=given.delta_recompress
            ),
            content_urls=checked_urls(given.content_url),
        )
        uvloop.run(run(settings))
    except EdgewiseError as error:
        hint = f" Next: {error.hint}." if error.hint else ""
        print(f"edgewise: {error}.{hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
