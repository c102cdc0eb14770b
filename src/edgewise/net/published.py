"""The rollout engine's announcer on a hub: publish a channel, then wake whom it concerns."""

from __future__ import annotations

from edgewise.delivery.on_hub import Publisher
from edgewise.net.api.ports import Channels
from edgewise.net.api.relays import RelaySide
from edgewise.net.api.sync import NodeSync
from edgewise.protocol.channel import Channel
from edgewise.rollout.ports import Announcer
from edgewise.runtime.log import Log


class Board:
    """What is published now, decoded once. ``connect`` it to those who wait."""

    def __init__(self, publisher: Publisher, log: Log) -> None:
        self._publisher = publisher
        self._log = log
        self._current: dict[str, Channel] = {}
        self._nodes: NodeSync | None = None
        self._relays: RelaySide | None = None
        for fleet in publisher.fleets():
            channel = publisher.channel(fleet)
            if channel is not None:
                self._current[fleet] = channel

    def connect(self, nodes: NodeSync, relays: RelaySide) -> None:
        """Who is woken from now on."""
        self._nodes, self._relays = nodes, relays

    def current(self, fleet: str) -> Channel | None:
        """The published channel of a fleet."""
        return self._current.get(fleet)

    def fleets(self) -> tuple[str, ...]:
        """Fleets with a channel."""
        return tuple(self._current)

    def bundle(self, fleet: str) -> dict[str, bytes]:
        """The TUF files and the channel, for a reply."""
        return self._publisher.metadata_for(fleet)

    async def announce(self, channel: Channel) -> None:
        """Publish and wake. A channel that is out already, or older, changes nothing."""
        before = self._current.get(channel.fleet)
        if before is not None and before.sequence >= channel.sequence:
            return
        await self._publisher.publish_channels([channel])
        self._current[channel.fleet] = channel
        woken = self._nodes.moved(before, channel) if self._nodes else 0
        relays = self._relays.wake() if self._relays else 0
        self._log.event(
            "channel published",
            fleet=channel.fleet,
            sequence=channel.sequence,
            nodes_woken=woken,
            relays_woken=relays,
        )


def _meets_its_ports(board: Board) -> tuple[Announcer, Channels]:
    return board, board
