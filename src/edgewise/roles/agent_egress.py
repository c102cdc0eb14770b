"""The egress gateway of one node: made when the first policy arrives, told of every other."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from edgewise.host import egress_rules
from edgewise.host.callers import Facts
from edgewise.host.cgroups import Cgroups, mounts
from edgewise.host.egress_rules import HeldApp
from edgewise.identity.egress import Policy
from edgewise.identity.workload_ports import LocalSvids
from edgewise.model.errors import NeedsPerson
from edgewise.protocol.content import ProcessApp
from edgewise.protocol.egress import EgressRules
from edgewise.protocol.installed import Installed
from edgewise.runtime.clock import Clock
from edgewise.runtime.credentials import write_private
from edgewise.runtime.log import Log

if TYPE_CHECKING:  # a node without a policy does without the gateway's code
    from edgewise.net.egress.gateway import Gateway

FILE: Final = "egress.json"
SOCKET: Final = Path("run") / "egress.sock"
REAL_SOCKET: Final = Path("/run/edgewise/egress.sock")
"""Of a node with the usual state directory, which is not for every user to look into."""
KEEP: Final = timedelta(seconds=10)
"""How often counts are written down, if they have changed."""
REAL_STATE: Final = Path("/var/lib/edgewise")
NO_PROXY: Final = "localhost,127.0.0.1,::1"


class Counted(msgspec.Struct, frozen=True):
    """Requests of one app to one host with one outcome."""

    app: str
    host: str
    reason: str
    """Empty: let through."""
    requests: int


class EgressState(msgspec.Struct, frozen=True):
    """``egress.json`` in the state directory: what `edgewise agent egress` shows."""

    port: int
    socket: str
    policy: str
    enforced: tuple[str, ...] = ()
    """Apps that have no other way out."""
    problem: str = ""
    since: str = ""
    counts: tuple[Counted, ...] = ()


def read_state(state: Path) -> EgressState | None:
    """What the agent wrote down last; None when it has no gateway."""
    try:
        return msgspec.json.decode((state / FILE).read_bytes(), type=EgressState)
    except (OSError, msgspec.DecodeError):
        return None


class NodeEgress:
    """``follow`` before apps are started; ``run`` as a task."""

    def __init__(
        self,
        state: Path,
        svids: LocalSvids,
        facts: Callable[[], Facts],
        clock: Clock,
        log: Log,
        *,
        cgroups: Cgroups | None = None,
    ) -> None:
        self._state = state
        self._svids = svids
        self._facts = facts
        self._clock = clock
        self._log = log
        self._cgroups = cgroups
        self._policy = Policy(None)
        self._gateway: Gateway | None = None
        self._begun = asyncio.Event()
        self._port = 0
        self._socket = ""
        self._held: tuple[HeldApp, ...] = ()
        before = read_state(state)
        self._left_over = before is not None and bool(before.enforced)
        """Rules of the agent before this one are in place, perhaps for another policy."""
        self._problem = ""
        self._since = ""

    @property
    def held(self) -> frozenset[str]:
        """Apps whose cgroup must stay while they are stopped: rules speak of it."""
        return frozenset(app.name for app in self._held if app.cgroup)

    def follow(self, installed: Installed | None) -> None:
        """A release is put in place. Raises NeedsPerson when ``enforce`` cannot be done."""
        rules = installed.egress.rules if installed is not None and installed.egress else None
        if rules is None and self._gateway is None:
            if self._left_over:
                egress_rules.remove(egress_rules.table_of(self._state))
                self._left_over = False
                (self._state / FILE).unlink(missing_ok=True)
            return
        self._policy = Policy(rules)
        if self._gateway is None:
            self._gateway = self._listen()
        self._gateway.follow(rules)
        self._begun.set()
        apps = [a.app for a in installed.apps] if installed is not None else []
        try:
            self._enforce(rules, apps)
        except NeedsPerson as error:
            self._problem = str(error)
            raise
        finally:
            self._write(self._gateway)

    def _listen(self) -> Gateway:
        from edgewise.host.egress_callers import KernelCallers
        from edgewise.net.egress.bridge import AgentSupply
        from edgewise.net.egress.gateway import Gateway

        before = read_state(self._state)
        port = before.port if before is not None else 0
        supply = AgentSupply(self._svids, self._clock)
        gateway = Gateway(KernelCallers(self._facts()), supply, self._clock, self._log)
        self._supply = supply
        path: Path | None = REAL_SOCKET if self._state == REAL_STATE else self._state / SOCKET
        if len(os.fsencode(str(path))) > 107:  # unix(7)
            self._log.event("egress has no unix socket", "warning", because="its path is too long")
            path = None
        if path is not None:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            self._port = gateway.listen(port, path)
        except OSError as error:
            self._log.event(
                "egress port is taken", "warning", port=port, problem=error.strerror,
                hint="apps that run already call the old one until they are restarted",
            )  # fmt: skip
            self._port = gateway.listen(0, path)
        self._socket = str(path) if path is not None else ""
        self._since = self._clock.now().isoformat()
        self._log.event("egress listens", port=self._port, socket=self._socket)
        return gateway

    def environment(self, app: str) -> dict[str, str]:
        """What an app is told that the policy concerns."""
        if not self._port or not self._policy.concerns(app):
            return {}
        url = f"http://127.0.0.1:{self._port}"
        found = {name: url for key in ("HTTP_PROXY", "HTTPS_PROXY") for name in (key, key.lower())}
        found |= {"NO_PROXY": NO_PROXY, "no_proxy": NO_PROXY}
        return {**found, **({"EDGEWISE_EGRESS": self._socket} if self._socket else {})}

    async def run(self) -> None:
        """Until cancelled."""
        await self._begun.wait()
        gateway = self._gateway
        if gateway is None:
            return
        from edgewise.net.egress.bridge import serve

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve(gateway, self._supply))
            tasks.create_task(self._keep_counts(gateway))

    async def _keep_counts(self, gateway: Gateway) -> None:
        said: dict[tuple[str, str, str], int] = {}
        while True:
            await self._clock.sleep(KEEP)
            counts = gateway.counts()
            if counts != said:
                said = counts
                self._write(gateway)

    def _write(self, gateway: Gateway) -> None:
        counts = sorted(gateway.counts().items())
        state = EgressState(
            port=self._port,
            socket=self._socket,
            policy=self._policy.rules.name if self._policy.rules else "",
            enforced=tuple(sorted(app.name for app in self._held)),
            problem=self._problem,
            since=self._since,
            counts=tuple(Counted(*key, number) for key, number in counts),
        )
        write_private(self._state / FILE, msgspec.json.encode(state), mode=0o644)

    # The only way out

    def _enforce(self, rules: EgressRules | None, apps: Iterable[ProcessApp]) -> None:
        table = egress_rules.table_of(self._state)
        self._problem = ""
        if rules is None or not rules.enforce:
            if self._held or self._left_over:
                egress_rules.remove(table)
                self._held, self._left_over = (), False
            return
        held = held_apps(rules, apps, self._cgroups)
        if held != self._held:
            egress_rules.apply(egress_rules.ruleset(table, held))
            self._held = held
            self._log.event("egress enforced", apps=[app.name for app in held])


def held_apps(
    rules: EgressRules, apps: Iterable[ProcessApp], cgroups: Cgroups | None, *, make: bool = True
) -> tuple[HeldApp, ...]:
    """The apps that a policy holds, by user or by cgroup, which is made if need be.

    Raises NeedsPerson for an app that can be told from the agent by neither.
    """
    policy = Policy(rules)
    found = []
    for app in apps:
        if not policy.concerns(app.name):
            continue
        uid = _uid(app.user)
        if uid is not None and uid != os.geteuid():
            found.append(HeldApp(app.name, uid=uid))
        elif cgroups is not None:
            path = cgroups.path(app.name)
            if make:
                cgroups.make(app.name, app.memory_bytes, app.cpu_milli)
            found.append(HeldApp(app.name, cgroup=_below_root(path)))
        else:
            raise NeedsPerson(
                f"policy {rules.name} cannot hold app {app.name}: it runs as the agent's own "
                "user, and there are no cgroups",
                hint="give the App a `user` of its own",
            )
    return tuple(found)


def _uid(user: str) -> int | None:
    if not user:
        return None
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def _below_root(path: Path) -> str:
    for mount in mounts():
        if path.is_relative_to(mount):
            return str(path.relative_to(mount))
    return str(path)
