"""A hub's enroller and machines without sockets, for the tests of identity."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from edgewise.backends.pki.authority import Authority
from edgewise.identity.names import Organisation
from edgewise.identity.on_agent import MachineIdentity
from edgewise.identity.on_hub import Enroller, HubPlace
from edgewise.model.names import SpiffeId
from edgewise.protocol.api import TokenRequest
from edgewise.protocol.attest import JoinChallenge, JoinChallengeRequest
from edgewise.protocol.join import (
    JoinReply,
    JoinRequest,
    RejoinChallenge,
    RejoinRequest,
    RenewReply,
    RenewRequest,
    Token,
)
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.enrolments import MemoryEnrolments
from edgewise.testing.log import ListLog

NOW = datetime(2026, 6, 1, tzinfo=UTC)
TUF_ROOT = b'{"the":"first root"}'


@dataclass
class Hub:
    """An enroller on a manual clock."""

    directory: Path
    clock: ManualClock = field(default_factory=lambda: ManualClock(NOW))
    register: MemoryEnrolments = field(default_factory=MemoryEnrolments)
    log: ListLog = field(default_factory=ListLog)
    starts: int = 0

    def __post_init__(self) -> None:
        self.authority = Authority.open_or_create(self.directory / "pki", "acme", self.clock)
        self.restart()

    def restart(self) -> None:
        """A new process on the same data."""
        self.starts += 1
        place = HubPlace(
            Organisation("acme"),
            ("https://127.0.0.1:1",),
            self.authority.root_sha256,
            lambda: TUF_ROOT,
        )
        self.enroller = Enroller(
            self.register, self.authority, place, self.clock, SeededChance(self.starts), self.log
        )

    async def token(self, **terms: object) -> Token:
        made = await self.enroller.create_token(TokenRequest(**{"region": "eu", **terms}))  # type: ignore[arg-type]
        return Token.parse(made.token)

    def machine(self, name: str) -> MachineIdentity:
        return MachineIdentity(self.directory / name)

    @property
    def reasons(self) -> Iterator[object]:
        return (fields.get("because") for _, fields in self.log.lines)


@dataclass
class DirectLine:
    """The network between a machine and the hub, with what can go wrong in it."""

    hub: Hub
    identity: MachineIdentity
    via: SpiffeId | None = None
    lose: int = 0
    """How many answers are lost, after the hub has acted."""
    sent: list[object] = field(default_factory=list)

    def _lost(self) -> None:
        if self.lose:
            self.lose -= 1
            raise ConnectionResetError("the answer was lost")

    async def join_challenge(self, request: JoinChallengeRequest) -> JoinChallenge:
        return await self.hub.enroller.join_challenge(request)

    async def join(self, request: JoinRequest) -> JoinReply:
        self.sent.append(request)
        reply = await self.hub.enroller.join(request, self.via)
        self._lost()
        return reply

    async def challenge(self) -> RejoinChallenge:
        return await self.hub.enroller.challenge()

    async def rejoin(self, request: RejoinRequest) -> JoinReply:
        self.sent.append(request)
        reply = await self.hub.enroller.rejoin(request, self.via)
        self._lost()
        return reply

    async def renew(self, request: RenewRequest) -> RenewReply:
        card = self.identity.card()
        reply = await self.hub.enroller.renew(card.id, request, card.serial)
        self._lost()
        return reply
