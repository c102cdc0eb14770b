"""One release on one machine: its files, its secrets, its apps, in this order.

Files come first because an app that starts reads them; what reacts to a changed file is
told after the apps were started or left alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, assert_never

from edgewise.heal import drift
from edgewise.heal.drift import Remove, Write
from edgewise.heal.on_agent import Supervisor, worst
from edgewise.heal.order import changed_apps
from edgewise.heal.ports import Launch, Machine
from edgewise.host.files import ConfigFiles, Place
from edgewise.host.secrets import SecretFiles
from edgewise.model.errors import EdgewiseError, NeedsPerson
from edgewise.protocol.content import Hook, OnChange, ProcessApp
from edgewise.protocol.installed import Installed, InstalledSecret
from edgewise.rollout.node_ports import Body, Look
from edgewise.runtime.log import Log

RUN_S: Final = timedelta(seconds=60)
"""How long an ``onChange`` command may take."""

Opener = Callable[[str], Awaitable[dict[str, str]]]
"""Digest of a sealed object to its file names and texts; runs where the keys are."""


@dataclass(frozen=True, slots=True)
class Organs:
    """What a body is made of."""

    supervisor: Supervisor
    machine: Machine
    configs: ConfigFiles
    secrets: SecretFiles
    open_sealed: Opener
    releases: Path
    """Directory of the releases."""
    log: Log
    heard: Callable[[Installed | None], None] = lambda installed: None
    """Told of every release before its apps are started; may raise EdgewiseError."""
    worried: Callable[[], str] = lambda: ""
    """What else a person should know of this node; empty when there is nothing."""


class NodeBody:
    """What ``rollout.on_agent`` drives."""

    def __init__(self, organs: Organs) -> None:
        self._organs = organs
        self._drifted: tuple[str, ...] = ()
        self._problem = ""

    async def run(self, installed: Installed | None) -> None:
        """See ``Body.run``. Apps run even when a file cannot be written; that is raised last."""
        problems: list[str] = []
        changed: list[str] = []
        try:
            self._organs.heard(installed)
        except EdgewiseError as error:
            problems.append(str(error))
        try:
            changed = self._files(installed)
        except (EdgewiseError, OSError) as error:
            problems.append(str(error))
        try:
            changed += await self._secrets(installed)
        except (EdgewiseError, OSError) as error:
            problems.append(str(error))
        begun = await self._organs.supervisor.want(self._launches(installed))
        problems += await self._react(installed, changed, begun)
        self._problem = "; ".join(problems)[:500]
        self._organs.supervisor.on_change()
        if problems:
            raise NeedsPerson(self._problem)

    async def update(self, installed: Installed, was: Installed | None) -> None:
        """See ``Body.update``: hooks may run twice when the agent dies among them."""
        changed = changed_apps(installed, was)
        launches = {launch.name: launch for launch in self._launches(installed)}
        for name in changed:
            await self._hooks(launches[name], launches[name].app.pre_update)
        await self.run(installed)
        for name in changed:
            await self._hooks(launches[name], launches[name].app.post_update)

    async def settle(self, installed: Installed, was: Installed | None) -> str:
        return await self._organs.supervisor.settle(changed_apps(installed, was))

    def confirm(self) -> None:
        self._organs.configs.confirm()

    def look(self) -> Look:
        apps = self._organs.supervisor.statuses()
        problem = self._problem or self._organs.worried()
        return Look(worst(apps), apps, self._drifted, problem)

    def in_use(self) -> frozenset[str]:
        return self._organs.supervisor.releases_in_use()

    # Apps

    def _launches(self, installed: Installed | None) -> tuple[Launch, ...]:
        if installed is None:
            return ()
        folder = self._organs.releases / installed.release
        return tuple(
            Launch(a.app, a.part, installed.release, str(folder / a.directory))
            for a in installed.apps
        )

    async def _hooks(self, launch: Launch, hooks: Iterable[Hook]) -> None:
        for hook in hooks:
            answer = await self._organs.machine.run(launch, hook.command, hook.timeout_s)
            self._organs.log.event(
                "hook", app=launch.name, command=hook.command[0], good=answer.good
            )
            if not answer.good and hook.on_failure == "Rollback":
                raise NeedsPerson(f"hook of app {launch.name}: {answer.said}")

    # Files

    def _files(self, installed: Installed | None) -> list[str]:
        """Write and remove; returns paths whose content changed."""
        configs = self._organs.configs
        wanted = drift.wanted_files(c.config for c in installed.configs) if installed else {}
        steps = drift.plan(wanted, configs.look(wanted), configs.written)
        report_only = installed is not None and installed.settings.drift == "Report"
        changed, drifted = [], []
        for step in steps:
            match step:
                case Write(want, "drifted") if report_only:
                    drifted.append(want.file.path)
                case Write(want, why, content):
                    self._organs.log.decision("write", path=want.file.path, because=why)
                    configs.write(step)
                    if content:
                        changed.append(want.file.path)
                case Remove(path):
                    self._organs.log.decision("remove", path=path, because="not wanted any more")
                    configs.remove(step)
                case _:
                    assert_never(step)
        self._drifted = tuple(drifted)
        return changed

    async def _secrets(self, installed: Installed | None) -> list[str]:
        """Write and remove; returns files that changed."""
        secrets = self._organs.secrets
        wanted: tuple[InstalledSecret, ...] = installed.secrets if installed else ()
        changed = []
        for secret in secrets.missing(wanted):
            texts = await self._organs.open_sealed(secret.sealed)
            changed += secrets.write(secret, texts)
            self._organs.log.event("secret written", secret=secret.secret.name)
        secrets.remove_others(wanted)
        return changed

    async def _react(
        self, installed: Installed | None, changed: list[str], begun: frozenset[str]
    ) -> list[str]:
        """Do what ``onChange`` says; returns what went wrong.

        An app that was started just now has read the new files already.
        """
        if installed is None or not changed:
            return []
        launches = {launch.name: launch for launch in self._launches(installed)}
        problems = []
        for rule in drift.reactions((c.config for c in installed.configs), changed):
            if rule.app in begun and rule.action != "run":
                continue
            self._organs.log.decision("onChange", because=changed[0], action=rule.action)
            problem = await self._act(rule, launches)
            if problem:
                problems.append(problem)
        return problems

    async def _act(self, rule: OnChange, launches: dict[str, Launch]) -> str:
        match rule.action:
            case "restart":
                self._organs.supervisor.restart(rule.app, "its config changed")
            case "signal":
                await self._organs.supervisor.signal(rule.app, rule.signal)
            case "run":
                launch = launches.get(rule.app) or _nobody(rule)
                seconds = RUN_S.total_seconds()
                answer = await self._organs.machine.run(launch, rule.command, seconds)
                return "" if answer.good else f"onChange {rule.command[0]}: {answer.said}"
            case _:
                assert_never(rule.action)
        return ""


def _nobody(rule: OnChange) -> Launch:
    """For a command that belongs to no app."""
    return Launch(ProcessApp("onchange", {}, rule.command), "", "", "/")


def drop_in(root: Path) -> Place:
    """Where absolute paths of documents lie; the prefix is made when it is not there."""
    root.mkdir(parents=True, exist_ok=True)
    return Place(root)


def _meets_its_port(body: NodeBody) -> Body:
    return body
