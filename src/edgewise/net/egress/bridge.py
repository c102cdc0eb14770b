"""From the agent's loop, where identities live, to the gateway's thread, which needs them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from edgewise.identity.egress import Refused, Subject
from edgewise.identity.workload_ports import Caller, LocalSvids
from edgewise.model.errors import EdgewiseError
from edgewise.net.egress.gateway import Gateway
from edgewise.net.egress.ports import Credentials
from edgewise.runtime.clock import Clock

WANTED_TOGETHER: Final = 256
"""Identities being fetched at once."""


class AgentSupply:
    """``Supply`` by the agent's ``LocalSvids``. ``attach`` it before use, ``run`` it as a task."""

    def __init__(self, svids: LocalSvids, clock: Clock) -> None:
        self._svids = svids
        self._clock = clock
        self._kept: dict[str, Credentials] = {}
        self._wanted: dict[str, list[Callable[[Credentials | Refused], None]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gateway: Gateway | None = None
        self._tasks: asyncio.TaskGroup | None = None

    def attach(self, gateway: Gateway) -> None:
        """Whom it supplies; in the agent's loop."""
        self._gateway = gateway
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Tell the gateway of every rotation, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            version = self._svids.version
            while True:
                version = await self._svids.newer_than(version)
                self._kept = {}
                if self._gateway is not None:
                    self._gateway.renew()

    # In the gateway's thread

    def subject(self, caller: Caller, then: Callable[[Subject], None]) -> None:
        self._in_loop(lambda: self._subject(caller, then))

    def credentials(self, identity: str, then: Callable[[Credentials | Refused], None]) -> None:
        known = self._kept.get(identity)
        if known is not None and known.svid.not_after > self._clock.now():
            then(known)
        else:
            self._in_loop(lambda: self._want(identity, then))

    def _in_loop(self, what: Callable[[], None]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what)

    # In the agent's loop

    def _subject(self, caller: Caller, then: Callable[[Subject], None]) -> None:
        found = Subject(caller.app, self._svids.entitled(caller))
        self._reply(lambda: then(found))

    def _reply(self, what: Callable[[], None]) -> None:
        if self._gateway is not None:
            self._gateway.reactor.call(what)

    def _want(self, identity: str, then: Callable[[Credentials | Refused], None]) -> None:
        waiting = self._wanted.setdefault(identity, [])
        waiting.append(then)
        if len(waiting) > 1:
            return
        if self._tasks is None or len(self._wanted) > WANTED_TOGETHER:
            self._tell(identity, _not_yet(identity, "the agent is busy", "try again"))
        else:
            self._tasks.create_task(self._fetch(identity))

    async def _fetch(self, identity: str) -> None:
        version = self._svids.version
        try:
            svid = await self._svids.x509(identity)
        except EdgewiseError as error:
            self._tell(identity, _not_yet(identity, str(error), error.hint or "try again"))
            return
        bundles = self._svids.bundles()
        late = self._clock.now() - svid.not_after
        if bundles is None:
            found: Credentials | Refused = _not_yet(
                identity, "the hub has not said yet whom to trust", "try again"
            )
        elif late >= timedelta():
            found = _not_yet(identity, "it has run out", "can the node reach its relay or hub?")
        else:
            found = Credentials(svid, bundles)
            if self._svids.version == version:
                self._kept[identity] = found
        self._tell(identity, found)

    def _tell(self, identity: str, found: Credentials | Refused) -> None:
        waiting = self._wanted.pop(identity, [])

        def tell() -> None:
            for then in waiting:
                then(found)

        self._reply(tell)


def _not_yet(identity: str, why: str, hint: str) -> Refused:
    return Refused("busy", f"there is no usable certificate of {identity}: {why}", hint)


async def serve(gateway: Gateway, supply: AgentSupply) -> None:
    """Run both until cancelled. ``gateway`` listens already."""
    supply.attach(gateway)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(supply.run())
        tasks.create_task(gateway.run())
