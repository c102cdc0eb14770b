"""The gateway: listeners, its thread, and what the agent tells it.

``Gateway`` is used from the agent's loop; ``Switchboard`` lives in the gateway's own thread.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgewise.identity.egress import Policy, Refused
from edgewise.identity.workload_ports import Caller
from edgewise.net.egress.channel import Again
from edgewise.net.egress.client import Client
from edgewise.net.egress.counts import Counts
from edgewise.net.egress.ports import Bounds, Callers, Supply
from edgewise.net.egress.reactor import READ, Reactor
from edgewise.net.egress.resolver import Resolver, SystemResolver
from edgewise.net.egress.upstream import NEVER, Dials, Pool
from edgewise.protocol.egress import EgressRules
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log

ACCEPTS: Final = 64
"""Connections taken at a time before others have their turn."""
BACKLOG: Final = 512


class Switchboard:
    """What all connections of one gateway share."""

    def __init__(
        self, reactor: Reactor, supply: Supply, resolver: Resolver, bounds: Bounds
    ) -> None:
        self.reactor = reactor
        self.supply = supply
        self.bounds = bounds
        self.pool = Pool(reactor, bounds)
        self.dials = Dials(self.pool, supply, resolver)
        self.counts = Counts()
        self.epoch = 0
        """Of identities and apps: whoever called under an older one is looked at again."""
        self.closing = False
        self.clients: set[Client] = set()

    @property
    def policy(self) -> Policy:
        return self.dials.policy

    def follow(self, rules: EgressRules | None) -> None:
        """Other rules: they count for the next request, and for tunnels at once."""
        self.dials.policy = Policy(rules)
        self.pool.renew()
        for client in list(self.clients):
            client.recheck()

    def renew(self) -> None:
        """Identities or roots have changed: new connections use them, old ones drain."""
        self.epoch += 1
        self.pool.renew()

    def entered(self, client: Client) -> None:
        self.clients.add(client)

    def left(self, client: Client) -> None:
        self.clients.discard(client)

    def too_many(self, client: Client) -> Refused | None:
        """Whether this app, or everybody together, has too many connections."""
        bounds, app, uid = self.bounds, client.app, client.caller.uid if client.caller else -1
        if len(self.clients) > bounds.clients:
            return Refused("busy", f"the gateway has {bounds.clients} connections", "try again")
        if len(self.clients) <= bounds.clients_of_one:
            return None
        same = sum(
            1
            for c in self.clients
            if c.app == app and (app or (c.caller is not None and c.caller.uid == uid))
        )
        if same > bounds.clients_of_one:
            what = f"{app or f'user {uid}'} has {bounds.clients_of_one} connections to the gateway"
            return Refused("busy", what, "keep and reuse connections, or close some")
        return None

    def count(self, app: str, host: str, reason: str) -> None:
        self.counts.add(app, host, reason)

    def refused(self, app: str, host: str, refused: Refused) -> None:
        self.counts.add(app, host, refused.reason, refused)


class Listener:
    """Accepts connections of apps."""

    def __init__(
        self,
        board: Switchboard,
        sock: socket.socket,
        who: Callable[[socket.socket], Caller | None],
    ) -> None:
        self._board = board
        self._sock = sock
        self.who = who
        self.deadline = NEVER
        sock.setblocking(False)
        board.reactor.add(sock.fileno(), READ, self)

    def ready(self, mask: int) -> None:
        board = self._board
        for _ in range(ACCEPTS):
            try:
                sock, _ = self._sock.accept()
            except Again:
                return
            except OSError:
                # No descriptors, or no memory: look again when somebody may have gone.
                self.deadline = board.reactor.now
                board.reactor.change(self._sock.fileno(), 0)
                return
            if len(board.clients) >= 2 * board.bounds.clients:
                sock.close()  # there is not even room to explain
                continue
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                client = Client(board, sock, self.who(sock))
            except BaseException:
                sock.close()
                raise
            board.entered(client)
            board.reactor.add(client.fd, READ, client)

    def expired(self) -> None:
        """The pause of ``ready`` is over."""
        self.deadline = NEVER
        self._board.reactor.change(self._sock.fileno(), READ)

    def abandon(self) -> None:
        if self._board.reactor.stopping:  # a bug with one caller is not the end of all
            self._board.reactor.remove(self._sock.fileno())
            self._sock.close()


class Gateway:
    """``listen``, then ``run`` as a task; everything else may be called meanwhile."""

    def __init__(
        self,
        callers: Callers,
        supply: Supply,
        clock: Clock,
        log: Log,
        *,
        bounds: Bounds | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        self._callers = callers
        self._log = log
        self.reactor = Reactor(clock.monotonic, self._bug)
        self._own_resolver = None if resolver else SystemResolver(self.reactor.call)
        names = resolver or self._own_resolver
        assert names is not None
        self.board = Switchboard(self.reactor, supply, names, bounds or Bounds())
        self.reactor.on_sweep = self._sweep
        self._loop: asyncio.AbstractEventLoop | None = None
        self._paths: list[Path] = []
        self.listeners: list[Listener] = []

    def listen(self, port: int = 0, path: Path | None = None) -> int:
        """On 127.0.0.1, and on a unix socket. Returns the port. Raises OSError.

        The unix socket is for everybody: who calls says the kernel.
        """
        tcp = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
        self.listeners.append(Listener(self.board, tcp, self._callers.of_tcp))
        if path is not None:
            path.unlink(missing_ok=True)
            local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            local.bind(str(path))
            os.chmod(path, 0o666)
            local.listen(BACKLOG)
            self.listeners.append(Listener(self.board, local, self._callers.of_unix))
            self._paths.append(path)
        return int(tcp.getsockname()[1])

    async def run(self) -> None:
        """Until cancelled; then every connection is closed."""
        self._loop = asyncio.get_running_loop()
        thread = asyncio.ensure_future(asyncio.to_thread(self.reactor.run))
        try:
            await asyncio.shield(thread)
        finally:
            self.reactor.stop()
            await asyncio.wait([thread])  # at once: it wakes, closes everything and ends
            if self._own_resolver is not None:
                self._own_resolver.close()
            for path in self._paths:
                path.unlink(missing_ok=True)

    def follow(self, rules: EgressRules | None) -> None:
        """These are the rules from now on."""
        self.reactor.call(lambda: self.board.follow(rules))

    def renew(self) -> None:
        """An SVID, a bundle or a registration is new."""
        self.reactor.call(self.board.renew)

    def counts(self) -> dict[tuple[str, str, str], int]:
        """Requests by app, host and reason (empty: let through), since the start."""
        return self.board.counts.snapshot()

    def _sweep(self) -> None:
        """In the gateway's thread, every half second."""
        fresh = self.board.counts.news()
        loop = self._loop
        if fresh and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._tell, fresh)

    def _tell(self, fresh: list[tuple[str, str, Refused, int]]) -> None:
        for app, host, refused, times in fresh:
            self._log.decision(
                "egress refused",
                because=refused.detail,
                app=app,
                host=host,
                reason=refused.reason,
                rule=refused.rule,
                times=times,
            )

    def _bug(self, error: Exception) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            where = _where(error)
            loop.call_soon_threadsafe(
                lambda: self._log.event("egress bug", "error", problem=repr(error), where=where)
            )


def _where(error: BaseException) -> str:
    found, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        found = f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
