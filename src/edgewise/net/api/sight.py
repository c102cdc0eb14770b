"""What a caller may see and touch: its rights, asked about nodes, fleets and rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgewise.identity.people import Place
from edgewise.identity.ports import Enrolled
from edgewise.model.roles import Role
from edgewise.net.api.ports import Roster
from edgewise.net.api.records import Records
from edgewise.net.routes import Peer, missing
from edgewise.rollout.on_hub import Rollouts
from edgewise.rollout.views import Sees


@dataclass(frozen=True, slots=True)
class Sight:
    """The three sources that say where a node is."""

    roster: Roster
    records: Records
    rollouts: Rollouts

    def labels(self, enrolled: Enrolled) -> Mapping[str, str]:
        """As the last good commit has them; before the first, as the node joined."""
        record = self.records.get(enrolled.name)
        return record[0].labels if record else enrolled.labels

    def place(self, enrolled: Enrolled) -> Place:
        """Where a node is."""
        placement = self.rollouts.placement(enrolled.name)
        return Place(self.labels(enrolled), placement.fleet if placement else "")

    def sees(self, peer: Peer, name: str, role: Role = "viewer") -> bool:
        """Whether the caller has the role over the node of this name."""
        if peer.rights.everywhere(role):
            return True
        enrolled = self.roster.get(name)
        return (
            enrolled is not None
            and enrolled.role == "node"
            and peer.rights.over(role, self.place(enrolled))
        )

    def of(self, peer: Peer) -> Sees:
        """``sees`` for the views of the rollout engine."""
        return lambda name: self.sees(peer, name)

    def whole(self, peer: Peer, fleet: str, role: Role = "viewer") -> bool:
        """Whether the caller has the role over every node of a fleet."""
        if peer.rights.everywhere(role):
            return True
        known = [self.roster.get(name) for name in self.rollouts.members(fleet)]
        labels = [self.labels(one) if one is not None else {} for one in known]
        return peer.rights.over_fleet(role, fleet, labels)

    def part(self, peer: Peer, fleet: str) -> bool:
        """Whether the caller sees any of a fleet."""
        return self.whole(peer, fleet) or any(
            self.sees(peer, name) for name in self.rollouts.members(fleet)
        )

    def limits(self, peer: Peer, fleet: str) -> Sees | None:
        """None for somebody who sees all of a fleet."""
        return None if self.whole(peer, fleet) else self.of(peer)

    def must_move(self, peer: Peer, fleet: str, role: Role) -> None:
        """Raise Forbidden unless the caller has the role over the whole fleet."""
        if not self.whole(peer, fleet, role):
            raise missing(
                role, peer, f"this concerns all of fleet {fleet}, and that covers not every node"
            )
