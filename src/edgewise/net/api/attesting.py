"""What nodes' TPMs say over time: quotes are judged, and silence is noticed.

The hub keeps every node's ``Attestation`` in memory and on disk; the decisions are those of
identity.attestation and identity.reattestation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

from edgewise.identity.admission import JoinRules
from edgewise.identity.attestation import (
    Unproven,
    attest_binding,
    check_counters,
    compare,
    judge_quote,
)
from edgewise.identity.nonces import Nonces
from edgewise.identity.ports import Attestations, Enrolled, Enrolments
from edgewise.identity.reattestation import (
    MARK,
    Attestation,
    failed,
    is_late,
    passed,
    too_long,
)
from edgewise.identity.tpm_structures import Attested, parse_public
from edgewise.model.errors import EdgewiseError, Forbidden, NotFound
from edgewise.model.labels import Labels
from edgewise.model.names import SpiffeId
from edgewise.net.api.ports import Roster
from edgewise.net.routes import Call, Peer
from edgewise.protocol.attest import (
    AttestChallenge,
    AttestChallengeRequest,
    AttestReply,
    AttestRequest,
)
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log

LOOK: Final = timedelta(minutes=1)
"""How often the hub looks for nodes that are late or fail for too long."""
SOONEST: Final = timedelta(seconds=10)
"""A failing node comes again after a quarter of the grace, never sooner than this."""
SPREAD: Final = 0.1
"""Share of the interval by which a node comes earlier: a fleet that booted at once spreads."""


class Store(Enrolments, Attestations, Protocol):
    """Both in one, so that forgetting a name forgets all of it."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the attestor asks and tells."""

    roster: Roster
    rules: Callable[[], Awaitable[JoinRules]]
    labels: Callable[[str], Labels]
    """A node's labels as the fleet repo has them."""
    heard: Callable[[str], datetime | None]
    """When a node was last heard of."""
    changed: Callable[[str], Awaitable[None]]
    """Told of a name that was quarantined or let go."""


@dataclass(slots=True)
class Attestor:
    """One per hub. ``await load()`` first; ``run`` beside the server."""

    store: Store
    around: Surroundings
    clock: Clock
    chance: Chance
    log: Log
    """Its decisions go to the audit log as well."""
    _nonces: Nonces = field(init=False)
    _known: dict[str, Attestation] = field(default_factory=dict, init=False)
    _noticed: dict[str, datetime] = field(default_factory=dict, init=False)
    """Late nodes, and when that was first seen: bounded by the roster."""

    def __post_init__(self) -> None:
        self._nonces = Nonces(self.chance.token(32))

    async def load(self) -> None:
        """Read what is known, once at the start."""
        self._known = await self.store.attestations()

    def of(self, name: str) -> Attestation:
        """What is known of a node."""
        return self._known.get(name, Attestation())

    async def joined(self, name: str) -> None:
        """A machine has joined: its first quote is on disk."""
        found = await self.store.attestation(name)
        if found is not None:
            self._known[name] = found
        self._noticed.pop(name, None)

    # The calls

    async def challenge(self, call: Call[AttestChallengeRequest]) -> AttestChallenge:
        """POST /v1/attest/challenge."""
        self._subject(call.peer, call.body.node)
        nonce = self._nonces.make(self.clock.now(), self.chance.token(16))
        return AttestChallenge(nonce, (await self.around.rules()).pcrs)

    async def attest(self, call: Call[AttestRequest]) -> AttestReply:
        """POST /v1/attest. Raises Unproven for a quote that is not this node's own and new;
        it changes nothing, so nobody can make another's node fail."""
        request = call.body
        enrolled = self._subject(call.peer, request.node)
        now, rules = self.clock.now(), await self.around.rules()
        if why := self._nonces.use(request.nonce, now):
            raise Unproven("stale-challenge", f"the challenge is no good: {why}")
        extra = attest_binding(request.nonce, enrolled.name)
        said = judge_quote(request.quote, parse_public(enrolled.ak), extra, rules.pcrs)
        after = self._judged(enrolled, request, said, rules)
        await self._keep(enrolled, after)
        if after.failing_since is not None:
            await self._condemn(enrolled, after, rules)
            wait = max(SOONEST, rules.grace / 4)
            return AttestReply("Failing", wait.total_seconds(), after.reason, after.what)
        self._noticed.pop(enrolled.name, None)
        if enrolled.quarantined.startswith(MARK):
            await self._release(enrolled)
        earlier = 1 - SPREAD * self.chance.fraction()
        return AttestReply("Trusted", rules.interval.total_seconds() * earlier)

    def _judged(
        self, enrolled: Enrolled, request: AttestRequest, said: Attested, rules: JoinRules
    ) -> Attestation:
        before, quote, now = self.of(enrolled.name), request.quote, self.clock.now()
        try:
            if before.counters is not None:
                check_counters(before.counters, said)
            labels = self.around.labels(enrolled.name)
            reference = compare(quote.values, rules.references(labels))
        except Unproven as error:
            return failed(before, error.reason, str(error), now, quote)
        return passed(said, quote, reference, now)

    def _subject(self, peer: Peer, name: str) -> Enrolled:
        """The node that is spoken of. Quarantined ones may attest: it may set them free."""
        caller = peer.required()
        enrolled = self.around.roster.get(name)
        if enrolled is None or enrolled.role != "node":
            raise NotFound(f"there is no node {name[:100]!r}", hint="it was forgotten; join it")
        if not self._may_speak(caller, enrolled):
            raise Forbidden(f"{caller} cannot attest for {name}", hint="each node for itself")
        if not enrolled.ak:
            raise NotFound(
                f"{name} has not joined with a TPM", hint="`edgewise agent join --tpm` does"
            )
        return enrolled

    def _may_speak(self, caller: SpiffeId, enrolled: Enrolled) -> bool:
        own = caller.trust_domain.partition(".")[0] == enrolled.region
        return own and (caller.role == "relay" or caller.name == enrolled.name)

    # Over time

    async def run(self) -> None:
        """Look for nodes that are late or fail for too long, until cancelled."""
        while True:
            await self.clock.sleep(LOOK)
            try:
                await self.look()
            except EdgewiseError as error:
                # The repo or the disk is away: what is known stays, and is looked at again.
                self.log.event("nobody looked at", "warning", because=str(error), hint=error.hint)

    async def look(self) -> None:
        """Once: notice who is late, and act on who fails for longer than the grace."""
        now, rules = self.clock.now(), await self.around.rules()
        for name in [one for one in self._known if self.around.roster.get(one) is None]:
            del self._known[name]  # forgotten
            self._noticed.pop(name, None)
        for enrolled in self.around.roster.all():
            if not enrolled.ak or enrolled.quarantined:
                continue
            kept = self.of(enrolled.name)
            late = is_late(kept, rules.interval, self.around.heard(enrolled.name), now)
            if not late:
                self._noticed.pop(enrolled.name, None)
            elif kept.failing_since is None:
                since = self._noticed.setdefault(enrolled.name, now)
                if now - since >= rules.grace:
                    what = f"it is heard of, and has not attested since {kept.at:%Y-%m-%d %H:%M}"
                    kept = replace(failed(kept, "not-attested", what, now), failing_since=since)
                    await self._keep(enrolled, kept)
            await self._condemn(enrolled, kept, rules)

    async def _keep(self, enrolled: Enrolled, after: Attestation) -> None:
        before = self._known.get(enrolled.name)
        self._known[enrolled.name] = after
        await self.store.keep_attestation(enrolled.name, after)
        if before is None or before.reason != after.reason:
            outcome = after.reason or "trusted"
            self.log.decision("attested", because=outcome, name=enrolled.name, what=after.what)

    async def _condemn(self, enrolled: Enrolled, kept: Attestation, rules: JoinRules) -> None:
        if enrolled.quarantined or not too_long(kept, rules.grace, self.clock.now()):
            return
        if rules.spec.attestation.on_failure == "Report":
            return
        reason = f"{MARK}{kept.reason}: {kept.what}"
        await self.store.quarantine(enrolled.name, reason)
        self.log.decision("quarantined", because=kept.reason, name=enrolled.name, what=kept.what)
        await self.around.changed(enrolled.name)

    async def _release(self, enrolled: Enrolled) -> None:
        await self.store.quarantine(enrolled.name, "")
        self.log.decision("released", because="it attests well again", name=enrolled.name)
        await self.around.changed(enrolled.name)
