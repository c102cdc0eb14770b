"""What a person asks the workload socket, as JSON over plain HTTP/2.

``GET /v1/whoami``: every process about itself. ``GET /v1/identities`` and ``/v1/explain/<pid>``:
root and the agent's own user. No key and no token is in any answer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

import msgspec

from edgewise.host import callers
from edgewise.host.svids import NodeSvids, SvidLine
from edgewise.identity.registrations import Candidate
from edgewise.identity.workload_ports import Caller
from edgewise.model.errors import EdgewiseError, Forbidden, NotFound
from edgewise.net.workload.http2 import Stream
from edgewise.net.workload.serving import Seen, Serving

WHOAMI: Final = "/v1/whoami"
IDENTITIES: Final = "/v1/identities"
EXPLAIN: Final = "/v1/explain/"


class CallerFacts(msgspec.Struct, frozen=True):
    """What the kernel says of a process."""

    pid: int
    uid: int
    gid: int
    user: str
    group: str
    executable: str
    sha256: str
    app: str
    unit: str
    container: str


class Explained(msgspec.Struct, frozen=True):
    """Why a process gets what it gets."""

    caller: CallerFacts
    identities: tuple[str, ...]
    """The default one first."""
    registrations: tuple[Candidate, ...]


class NodeIdentities(msgspec.Struct, frozen=True):
    """What this node serves."""

    trust_domain: str
    identities: tuple[SvidLine, ...]
    trusts: dict[str, int]
    """Trust domain to the sequence of its bundle."""
    tokens: int
    connections: int
    callers: tuple[Seen, ...]
    """The last ones, newest last."""
    problem: str = ""


class Inspection:
    """Answers GET requests."""

    def __init__(self, serving: Serving, svids: NodeSvids) -> None:
        self._serving = serving
        self._svids = svids
        self.connections: Callable[[], int] = lambda: 0

    async def answer(self, stream: Stream) -> None:
        """One request. Raises Closed when the caller has gone."""
        status = "200"
        try:
            body: msgspec.Struct | dict[str, str] = await self._body(stream)
        except EdgewiseError as error:
            status = "404" if isinstance(error, NotFound) else "403"
            body = {"detail": str(error), "hint": error.hint}
        data = msgspec.json.encode(body) + b"\n"
        head = [(":status", status), ("content-type", "application/json")]
        stream.head([*head, ("content-length", str(len(data)))])
        await stream.send(data, end=True)

    async def _body(self, stream: Stream) -> msgspec.Struct:
        path = stream.headers.get(":path", "")
        caller = await self._serving.caller(stream.peer)
        if path == WHOAMI:
            return self._explained(caller)
        if caller.uid not in (0, os.geteuid()):
            raise Forbidden(
                f"{path[:60]} is for root and the agent's own user, not for user {caller.uid}",
                hint=f"{WHOAMI} is for everybody",
            )
        if path == IDENTITIES:
            return self._identities()
        pid = path.removeprefix(EXPLAIN)
        if pid != path and pid.isdecimal() and len(pid) < 10:
            facts = self._serving.facts
            return self._explained(await asyncio.to_thread(callers.of_number, int(pid), facts))
        raise NotFound(
            f"there is no {path[:60]} here", hint=f"{WHOAMI}, {IDENTITIES}, {EXPLAIN}<pid>"
        )

    def _identities(self) -> NodeIdentities:
        bundles = self._svids.bundles()
        domains = {**bundles.federated, **bundles.own} if bundles else {}
        return NodeIdentities(
            self._svids.registered.trust_domain,
            self._svids.lines(),
            {name: bundle.sequence for name, bundle in sorted(domains.items())},
            self._svids.tokens,
            self.connections(),
            tuple(self._serving.seen),
            self._svids.problem(),
        )

    def _explained(self, caller: Caller) -> Explained:
        facts = CallerFacts(
            caller.pid, caller.uid, caller.gid, caller.user, caller.group, caller.executable,
            caller.sha256, caller.app, caller.unit, caller.container,
        )  # fmt: skip
        return Explained(facts, self._svids.entitled(caller), self._svids.explain(caller))
