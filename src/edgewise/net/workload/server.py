"""The node's workload socket: the Workload API, Envoy's SDS, and what people ask."""

from __future__ import annotations

from edgewise.host.callers import Facts
from edgewise.host.svids import NodeSvids
from edgewise.net.workload import grpc
from edgewise.net.workload.api import workload_methods
from edgewise.net.workload.http2 import Listener, Stream
from edgewise.net.workload.inspect import Inspection
from edgewise.net.workload.sds import sds_methods
from edgewise.net.workload.serving import Serving
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log


class WorkloadServer:
    """``start`` and ``close`` it; ``svids.run`` runs beside it."""

    def __init__(self, svids: NodeSvids, facts: Facts, clock: Clock, log: Log) -> None:
        self._svids = svids
        self._serving = Serving(svids, facts, clock, log)
        self._methods = {**workload_methods(self._serving), **sds_methods(self._serving)}
        self._inspection = Inspection(self._serving, svids)
        self._listener = Listener(self._serve, clock, log)
        self._inspection.connections = lambda: self._listener.connections

    async def start(self, path: str) -> None:
        """Listen. Raises NeedsPerson when that cannot be."""
        await self._listener.start(path)

    async def close(self) -> None:
        """Hang up on everybody."""
        await self._listener.close()

    async def _serve(self, stream: Stream) -> None:
        self._serving.facts.wanted = self._svids.registered.facts
        if stream.headers.get(":method") == "GET":
            await self._inspection.answer(stream)
            return
        method = self._methods.get(stream.headers.get(":path", ""))
        if not stream.headers.get("content-type", "").startswith("application/grpc"):
            stream.head([(":status", "415")], end=True)
            return
        await grpc.answer(method, stream)
