"""``POST /v1/workloads``: the node asks its relay or hub for identities of its workloads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgewise.identity.ports import WorkloadIssuerLine
from edgewise.net.client import Client
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.workload import WorkloadReply, WorkloadRequest

REPLY: Final = 2 << 20
"""Bytes of an answer: 64 chains of three certificates are 200 KB."""


@dataclass(frozen=True, slots=True)
class WorkloadLine:
    """Over the node's own mTLS connections."""

    client: Client

    async def workloads(self, request: WorkloadRequest) -> WorkloadReply:
        """See ``WorkloadIssuerLine.workloads``."""
        answer = await self.client.request("POST", "/v1/workloads", encode(request), at_most=REPLY)
        return decode(answer.body, WorkloadReply, what="identities of workloads", at_most=REPLY)


def _meets_its_port(line: WorkloadLine) -> WorkloadIssuerLine:
    return line
