"""Identities of the workloads of one node: their supply, and the socket that they ask."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgewise.host.callers import AppOf, Facts, searchable_by_all
from edgewise.host.svids import Keys, NodeSvids, Sources
from edgewise.model.errors import EdgewiseError, TryLater
from edgewise.net.client import Client
from edgewise.net.workload.server import WorkloadServer
from edgewise.net.workload_line import WorkloadLine
from edgewise.protocol import limits
from edgewise.protocol.bundles import DomainBundle, TrustBundles
from edgewise.protocol.channel import NodeRecord
from edgewise.protocol.codec import decode
from edgewise.protocol.installed import Installed
from edgewise.protocol.workload import WorkloadReply, WorkloadRequest
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock
from edgewise.runtime.credentials import CredentialFiles
from edgewise.runtime.log import Log

SOCKET: Final = Path("run") / "workload.sock"
"""Below the state directory."""
REAL_STATE: Final = Path("/var/lib/edgewise")
REAL_SOCKET: Final = Path("/run/edgewise/workload.sock")
"""Of a node with the usual state directory, which only root may enter."""
ENVIRONMENT: Final = "SPIFFE_ENDPOINT_SOCKET"
"""Where SPIFFE libraries look (Workload Endpoint specification, section 4)."""


def socket_of(state: Path, given: Path | None) -> Path:
    """Where the Workload API of a node listens."""
    if given is not None:
        return given
    return REAL_SOCKET if state == REAL_STATE else state / SOCKET


class _NoLine:
    """Before the node has joined."""

    async def workloads(self, request: WorkloadRequest) -> WorkloadReply:
        raise TryLater("this node has not joined yet")


class _Line:
    """Whoever the node talks to now: its certificate is renewed underneath."""

    def __init__(self, client: Callable[[], Client]) -> None:
        self._client = client

    async def workloads(self, request: WorkloadRequest) -> WorkloadReply:
        return await WorkloadLine(self._client()).workloads(request)


class NodeWorkloads:
    """Made before the node has joined; ``run`` is one of the agent's tasks."""

    def __init__(
        self,
        state: Path,
        socket: Path,
        app_of: AppOf,
        keys: Keys,
        outside: tuple[Clock, Chance, Log],
    ) -> None:
        clock, chance, log = outside
        self._state = state
        self._socket = socket
        self._log = log
        self._installed: Installed | None = None
        self._trouble, self._domain = "", ""
        self.facts = Facts(app_of)
        """Shared with whoever else attests callers on this node."""
        self._sources = Sources(keys, _NoLine(), self._bundles, clock, chance, log)
        self.svids = NodeSvids(self._sources, "")
        self._server = WorkloadServer(self.svids, self.facts, clock, log)

    # What the agent tells

    def heard(self, installed: Installed | None) -> None:
        """This release runs from now on; its apps are started after this."""
        self._installed = installed
        self.svids.installed(installed)
        self.facts.wanted = self.svids.registered.facts

    def joined(self, trust_domain: str, client: Callable[[], Client]) -> None:
        """The node has an identity of its own, or another one than before."""
        self._domain = trust_domain
        self.svids.issued_by(_Line(client))
        self.svids.moved(trust_domain)
        self.svids.trusting()

    def recorded(self, record: NodeRecord | None) -> None:
        """The hub has signed another record."""
        self.svids.recorded(record)

    def environment(self, app: str) -> dict[str, str]:
        """What an app needs to find the socket; nothing for one that has no identity."""
        asks = f"edgewise:app:{app}"
        registrations = self._installed.registrations() if self._installed else ()
        if any(asks in one.selectors for one in registrations):
            return {ENVIRONMENT: f"unix://{self._socket}"}
        return {}

    @property
    def trust_domain(self) -> str:
        """Of the node's own identity; empty before it has one."""
        return self._domain

    def problem(self) -> str:
        """What a person should know; empty when there is nothing."""
        return self._trouble or self.svids.problem()

    def _bundles(self) -> TrustBundles | None:
        """As verified last; before the first ones, what the node itself believes."""
        identity = self._state / "identity"
        try:
            data = (identity / "bundles.json").read_bytes()
            return decode(data, TrustBundles, what="trust bundles", at_most=limits.BUNDLES)
        except FileNotFoundError:
            pass
        except (OSError, EdgewiseError) as error:
            self._log.event("bundles", "error", problem=str(error))
        if not self._domain:
            return None
        roots = CredentialFiles(identity).root_certificates()
        return TrustBundles(0, {self._domain: DomainBundle(roots)})

    # The work

    async def run(self) -> None:
        """Serve and renew, until cancelled. A socket that cannot be is no reason to end."""
        try:
            await self._server.start(str(self._socket))
        except EdgewiseError as error:
            self._trouble = str(error)
            self._log.event("no Workload API", "error", problem=str(error), hint=error.hint)
        else:
            everybody = os.geteuid() != 0 or searchable_by_all(self._socket)
            self._log.event("Workload API", socket=str(self._socket), for_everybody=everybody)
        try:
            await self.svids.run()
        finally:
            await self._server.close()
