"""What rollout needs from the outside."""

from __future__ import annotations

from typing import Literal, Protocol

from edgewise.model.rules import Gate
from edgewise.protocol.channel import Channel


class Announcer(Protocol):
    """Makes a channel known. Idempotent: repeating one after a crash changes nothing.

    Implementation: the hub's publisher (TUF, then wake-up of the nodes it concerns).
    """

    async def announce(self, channel: Channel) -> None: ...


class GateCheck(Protocol):
    """Asks one gate's question once.

    Implementations: host-independent exec and http in net.gates; metric with telemetry.
    """

    async def ask(self, gate: Gate) -> tuple[Literal["Pass", "Fail", "Inconclusive"], str]:
        """The answer and, in a sentence, why."""
