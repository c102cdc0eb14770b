"""Following the fleet repo: look, compile, remember. A broken repo changes nothing.

The last good compile stays in memory and is what the fleets follow. After a restart it is
made again from its commit, which gives the same digests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from edgewise.model.errors import EdgewiseError, NotFound, Untrusted
from edgewise.protocol.api import (
    Condition,
    HeldChange,
    Plan,
    PlanRequest,
    SourceProblem,
    SourceStatus,
)
from edgewise.protocol.travel import TreeBytes, TreeChange
from edgewise.runtime.clock import Clock
from edgewise.sync.compile import compile_workspace
from edgewise.sync.parse import ROOT, ParseCache
from edgewise.sync.plan import Planning, plan_refused
from edgewise.sync.ports import (
    CommitCheck,
    CommitSeen,
    Compiled,
    CompileFailed,
    CompileMemory,
    Inputs,
    Repository,
    Snapshot,
)


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Neither the commit nor what it depends on moved."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The newest commit has mistakes, or nobody we trust signed it."""

    revision: str
    problems: tuple[SourceProblem, ...]
    still: Compiled | None = None
    """What the fleets follow meanwhile: the last good commit with today's nodes."""


@dataclass(frozen=True, slots=True)
class Held:
    """The newest commit compiled, but a person must agree first: ``compiled.held`` says why."""

    compiled: Compiled
    still: Compiled | None = None
    """What the fleets follow meanwhile."""


@dataclass(frozen=True, slots=True)
class Awaiting:
    """The newest commit compiled to releases that no builder has signed yet."""

    compiled: Compiled
    unsigned: tuple[str, ...]
    """Fleets whose release waits."""
    still: Compiled | None = None
    """What the fleets follow meanwhile."""


Outcome = Compiled | Held | Awaiting | Rejected | Unchanged


Weigh = Callable[[Sequence[TreeChange]], Awaitable[tuple[TreeBytes, ...]]]


async def _unknown(changes: Sequence[TreeChange]) -> tuple[TreeBytes, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a follower reads from and writes to."""

    repository: Repository
    inputs: Callable[[], Awaitable[Inputs]]
    """Artifacts and joined nodes as they are now."""
    memory: CompileMemory
    signatures: CommitCheck | None = None
    """None: commits are not checked (`edgewise plan` on a laptop)."""
    unsigned: Callable[[Compiled], tuple[str, ...]] = lambda compiled: ()
    """Fleets whose release a builder has to sign first and has not; asked again at each look."""
    weigh: Weigh = _unknown
    """What travels for each change of trees, in the order asked; without it trees count whole."""


class SourceFollower:
    """Call ``look`` whenever git, the artifacts or the joined nodes may have changed."""

    def __init__(self, sources: Sources, clock: Clock, cache: ParseCache | None = None) -> None:
        self._sources = sources
        self._clock = clock
        self._cache = cache or ParseCache()
        self._one_at_a_time = asyncio.Lock()
        self._good: Compiled | None = None
        self._newest: CommitSeen | None = None
        self._inputs: Inputs | None = None
        self._approved = ""
        self._awaiting: Compiled | None = None
        self._trouble: EdgewiseError | None = None

    @property
    def good(self) -> Compiled | None:
        """What the fleets follow: the last commit that compiled and was not held."""
        return self._good

    @property
    def held(self) -> tuple[HeldChange, ...]:
        """The newest commit, when it waits for a person."""
        if self._newest is None or not self._newest.held or self._awaiting is not None:
            return ()
        seen = self._newest
        return (HeldChange(_held_id(seen.commit), seen.revision, seen.held),)

    async def look(self) -> Outcome:
        """Compile the newest commit if anything moved.

        Raises TryLater when the repository cannot be read now; the fleets keep what they have.
        """
        async with self._one_at_a_time:
            try:
                outcome = await self._look()
            except EdgewiseError as error:
                self._trouble = error
                raise
            self._trouble = None
            return outcome

    async def approve(self, identifier: str) -> Outcome:
        """Let a held change go on. Raises NotFound when it is no longer the newest."""
        async with self._one_at_a_time:
            seen = self._newest
            waits = seen is not None and seen.held and self._awaiting is None
            if seen is None or not waits or identifier != _held_id(seen.commit):
                raise NotFound(
                    f"no change {identifier!r} waits for approval",
                    hint="`edgewise status` lists what does",
                )
            self._approved = seen.commit
            self._inputs = None
            return await self._look()

    async def commit(self, revision: str) -> CommitSeen:
        """What became of a commit: by object id, a prefix, or as ``main@sha1:...``.

        Raises NotFound for one that the hub has not looked at.
        """
        wanted = revision.rpartition(":")[2]
        seen = await self._sources.memory.recall(wanted)
        if seen is None:
            raise NotFound(
                f"the hub has not looked at commit {wanted[:60]!r}",
                hint="`git log` lists commits; give at least 4 digits",
            )
        return seen

    async def plan(self, request: PlanRequest) -> Plan:
        """What ``head`` would do to the fleets, or to what ``base`` would run.

        Raises NotFound for a revision that the repository does not have.
        """
        async with self._one_at_a_time:
            inputs = await self._sources.inputs()
            before: Compiled | None
            if request.base:
                base = await self._sources.repository.snapshot(request.base)
                try:
                    before = await self._compile(base, inputs, None)
                except CompileFailed as failed:
                    return plan_refused(base.revision, request.head, failed.problems)
            else:
                before = self._good
            head = await self._sources.repository.snapshot(request.head)
            try:
                after = await self._compile(head, inputs, before)
            except CompileFailed as failed:
                base_name = before.revision if before else ""
                return plan_refused(base_name, head.revision, failed.problems)
        planning = await asyncio.to_thread(Planning, before, after)
        changes = await asyncio.to_thread(lambda: planning.changes)
        weighed = await self._sources.weigh(changes)
        return await asyncio.to_thread(planning.plan, dict(zip(changes, weighed, strict=False)))

    def status(self) -> SourceStatus:
        """Where the repo stands, in kstatus conditions."""
        seen = self._newest
        return SourceStatus(
            revision=seen.revision if seen else "",
            compiled=self._good.revision if self._good else "",
            conditions=self._conditions(),
            problems=seen.problems if seen else (),
        )

    def _conditions(self) -> tuple[Condition, ...]:
        seen = self._newest
        if self._trouble is not None:
            return (Condition("Ready", False, "CannotRead", str(self._trouble)),)
        if seen is None:
            return (Condition("Reconciling", True, "NoCommit", "push a first commit"),)
        if seen.problems:
            message = f"{len(seen.problems)} mistakes, first {seen.problems[0]}"
            return (
                Condition("Ready", False, "CommitRejected", message, seen.seen),
                Condition("Stalled", True, "CommitRejected", "correct it and push", seen.seen),
            )
        if self._awaiting is not None:
            command = f"edgewise release sign --head {seen.commit[:12]} --key FILE"
            return (
                Condition("Ready", False, "AwaitingBuilderSignature", seen.held, seen.seen),
                Condition(
                    "Stalled", True, "AwaitingBuilderSignature",
                    f"{seen.held}; a builder runs `{command}` in the repo", seen.seen,
                ),
            )  # fmt: skip
        if seen.held:
            return (
                Condition("Ready", False, "WaitingForApproval", seen.held, seen.seen),
                Condition("Stalled", True, "WaitingForApproval", "approve it", seen.seen),
            )
        return (Condition("Ready", True, "Compiled", seen.revision, seen.seen),)

    async def _look(self) -> Outcome:
        if self._newest is None:
            await self._remember_past()
        head = await self._sources.repository.head()
        if head is None:
            return Unchanged()
        inputs = await self._sources.inputs()
        moved = self._newest is None or self._newest.commit != head
        signed = self._awaiting is not None and not self._sources.unsigned(self._awaiting)
        if not moved and self._inputs == inputs and not signed:
            return Unchanged()
        snapshot = await self._sources.repository.snapshot(head)
        try:
            if moved and self._sources.signatures is not None:
                good = self._good.revision.rpartition(":")[2] if self._good else None
                await self._sources.signatures.check(head, good)
            elif self._distrusted():
                return await self._rejected(snapshot, self._newest_problems(), inputs)
            compiled = await self._compile(snapshot, inputs, self._good)
        except CompileFailed as failed:
            return await self._rejected(snapshot, failed.problems, inputs)
        except Untrusted as error:
            problem = SourceProblem(ROOT, 1, 1, str(error), error.hint, value=_DISTRUSTED)
            return await self._rejected(snapshot, (problem,), inputs)
        return await self._accepted(snapshot, compiled, inputs)

    def _distrusted(self) -> bool:
        """Whether the newest was refused for its signature, which no new input can mend."""
        return any(problem.value == _DISTRUSTED for problem in self._newest_problems())

    def _newest_problems(self) -> tuple[SourceProblem, ...]:
        return self._newest.problems if self._newest else ()

    async def _accepted(self, snapshot: Snapshot, compiled: Compiled, inputs: Inputs) -> Outcome:
        if self._approved == snapshot.commit:
            compiled = _unheld(compiled)
        releases = {name: fleet.release for name, fleet in compiled.fleets.items()}
        unsigned = () if compiled.held else self._sources.unsigned(compiled)
        waits = f"no builder has signed {', '.join(unsigned)}" if unsigned else compiled.held
        self._awaiting = compiled if unsigned else None
        await self._keep(snapshot, CommitFate((), releases, waits))
        if waits:
            still = await self._again(inputs)
            self._inputs = inputs
            return Awaiting(compiled, unsigned, still) if unsigned else Held(compiled, still)
        self._good, self._inputs = compiled, inputs
        return compiled

    async def _rejected(
        self, snapshot: Snapshot, problems: tuple[SourceProblem, ...], inputs: Inputs
    ) -> Rejected:
        self._awaiting = None
        await self._keep(snapshot, CommitFate(problems, {}, ""))
        still = await self._again(inputs)
        self._inputs = inputs
        return Rejected(snapshot.revision, problems, still)

    async def _again(self, inputs: Inputs) -> Compiled | None:
        """The last good commit with today's inputs, so that nodes that join get a fleet."""
        if self._good is None or self._inputs == inputs:
            return self._good
        commit = self._good.revision.rpartition(":")[2]
        try:
            snapshot = await self._sources.repository.snapshot(commit)
            again = _unheld(await self._compile(snapshot, inputs, None))
            if not self._sources.unsigned(again):
                self._good = again
        except (CompileFailed, NotFound):
            # It compiled before; what is in memory still is what the fleets follow.
            return self._good
        return self._good

    async def _compile(
        self, snapshot: Snapshot, inputs: Inputs, previous: Compiled | None
    ) -> Compiled:
        # In a thread: thousands of polls are answered meanwhile. The lock keeps it the only one.
        return await asyncio.to_thread(compile_workspace, snapshot, inputs, self._cache, previous)

    async def _keep(self, snapshot: Snapshot, fate: CommitFate) -> None:
        known = await self._sources.memory.recall(snapshot.commit)
        self._newest = CommitSeen(
            revision=snapshot.revision,
            author=snapshot.author,
            subject=snapshot.subject,
            seen=known.seen if known else self._clock.now(),
            compiled=not fate.problems,
            problems=fate.problems,
            releases=fate.releases,
            held=fate.held,
        )
        await self._sources.memory.remember(self._newest)

    async def _remember_past(self) -> None:
        """After a restart: what the fleets follow is made again from its commit."""
        past = await self._sources.memory.last_good()
        if past is None or self._good is not None:
            return
        try:
            snapshot = await self._sources.repository.snapshot(past.commit)
            self._good = _unheld(await self._compile(snapshot, await self._sources.inputs(), None))
        except (CompileFailed, NotFound):
            # The history was rewritten or an artifact is gone: the newest commit decides.
            return


@dataclass(frozen=True, slots=True)
class CommitFate:
    """What became of a commit."""

    problems: tuple[SourceProblem, ...]
    releases: dict[str, str]
    held: str


_DISTRUSTED = "signature"


def _unheld(compiled: Compiled) -> Compiled:
    return replace(compiled, held="")


def _held_id(commit: str) -> str:
    return f"held-{commit[:12]}"
