"""POST /v1/workloads on the hub: SVIDs for what runs on the calling node."""

from __future__ import annotations

from edgewise.identity.workloads import Desk
from edgewise.model.errors import Forbidden, TryLater, Untrusted
from edgewise.net.api.sync import Fleetside, admit
from edgewise.net.routes import Answer, Call, Route
from edgewise.protocol import limits
from edgewise.protocol.workload import WorkloadReply, WorkloadRequest
from edgewise.runtime.clock import Clock


def workload_route(answer: Answer) -> Route:
    """The same on hub and relay."""
    return Route(
        "POST",
        "/v1/workloads",
        "X.509 and JWT SVIDs for workloads on the calling node",
        answer,
        frozenset({"node"}),
        WorkloadRequest,
        WorkloadReply,
        errors=(Forbidden, Untrusted, TryLater),
        at_most=limits.WORKLOAD_REQUEST,
        description="Which identities a node may ask for, its signed record says.",
    )


class WorkloadRoutes:
    """For nodes that talk to the hub itself."""

    def __init__(self, side: Fleetside, desk: Desk, clock: Clock) -> None:
        self._side = side
        self._desk = desk
        self._clock = clock

    def routes(self) -> list[Route]:
        """POST /v1/workloads."""
        return [workload_route(self.issue)]

    async def issue(self, call: Call[WorkloadRequest]) -> WorkloadReply:
        """POST /v1/workloads."""
        node = call.peer.required()
        enrolled = admit(self._side, node, "node")
        kept = self._side.records.get(enrolled.name)
        record = kept[0] if kept is not None else None
        return self._desk.answer(node, record, call.body, self._clock.now())
