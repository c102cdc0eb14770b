"""The node half of a rollout: from a target to a verdict, as a state machine.

Everything that decides what a node does next with a release lives in this file; nothing
here reads a clock, a disk or a socket. ``rollout.on_agent`` saves the node after every
step, before it performs the actions, so an agent that dies goes on where it was.

Laws (tests/unit/rollout/test_rollout_node.py holds them against random events):
1. ``running`` is always a release that was applied, or "" before the first.
2. Once Applying has begun, a change ends in just one receipt, Succeeded, RolledBack or
   Failed; nothing that the hub says stops it half-way.
3. Only the newest target is remembered; the ones in between are never applied.
4. A release that failed in a rollout is not tried again in that rollout.
5. A target whose parts are those that run restarts nothing and succeeds at once.
6. AgentStarted in any state leads to the same end as if the agent had not died.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, assert_never

import msgspec

from edgewise.protocol.channel import Channel
from edgewise.protocol.limits import RECEIPTS_KEPT
from edgewise.protocol.report import Phase, Receipt, Traffic

FAILURES_KEPT: Final = 16
"""Failed (release, rollout) pairs that a node remembers; the oldest go first."""
_REASON: Final = 1000

Outcome = Literal["Succeeded", "Failed", "RolledBack"]


class Target(msgspec.Struct, frozen=True):
    """What the channel says this node should run."""

    release: str
    rollout: str = ""
    candidate: bool = False
    """It is the channel's candidate: the hub waits for this node's receipt."""
    backward: bool = False
    """The hub takes the node back to an older release: success is called RolledBack."""


def target_of(channel: Channel, index: int, running: str, previous: str) -> Target:
    """The channel's word for the node with this index, with what success will be called."""
    release = channel.target(index, running)
    candidate = bool(release) and release == channel.candidate
    left_bad = running in channel.quarantined
    return Target(
        release=release,
        rollout=channel.rollout,
        candidate=candidate,
        backward=release != running and not candidate and (left_bad or release == previous),
    )


class Fetch(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a fetch did, for the receipt."""

    bytes_fetched: int = 0
    bytes_full: int = 0
    changed: tuple[str, ...] = ()
    traffic: Traffic = Traffic()


# States


class Idle(msgspec.Struct, frozen=True, tag="Idle"):
    """There is nothing to do, or the target failed here before (then ``reason`` says so)."""

    reason: str = ""


class Downloading(msgspec.Struct, frozen=True, tag="Downloading"):
    target: Target
    since: datetime
    reason: str = ""
    """Why the last try broke off; it is repeated."""


class Ready(msgspec.Struct, frozen=True, tag="Ready"):
    """Staged whole and verified; waits for the apply window."""

    target: Target
    since: datetime
    fetch: Fetch


class Applying(msgspec.Struct, frozen=True, tag="Applying"):
    target: Target
    since: datetime
    fetch: Fetch


class Verifying(msgspec.Struct, frozen=True, tag="Verifying"):
    """Active; its apps must stay healthy for their ``min_ready_s``."""

    target: Target
    since: datetime
    fetch: Fetch


class RollingBack(msgspec.Struct, frozen=True, tag="RollingBack"):
    target: Target
    since: datetime
    fetch: Fetch
    reason: str


State = Idle | Downloading | Ready | Applying | Verifying | RollingBack


class Failure(msgspec.Struct, frozen=True):
    """A release that this node will not try again in the same rollout."""

    release: str
    rollout: str
    reason: str


class Node(msgspec.Struct, frozen=True):
    """All that must survive the agent: saved whole, in one write, after every step."""

    name: str
    running: str = ""
    previous: str = ""
    """What ran before ``running``: the node can put it back by itself."""
    state: State = Idle()
    waiting: Target | None = None
    """Newest target that came while a change was under way."""
    failed: tuple[Failure, ...] = ()
    sequence: int = 0
    """Of the last receipt."""
    owed: tuple[Receipt, ...] = ()
    """Receipts that nobody has acknowledged yet, oldest first."""
    reported: str = ""
    """``release rollout`` of the last success, so that it is reported once."""


# Events


@dataclass(frozen=True, slots=True)
class TargetSet:
    """The channel (or the record) changed, and says this."""

    target: Target


@dataclass(frozen=True, slots=True)
class Fetched:
    release: str
    same: bool
    """Its parts for this node are those of ``running``."""
    fetch: Fetch


@dataclass(frozen=True, slots=True)
class FetchFailed:
    release: str
    reason: str
    final: bool
    """Repeating cannot help (Untrusted, NeedsPerson)."""


@dataclass(frozen=True, slots=True)
class WindowOpened:
    release: str


@dataclass(frozen=True, slots=True)
class Applied:
    release: str


@dataclass(frozen=True, slots=True)
class Settled:
    """Unbroken health for long enough."""

    release: str


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """It could not be applied, or its apps are not healthy."""

    release: str
    reason: str


@dataclass(frozen=True, slots=True)
class Restored:
    """What ran before runs again (or nothing does, when nothing did)."""

    problem: str = ""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Receipts up to this sequence are stored at the hub or relay."""

    sequence: int


@dataclass(frozen=True, slots=True)
class AgentStarted:
    """The first event in every life of the agent."""


Event = (
    TargetSet
    | Fetched
    | FetchFailed
    | WindowOpened
    | Applied
    | Settled
    | Unhealthy
    | Restored
    | Acknowledged
    | AgentStarted
)


# Actions


@dataclass(frozen=True, slots=True)
class BeginFetch:
    """Fetch and stage; it replaces a fetch that is under way."""

    release: str


@dataclass(frozen=True, slots=True)
class StopFetching:
    """Nobody wants what is being fetched any more."""


@dataclass(frozen=True, slots=True)
class AwaitWindow:
    release: str


@dataclass(frozen=True, slots=True)
class Apply:
    """Make it the active release and start what changed. Idempotent."""

    release: str
    was: str


@dataclass(frozen=True, slots=True)
class Settle:
    """Watch the apps that changed against ``was`` until they settle or fail."""

    release: str
    was: str


@dataclass(frozen=True, slots=True)
class Restore:
    """Put ``release`` back ("" for nothing) after ``failed``. Idempotent."""

    release: str
    failed: str


@dataclass(frozen=True, slots=True)
class Confirm:
    """``release`` stays: what was kept for going back to before ``previous`` can go."""

    release: str
    previous: str


Action = BeginFetch | StopFetching | AwaitWindow | Apply | Settle | Restore | Confirm
Step = tuple[Node, tuple[Action, ...]]


def phase_of(node: Node) -> tuple[Phase, str]:
    """What the observation shows, and the reason."""
    match node.state:
        case Idle(reason):
            return ("Blocked" if reason else "Idle"), reason
        case Downloading(_, _, reason):
            return "Downloading", reason
        case Ready():
            return "Ready", "waits for the apply window"
        case Applying():
            return "Applying", ""
        case Verifying():
            return "Verifying", ""
        case RollingBack(_, _, _, reason):
            return "RollingBack", reason
        case _:
            assert_never(node.state)


def target_release(node: Node) -> str:
    """What it is working towards; ``running`` when there is nothing to do."""
    return node.running if isinstance(node.state, Idle) else node.state.target.release


def step(node: Node, event: Event, now: datetime) -> Step:
    """What follows from one event. Events that speak of another release are ignored."""
    match event:
        case AgentStarted():
            return node, _resume(node)
        case Acknowledged(sequence):
            owed = tuple(r for r in node.owed if r.sequence > sequence)
            return msgspec.structs.replace(node, owed=owed), ()
        case TargetSet(target):
            return _targeted(node, target, now)
        case Fetched() | FetchFailed() | WindowOpened():
            return _before_applying(node, event, now)
        case Applied() | Settled() | Unhealthy() | Restored():
            return _from_applying(node, event, now)
        case _:
            assert_never(event)


def _resume(node: Node) -> tuple[Action, ...]:
    match node.state:
        case Idle():
            return ()
        case Downloading(target):
            return (BeginFetch(target.release),)
        case Ready(target):
            return (AwaitWindow(target.release),)
        case Applying(target):
            return (Apply(target.release, node.running),)
        case Verifying(target):
            return (Settle(target.release, node.running),)
        case RollingBack(target):
            return (Restore(node.running, target.release),)
        case _:
            assert_never(node.state)


def _targeted(node: Node, target: Target, now: datetime) -> Step:
    match node.state:
        case Applying() | Verifying() | RollingBack():
            return msgspec.structs.replace(node, waiting=target), ()
        case Downloading(current) | Ready(current):
            if current.release == target.release:
                state = msgspec.structs.replace(node.state, target=target)
                return msgspec.structs.replace(node, state=state), ()
            fresh, actions = _begin(node, target, now)
            replaced = any(isinstance(a, BeginFetch) for a in actions)
            return fresh, actions if replaced else (StopFetching(), *actions)
        case Idle():
            return _begin(node, target, now)
        case _:
            assert_never(node.state)


def _begin(node: Node, target: Target, now: datetime) -> Step:
    """From rest: towards ``target``, or nowhere when there is a reason."""
    if target.release in ("", node.running):
        idle = msgspec.structs.replace(node, state=Idle(), waiting=None)
        key = f"{target.release} {target.rollout}"
        if target.release and target.candidate and key != node.reported:
            return _receipt(idle, _Ending(target, now, "Succeeded"), now), ()
        return idle, ()
    for failure in node.failed:
        if (failure.release, failure.rollout) == (target.release, target.rollout):
            state = Idle(f"{target.release[:12]} failed on this node: {failure.reason}"[:500])
            return msgspec.structs.replace(node, state=state, waiting=None), ()
    return (
        msgspec.structs.replace(node, state=Downloading(target, now), waiting=None),
        (BeginFetch(target.release),),
    )


def _before_applying(
    node: Node, event: Fetched | FetchFailed | WindowOpened, now: datetime
) -> Step:
    state = node.state
    match event:
        case Fetched(release, same, fetch):
            if not isinstance(state, Downloading) or state.target.release != release:
                return node, ()
            if same:
                # Law 5, but through Applying: the link to the active release still moves.
                applying = Applying(state.target, state.since, fetch)
                return (
                    msgspec.structs.replace(node, state=applying),
                    (Apply(release, node.running),),
                )
            ready = Ready(state.target, state.since, fetch)
            return msgspec.structs.replace(node, state=ready), (AwaitWindow(release),)
        case FetchFailed(release, reason, final):
            if not isinstance(state, Downloading) or state.target.release != release:
                return node, ()
            if final:
                return _failed(node, _Ending(state.target, state.since, "Failed", reason), now)
            retry = msgspec.structs.replace(state, reason=reason[:500])
            return msgspec.structs.replace(node, state=retry), ()
        case WindowOpened(release):
            if not isinstance(state, Ready) or state.target.release != release:
                return node, ()
            applying = Applying(state.target, state.since, state.fetch)
            return msgspec.structs.replace(node, state=applying), (Apply(release, node.running),)
        case _:
            assert_never(event)


def _from_applying(
    node: Node, event: Applied | Settled | Unhealthy | Restored, now: datetime
) -> Step:
    state = node.state
    match event:
        case Applied(release):
            if isinstance(state, Applying) and state.target.release == release:
                verifying = Verifying(state.target, state.since, state.fetch)
                return (
                    msgspec.structs.replace(node, state=verifying),
                    (Settle(release, node.running),),
                )
        case Settled(release):
            if isinstance(state, Verifying) and state.target.release == release:
                return _succeeded(node, state, now)
        case Unhealthy(release, reason):
            if isinstance(state, (Applying, Verifying)) and state.target.release == release:
                back = RollingBack(state.target, state.since, state.fetch, reason[:_REASON])
                return (
                    msgspec.structs.replace(node, state=back),
                    (Restore(node.running, release),),
                )
        case Restored(problem):
            if isinstance(state, RollingBack):
                reason = f"{state.reason}; going back: {problem}" if problem else state.reason
                ending = _Ending(state.target, state.since, "Failed", reason, state.fetch)
                return _failed(node, ending, now)
        case _:
            assert_never(event)
    return node, ()


@dataclass(frozen=True, slots=True)
class _Ending:
    target: Target
    since: datetime
    outcome: Outcome
    reason: str = ""
    fetch: Fetch = field(default_factory=Fetch)


def _succeeded(node: Node, state: Verifying, now: datetime) -> Step:
    release = state.target.release
    outcome: Outcome = "RolledBack" if state.target.backward else "Succeeded"
    done = msgspec.structs.replace(
        node, running=release, previous=node.running, state=Idle(), waiting=None
    )
    done = _receipt(done, _Ending(state.target, state.since, outcome, "", state.fetch), now)
    after, actions = _next(done, node.waiting, now)
    return after, (Confirm(release, node.running), *actions)


def _failed(node: Node, ending: _Ending, now: datetime) -> Step:
    target, reason = ending.target, ending.reason[:_REASON]
    failure = Failure(target.release, target.rollout, reason)
    kept = (*(f for f in node.failed if f != failure), failure)[-FAILURES_KEPT:]
    state = Idle(f"{target.release[:12]} failed on this node: {reason}"[:500])
    done = msgspec.structs.replace(node, state=state, failed=kept, waiting=None)
    return _next(_receipt(done, ending, now), node.waiting, now)


def _next(node: Node, waiting: Target | None, now: datetime) -> Step:
    return (node, ()) if waiting is None else _begin(node, waiting, now)


def _receipt(node: Node, ending: _Ending, now: datetime) -> Node:
    """The node with one more receipt owed."""
    target = ending.target
    receipt = Receipt(
        node=node.name,
        sequence=node.sequence + 1,
        outcome=ending.outcome,
        release=target.release,
        running=node.running,
        rollout=target.rollout,
        at=now,
        reason=ending.reason[:_REASON],
        bytes_fetched=ending.fetch.bytes_fetched,
        bytes_full=ending.fetch.bytes_full,
        seconds=max(0.0, (now - ending.since).total_seconds()),
        changed=ending.fetch.changed,
        traffic=ending.fetch.traffic,
    )
    reported = node.reported
    if ending.outcome != "Failed":
        reported = f"{target.release} {target.rollout}"
    return msgspec.structs.replace(
        node,
        sequence=receipt.sequence,
        owed=(*node.owed, receipt)[-RECEIPTS_KEPT:],
        reported=reported,
    )
