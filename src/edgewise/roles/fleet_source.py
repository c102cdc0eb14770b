"""From what git says to what the fleets run: the hub's main line, in order.

A look at git (and at who has joined) gives a compile; the compile is published, proposed to
the rollout engine, and every node's record follows. Each step is idempotent, so a hub that
is killed anywhere repeats the look and ends in the same place.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import msgspec

from edgewise.backends.git.follow import GitWatch
from edgewise.backends.git.repository import GitRepository
from edgewise.backends.pki.sealing import WorkspaceKey
from edgewise.delivery.on_hub import Publisher
from edgewise.identity.admission import JoinRules
from edgewise.identity.ports import Enrolled, Enrolments
from edgewise.model.documents.federation import FederatedTrustDomainSpec
from edgewise.model.errors import EdgewiseError, Forbidden, TryLater
from edgewise.model.names import Digest
from edgewise.net.api.journal import Journal
from edgewise.net.api.ports import Source
from edgewise.net.api.records import Records, Wanted
from edgewise.net.api.relays import RelaySide
from edgewise.net.git_http import Push
from edgewise.net.register import PeopleRegister
from edgewise.net.waiters import Waiters
from edgewise.protocol import limits
from edgewise.protocol.api import Condition, Plan, PlanRequest, SourceStatus
from edgewise.protocol.codec import decode
from edgewise.protocol.content import Artifact, Part, Release, SealedSecret
from edgewise.roles.fleet_identities import FleetIdentities, Granted
from edgewise.rollout.fleet import MemberPlan, Proposal, group_of
from edgewise.rollout.on_hub import Placement, Rollouts
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log
from edgewise.sync import remarks
from edgewise.sync.artifact_rules import lacks
from edgewise.sync.on_hub import Awaiting, Held, Rejected, SourceFollower
from edgewise.sync.ports import CommitSeen, Compiled, CompiledFleet, Inputs, JoinedNode

SETTLE: Final = timedelta(milliseconds=20)
"""What comes together is one look."""
CROWD: Final = timedelta(milliseconds=150)
"""While machines keep joining at shorter distances than this, a look waits for them ..."""
PATIENCE: Final = timedelta(seconds=1)
"""... but no longer than this: a look costs as much for one as for a thousand, and a machine
that has joined has its certificate already; it waits for a place in a fleet."""
RETRY: Final = timedelta(seconds=5)
FIRST_LOOK: Final = timedelta(seconds=20)
"""How long a join is held after a start: who may join stands in the repo."""
CHANNELS_LOOK: Final = timedelta(seconds=30)
"""How soon after a rollout its old release's identities are taken away."""


class PeopleAndMachines:
    """Who has joined, in memory: asked at every poll."""

    def __init__(self, store: Enrolments) -> None:
        self._store = store
        self._known: dict[str, Enrolled] = {}

    async def load(self) -> None:
        """Read all, once at the start; ``load_one`` keeps it true."""
        self._known = {one.name: one for one in await self._store.all()}

    async def load_one(self, name: str) -> Enrolled | None:
        """Read one machine again: a thousand that join must not read each other each time."""
        found = await self._store.get(name)
        if found is None:
            self._known.pop(name, None)
        else:
            self._known[name] = found
        return found

    def get(self, name: str) -> Enrolled | None:
        """One machine."""
        return self._known.get(name)

    def all(self) -> tuple[Enrolled, ...]:
        """All, by name."""
        return tuple(self._known[name] for name in sorted(self._known))


@dataclass(frozen=True, slots=True)
class Parts:
    """What the main line works with."""

    roster: PeopleAndMachines
    publisher: Publisher
    rollouts: Rollouts
    records: Records
    follower: SourceFollower
    watch: GitWatch
    repository: GitRepository
    secrets: WorkspaceKey
    journal: Journal
    people: PeopleRegister
    clock: Clock
    log: Log


class FleetSource:
    """``run`` beside the server. Also the API's view of the repo."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._due = asyncio.Event()
        self._hurry = asyncio.Event()
        """Git may have moved: that waits for no crowd."""
        self._came = asyncio.Event()
        """A machine joined, left or was quarantined since this was cleared."""
        self._looked = asyncio.Condition()
        self._looks = 0
        self._nodes: Waiters | None = None
        self._relays: RelaySide | None = None
        self._retired: set[str] = set()
        self._unapplied: Compiled | None = None
        self._identities = FleetIdentities(parts.publisher)
        self._granted_for: Mapping[str, tuple[str, str]] = {}
        """Fleet to the stable and candidate release that the records were made for."""
        self._rules = JoinRules()
        self.federate: Callable[[tuple[FederatedTrustDomainSpec, ...]], Awaitable[None]] | None = (
            None
        )
        """Told which foreign trust domains the newest good commit names."""

    def connect(self, nodes: Waiters, relays: RelaySide) -> None:
        """Who is woken when a record changes."""
        self._nodes, self._relays = nodes, relays

    @property
    def recipient(self) -> str:
        """What people encrypt secrets in git to (``age1...``)."""
        return self._parts.secrets.recipient

    def admit(self, artifact: Artifact, signers: frozenset[str]) -> None:
        """Raises Forbidden for an artifact that the newest good commit does not want published."""
        good = self._parts.follower.good
        if good is None or good.artifacts.on_publish != "Refuse":
            return
        for lack, hint in lacks(good.artifacts, artifact, signers):
            raise Forbidden(
                f"artifact {artifact.name} {artifact.version} {lack};"
                " the fleet repo's edgewise.yaml refuses such artifacts",
                hint=hint,
            )

    async def join_rules(self) -> JoinRules:
        """Who may join, by the newest good commit. Raises TryLater before the first look."""
        if not self._looks:
            try:
                async with asyncio.timeout(FIRST_LOOK.total_seconds()), self._looked:
                    await self._looked.wait_for(lambda: self._looks > 0)
            except TimeoutError as error:
                raise TryLater(
                    "the hub has not read the fleet repo yet", hint="`edgewise status` says why"
                ) from error
        return self._rules

    @property
    def trust(self) -> str:
        """Who signs what runs: ``hub`` or ``builder``."""
        return self._parts.publisher.mode

    async def run(self) -> None:
        """Look whenever there may be something new, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_git())
            tasks.create_task(self._look_for_ever())
            tasks.create_task(self._follow_channels())

    async def _follow_channels(self) -> None:
        """A rollout that has ended takes away what only the old release was granted."""
        while True:
            await self._parts.clock.sleep(CHANNELS_LOOK)
            if self._channels() != self._granted_for:
                self._due.set()

    def _channels(self) -> dict[str, tuple[str, str]]:
        rollouts = self._parts.rollouts
        found = ((one.name, rollouts.channel(one.name)) for one in rollouts.fleets())
        return {name: (channel.stable, channel.candidate) for name, channel in found}

    async def _follow_git(self) -> None:
        async for _ in self._parts.watch.changes():
            self._hurry.set()
            self._due.set()

    async def _gather(self) -> None:
        """Let what comes together come, before one look at all of it."""
        clock = self._parts.clock
        await clock.sleep(SETTLE)
        end = clock.monotonic() + PATIENCE.total_seconds()
        while self._came.is_set() and not self._hurry.is_set() and clock.monotonic() < end:
            self._came.clear()
            pause = asyncio.ensure_future(clock.sleep(CROWD))
            hurry = asyncio.ensure_future(self._hurry.wait())
            try:
                await asyncio.wait({pause, hurry}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                pause.cancel()
                hurry.cancel()

    async def _look_for_ever(self) -> None:
        self._due.set()
        while True:
            await self._due.wait()
            await self._gather()
            for event in (self._due, self._hurry, self._came):
                event.clear()
            try:
                await self._look()
            except TryLater as error:
                self._parts.log.event("look again", "warning", because=str(error), hint=error.hint)
                await self._parts.clock.sleep(RETRY)
                self._due.set()
            except EdgewiseError as error:
                self._parts.log.event("look failed", "error", because=str(error), hint=error.hint)
            async with self._looked:
                self._looks += 1
                self._looked.notify_all()

    async def _look(self) -> None:
        parts = self._parts
        outcome = await parts.follower.look()
        waiting = {change.id for change in parts.follower.held}
        for change in parts.rollouts.held():
            if change.id not in waiting:  # a newer commit has taken its place
                await parts.rollouts.release_change(change.id)
        match outcome:
            case Compiled():
                await parts.repository.accept(outcome.revision.rpartition(":")[2])
                parts.log.decision("compiled", because=outcome.revision)
                await self._apply(outcome)
            case Held(compiled, still):
                for change in parts.follower.held:
                    await parts.rollouts.hold_change(change)
                parts.log.decision("held", because=compiled.held, revision=compiled.revision)
                await self._apply(still)
            case Awaiting(compiled, unsigned, still):
                why = f"no builder has signed {', '.join(unsigned)}"
                parts.log.decision("awaits a builder", because=why, revision=compiled.revision)
                await self._apply(still)
            case Rejected(revision, problems, still):
                first = str(problems[0]) if problems else ""
                parts.log.decision("commit rejected", because=first, revision=revision)
                await self._apply(still)
            case _ if self._unapplied is not None:
                await self._apply(self._unapplied)
            case _:
                await self._records(parts.follower.good)

    async def _apply(self, compiled: Compiled | None) -> None:
        # Until it is done: a look that is cut short goes on here, although git stands still.
        self._unapplied = compiled
        if compiled is None:
            await self._records(None)
            return
        # Before any node can boot what this commit brings: its references are in here.
        self._rules = JoinRules.of(compiled.join, compiled.device_lists)
        if self.federate is not None:
            await self.federate(compiled.federated)
        parts = self._parts
        if await parts.people.bind(compiled.bindings):
            names = ", ".join(one.name for one in compiled.bindings) or "none"
            await parts.journal.note("hub", "bindings", compiled.revision, names)
        await parts.publisher.publish_releases(
            {fleet.release: fleet.documents for fleet in compiled.fleets.values()},
            builder_only=compiled.trust == "builder",
        )
        if compiled.secrets:
            # Before anybody is told: a node that fetches the release must be able to open them.
            await self._records(compiled)
        kept = {one.name for one in parts.roster.all() if one.quarantined}
        for fleet in compiled.fleets.values():
            decision = await parts.rollouts.propose(_proposal(fleet, compiled, kept), actor="git")
            parts.log.decision(
                "proposed", because=decision.reason, fleet=fleet.name, way=decision.way
            )
        gone = {one.name for one in parts.rollouts.fleets()} - set(compiled.fleets)
        for name in sorted(gone - self._retired):
            await parts.rollouts.retire(name, actor="git")
        self._retired = gone
        await self._records(compiled)
        self._unapplied = None

    async def _records(self, compiled: Compiled | None) -> None:
        """Every machine's record says where it belongs; those whose record is new are woken."""
        parts = self._parts
        self._granted_for = self._channels()
        sealed = await self._sealed(compiled) if compiled is not None else {}
        granted = await self._granted(compiled) if compiled is not None else {}
        wanted: dict[str, Wanted] = {}
        for enrolled in parts.roster.all():
            if enrolled.role != "node" or enrolled.quarantined:
                continue
            place = parts.rollouts.placement(enrolled.name)
            fleet = compiled.fleets.get(place.fleet) if compiled and place else None
            member = fleet.members.get(enrolled.name) if fleet else None
            wanted[enrolled.name] = Wanted(
                enrolled.region,
                place.fleet if place else "",
                place.index if place else 0,
                member.labels if member else enrolled.labels,
                sealed.get(enrolled.name, {}),
                granted[enrolled.name] if compiled else self._granted_before(enrolled.name),
                enrolled.key if enrolled.ak else b"",
            )
        new = await parts.records.put(wanted)
        if not new:
            return
        if self._nodes is not None:
            self._nodes.wake_each(new)
        if self._relays is not None:
            self._relays.wake()

    async def _granted(self, compiled: Compiled) -> Mapping[str, Granted]:
        """Node to the workload identities that it may ask for."""
        rollouts = self._parts.rollouts
        found: dict[str, Granted] = defaultdict(dict)
        channels = self._granted_for
        for fleet in compiled.fleets.values():
            here = [name for name in fleet.members if _is_in(rollouts.placement(name), fleet.name)]
            channel = rollouts.channel(fleet.name) if fleet.name in channels else None
            found |= await self._identities.of(fleet, channel, here)
        named = {digest for pair in channels.values() for digest in pair}
        self._identities.keep(named | {fleet.release for fleet in compiled.fleets.values()})
        return found

    def _granted_before(self, node: str) -> Granted:
        """While no commit compiles, everybody keeps what they have."""
        record = self._parts.records.get(node)
        return dict(record[0].identities) if record else {}

    async def _sealed(self, compiled: Compiled) -> dict[str, dict[str, str]]:
        """Node to its secrets: source digest to the object that only this node can open."""
        parts = self._parts
        found: dict[str, dict[str, str]] = {}
        if not compiled.secrets:
            return found
        for fleet in compiled.fleets.values():
            for node, sources in _secrets_of(fleet).items():
                enrolled = parts.roster.get(node)
                if enrolled is None or not enrolled.age_recipient:
                    continue
                record = parts.records.get(node)
                before = record[0].sealed if record else {}
                mine = found.setdefault(node, {})
                for source in sources:
                    if source in before:
                        mine[source] = before[source]
                        continue
                    document = compiled.secrets[source]
                    data = parts.secrets.reseal(document, enrolled.age_recipient)
                    digest = Digest.of(data).sha256
                    await parts.publisher.put_objects({digest: data})
                    mine[source] = digest
        return found

    # What the API asks.

    def status(self) -> SourceStatus:
        """Where the repo stands, and whether it can be reached at all."""
        status, trouble = self._parts.follower.status(), self._parts.watch.trouble
        if trouble is None:
            return status
        away = Condition("Ready", False, "SourceUnreachable", f"{trouble} {trouble.hint}".strip())
        others = (one for one in status.conditions if one.type != "Ready")
        return msgspec.structs.replace(status, conditions=(away, *others))

    def wake(self) -> None:
        """Look at git now."""
        self._parts.watch.poke()

    def look_again(self) -> None:
        """What a compile depends on has changed, although git has not moved."""
        self._hurry.set()
        self._due.set()

    async def commit(self, revision: str) -> CommitSeen:
        """What became of a commit. Raises NotFound."""
        return await self._parts.follower.commit(revision)

    async def plan(self, request: PlanRequest) -> Plan:
        """What a commit would do. Raises NotFound."""
        return await self._parts.follower.plan(request)

    async def approve(self, identifier: str, *, actor: str, reason: str) -> None:
        """Let a held change go on. Raises NotFound."""
        outcome = await self._parts.follower.approve(identifier)
        await self._parts.rollouts.release_change(identifier)
        self._parts.log.decision("approved", because=reason or actor, change=identifier)
        if isinstance(outcome, Compiled):
            await self._apply(outcome)

    async def changed(self, name: str) -> None:
        """A machine joined, was forgotten or quarantined: its record and fleet follow."""
        enrolled = await self._parts.roster.load_one(name)
        if enrolled is None or enrolled.quarantined:
            # Without a record it is gone for the relays: they refuse it and renew nothing.
            # A release makes the record anew, which lets it in again.
            await self._parts.records.forget(name)
            if self._relays is not None:
                self._relays.wake()
        if self._nodes is not None:
            self._nodes.wake(name)
        self._came.set()
        self._due.set()

    async def pushed(self, push: Push) -> tuple[str, ...]:
        """After a push: look now, and say to the pusher what came of it."""
        parts = self._parts
        await parts.journal.note((push.user, push.address), "git.push", ", ".join(push.moved))
        if parts.repository.ref not in push.moved:
            return (f"edgewise follows {parts.repository.branch}; this push changes nothing",)
        seen = self._looks
        parts.watch.poke()
        self._hurry.set()
        self._due.set()
        async with self._looked:
            await self._looked.wait_for(lambda: self._looks > seen)
        good, status = parts.follower.good, parts.follower.status()
        if status.problems:
            return remarks.mistaken(status.revision, status.problems)
        if good is not None and good.revision == status.revision:
            return remarks.accepted(good)
        return tuple(f"{line.reason}: {line.message}" for line in status.conditions)


async def inputs_of(publisher: Publisher, roster: PeopleAndMachines) -> Inputs:
    """What a compile depends on besides the commit."""
    joined = tuple(
        JoinedNode(one.name, one.labels, one.platform)
        for one in roster.all()
        if one.role == "node" and not one.quarantined
    )
    signers = dict(publisher.signers())
    return Inputs(dict(publisher.artifacts()), joined, publisher.mode, signers)


def unsigned_of(publisher: Publisher, compiled: Compiled) -> tuple[str, ...]:
    """Fleets whose release a builder has to sign, and has not."""
    if compiled.trust == "hub":
        return ()
    fleets = compiled.fleets.values()
    return tuple(
        f"{one.name} ({one.release[:12]})" for one in fleets if not publisher.is_signed(one.release)
    )


def _proposal(fleet: CompiledFleet, compiled: Compiled, kept: Set[str]) -> Proposal:
    """``kept``: nodes in quarantine. They get nothing, so no rollout may wait for them."""
    members = {
        name: MemberPlan(
            member.selection,
            fleet.stages[name],
            group_of(name, member.labels, fleet.rules),
            member.held or name in kept,
        )
        for name, member in fleet.members.items()
    }
    return Proposal(
        fleet.name, fleet.release, compiled.revision, fleet.rules, members, fleet.suspended
    )


def _is_in(place: Placement | None, fleet: str) -> bool:
    return place is not None and place.fleet == fleet


def _secrets_of(fleet: CompiledFleet) -> dict[str, set[str]]:
    """Node to the source digests of the secrets that its parts name."""
    release = decode(
        fleet.documents[fleet.release], Release, what="release", at_most=limits.RELEASE
    )
    refs = [ref for ref in release.parts if ref.kind == "secret"]
    sources: dict[str, str] = {}
    found: dict[str, set[str]] = {}
    for ref in refs:
        for name, member in fleet.members.items():
            digest = ref.choose(name, member.labels)
            if not digest:
                continue
            if digest not in sources:
                data = fleet.documents[digest]
                part: Part = decode(data, Part, what="secret part", at_most=limits.PART)  # type: ignore[arg-type]
                sources[digest] = part.source if isinstance(part, SealedSecret) else ""
            if sources[digest]:
                found.setdefault(name, set()).add(sources[digest])
    return found


def _meets_its_port(source: FleetSource) -> Source:
    return source
