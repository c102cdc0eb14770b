"""A hub that judges proofs, without sockets: enroller, attestor and a door to both."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from edgewise.backends.pki.authority import Authority
from edgewise.identity.admission import JoinRules
from edgewise.identity.names import Organisation
from edgewise.identity.on_agent import MachineIdentity
from edgewise.identity.on_hub import Enroller, HubPlace
from edgewise.identity.ports import Enrolled, HubDoor, OpenTpm
from edgewise.model.names import SpiffeId
from edgewise.net.api.attesting import Attestor, Surroundings
from edgewise.net.routes import Call, Peer
from edgewise.protocol.api import TokenRequest
from edgewise.protocol.attest import (
    AttestChallenge,
    AttestChallengeRequest,
    AttestReply,
    AttestRequest,
    JoinChallenge,
    JoinChallengeRequest,
)
from edgewise.protocol.codec import decode, encode
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

T = TypeVar("T")

NOW = datetime(2026, 6, 1, tzinfo=UTC)
TUF_ROOT = b'{"the":"first root"}'
URL = "https://127.0.0.1:1"


@dataclass
class ProvingHub:
    """One hub of organisation acme. Change ``rules`` as a commit would."""

    directory: Path
    rules: JoinRules = field(default_factory=JoinRules)
    clock: ManualClock = field(default_factory=lambda: ManualClock(NOW))
    register: MemoryEnrolments = field(default_factory=MemoryEnrolments)
    log: ListLog = field(default_factory=ListLog)
    heard: dict[str, datetime] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    starts: int = 0

    def __post_init__(self) -> None:
        self.authority = Authority.open_or_create(self.directory / "pki", "acme", self.clock)
        self.restart()

    def restart(self) -> None:
        """A new process on the same data."""
        self.starts += 1
        chance = SeededChance(self.starts)
        place = HubPlace(Organisation("acme"), (URL,), self.authority.root_sha256, lambda: TUF_ROOT)
        self.enroller = Enroller(
            self.register, self.authority, place, self.clock, chance, self.log,
            rules=self._rules,
        )  # fmt: skip
        around = Surroundings(self, self._rules, self._labels, self.heard.get, self._changed)
        self.attestor = Attestor(self.register, around, self.clock, chance, self.log)

    async def _rules(self) -> JoinRules:
        return self.rules

    def _labels(self, name: str) -> dict[str, str]:
        return self.register.enrolled[name].labels

    async def _changed(self, name: str) -> None:
        self.changed.append(name)

    # Roster
    def get(self, name: str) -> Enrolled | None:
        return self.register.enrolled.get(name)

    def all(self) -> tuple[Enrolled, ...]:
        return tuple(self.register.enrolled[name] for name in sorted(self.register.enrolled))

    @property
    def invitation(self) -> Token:
        """Where and whom to trust, and no right to join."""
        return Token((URL,), self.authority.root_sha256, "", "")

    async def token(self, **terms: Any) -> Token:
        made = await self.enroller.create_token(TokenRequest(**{"region": "eu", **terms}))
        return Token.parse(made.token)

    def machine(self, name: str, open_tpm: OpenTpm | None = None) -> MachineIdentity:
        """A machine's state directory."""
        return MachineIdentity(self.directory / name, open_tpm)

    @property
    def reasons(self) -> list[object]:
        """Why anything was decided, in order."""
        return [fields["because"] for _, fields in self.log.lines if "because" in fields]


@dataclass
class Door:
    """The way from a machine to the hub; ``sent`` keeps what went by."""

    hub: ProvingHub
    identity: MachineIdentity | None = None
    via: SpiffeId | None = None
    lose: int = 0
    """How many answers to joins are lost, after the hub has acted."""
    sent: list[Any] = field(default_factory=list)

    async def join_challenge(self, request: JoinChallengeRequest) -> JoinChallenge:
        return await self.hub.enroller.join_challenge(_travelled(request))

    async def join(self, request: JoinRequest) -> JoinReply:
        self.sent.append(request)
        reply = await self.hub.enroller.join(_travelled(request), self.via)
        await self.hub.attestor.joined(SpiffeId.parse(reply.spiffe_id).name)
        if self.lose:
            self.lose -= 1
            raise ConnectionResetError("the answer was lost")
        return reply

    async def attest_challenge(self, request: AttestChallengeRequest) -> AttestChallenge:
        return await self.hub.attestor.challenge(self._call(request))

    async def attest(self, request: AttestRequest) -> AttestReply:
        self.sent.append(request)
        return await self.hub.attestor.attest(self._call(request))

    async def challenge(self) -> RejoinChallenge:
        return await self.hub.enroller.challenge()

    async def rejoin(self, request: RejoinRequest) -> JoinReply:
        return await self.hub.enroller.rejoin(request, self.via)

    async def renew(self, request: RenewRequest) -> RenewReply:
        card = self._identity().card()
        return await self.hub.enroller.renew(card.id, request, card.serial)

    def _identity(self) -> MachineIdentity:
        assert self.identity is not None
        return self.identity

    def _call(self, body: Any) -> Call[Any]:
        peer = Peer(self.via or self._identity().card().id)
        nothing: Any = None
        return Call(peer, _travelled(body), {}, None, {}, nothing)


def _travelled(message: T) -> T:
    """As the far end reads it."""
    return decode(encode(message), type(message), what="a message")


def _meets_its_port(door: Door) -> HubDoor:
    return door
