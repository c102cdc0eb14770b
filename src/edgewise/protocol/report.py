"""What a node says of itself: observations (now) and receipts (signed, for the record)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Literal

import msgspec

from edgewise.protocol import limits

Health = Literal["Healthy", "Progressing", "Degraded", "Suspended", "Missing", "Unknown"]
Phase = Literal["Idle", "Downloading", "Ready", "Applying", "Verifying", "RollingBack", "Blocked"]


class AppStatus(msgspec.Struct, frozen=True):
    """One app on one node."""

    name: str
    health: Health
    restarts: int = 0
    reason: str = ""
    """Why it is not Healthy, with the next move; at most 500 characters."""
    pid: int = 0


class Observation(msgspec.Struct, frozen=True, omit_defaults=True):
    """The node's state, sent only when it changed. Always says which release it speaks of."""

    running: str = ""
    """Release digest that is active; empty before the first."""
    previous: str = ""
    """Release digest that the node can put back by itself."""
    target: str = ""
    """Release digest it is working towards; equal to running when there is nothing to do."""
    phase: Phase = "Idle"
    reason: str = ""
    """Why it is in this phase, in a sentence, when that is not obvious."""
    health: Health = "Unknown"
    """The worst of its apps."""
    apps: tuple[AppStatus, ...] = ()
    drifted: tuple[str, ...] = ()
    """Paths that differ from their Config and were not (yet) put right."""
    progress: float = 0.0
    """0 to 1 while Downloading."""
    window: Literal["", "download", "apply"] = ""
    """The update window that it waits for; empty when it waits for none."""
    opens: datetime | None = None
    """When that window opens, by the node's clock; None: not within four years."""
    platform: str = ""
    version: str = ""
    """Of the agent."""
    mode: str = ""
    """How it holds apps together: ``cgroup``, or ``session`` where no cgroup is writable."""
    boot_id: str = ""
    free_bytes: int = 0
    channel: int = 0
    """Sequence of the newest channel that the node has verified."""
    bundles: int = 0
    """Sequence of the newest trust bundles that it has verified and uses."""
    issuer: str = ""
    """Hex SHA-256 of the root certificate above its own: tells when a root is used no more."""
    keys: Literal["", "tpm", "file"] = ""
    """How its private keys lie on its disk: sealed to its TPM, or as files; empty: not said."""


class Refused(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was to bring bytes and did not: why a fetch fell a step to a dearer way."""

    what: str
    """Digest of a delta's head, or of the list of deltas; empty: of several files."""
    why: str
    bytes: int = 0
    """That came of it, used or not."""
    times: int = 1
    """Nodes that refused it, where several are summed up; else files that it concerned."""


class Traffic(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the bytes of a release came, by way: ``delta``, ``chain``, ``pack``, ``whole``, and
    ``document`` for what says which contents there are."""

    planned: dict[str, int] = {}
    """As they were expected when the first content was asked for."""
    used: dict[str, int] = {}
    """As they came, since the node's last start of the fetch."""
    requests: int = 0
    refused: tuple[Refused, ...] = ()
    """``limits.REFUSED`` at most; those that cost most."""


def dearest(found: Iterable[Refused]) -> tuple[Refused, ...]:
    """Those that cost most, each reason cut, as many as a report carries."""
    ordered = sorted(found, key=lambda one: (-one.bytes, -one.times, one.what, one.why))
    return tuple(
        msgspec.structs.replace(one, why=one.why[: limits.REFUSED_WHY])
        for one in ordered[: limits.REFUSED]
    )


def sum_of(several: Iterable[Traffic]) -> Traffic:
    """Of many nodes."""
    planned: Counter[str] = Counter()
    used: Counter[str] = Counter()
    requests = 0
    refused: dict[tuple[str, str], tuple[int, int]] = {}
    for one in several:
        planned.update(one.planned)
        used.update(one.used)
        requests += one.requests
        for each in one.refused[: limits.REFUSED]:
            cost, times = refused.get((each.what, each.why), (0, 0))
            refused[each.what, each.why] = cost + each.bytes, times + each.times
    summed = (Refused(*key, *figures) for key, figures in refused.items())
    return Traffic(dict(planned), dict(used), requests, dearest(summed))


class Receipt(msgspec.Struct, frozen=True):
    """One finished change on one node, signed with the node's enrolment key.

    Only receipts move a rollout: a relay that passes them on cannot forge a success.
    """

    node: str
    sequence: int
    """Grows by one with every receipt of this node; repeats are ignored."""
    outcome: Literal["Succeeded", "Failed", "RolledBack"]
    """RolledBack: the hub asked for an older release and the node went there."""
    release: str
    """The digest that this receipt speaks about: the target of the change."""
    running: str
    """What the node runs after it: equal to ``release`` only on success."""
    rollout: str
    """The channel's rollout identifier at that time."""
    at: datetime
    """By the node's clock."""
    reason: str = ""
    """For Failed: what went wrong and where to look, at most 1,000 characters."""
    bytes_fetched: int = 0
    bytes_full: int = 0
    """What a full fetch of everything would have taken."""
    seconds: float = 0.0
    """From the decision to the outcome."""
    changed: tuple[str, ...] = ()
    """Parts that changed, as ``app/hello``."""
    traffic: Traffic = Traffic()
    """How the bytes came."""
