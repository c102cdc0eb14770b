"""How the root certificate is replaced without losing a machine.

``prepare``: the next root is made and everybody is told to trust it. ``activate``: it signs
from now on; relays and nodes get new certificates, and the old root is still trusted.
``retire``: it is not any more. Laws: no step is taken before the machines that are not in
quarantine have done their part, unless a person insists; one that was away for all of it
learns the new root from signed trust bundles and rejoins with its enrolment key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

from edgewise.model.errors import Conflict, NeedsPerson

Stage = Literal["Stable", "Prepared", "Activated"]
Step = Literal["prepare", "activate", "retire", "cancel"]

_FROM: Final[dict[Step, Stage]] = {
    "prepare": "Stable",
    "activate": "Prepared",
    "cancel": "Prepared",
    "retire": "Activated",
}
NEXT_STEP: Final[dict[Stage, Step]] = {
    "Stable": "prepare",
    "Prepared": "activate",
    "Activated": "retire",
}
RETIRE_AFTER: Final = timedelta(hours=2)
"""After the new root began to sign: a workload's certificate from just before lives an hour."""
SHOWN: Final = 20
"""Names of those that are waited for."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a machine said last."""

    name: str
    bundles: int
    """Sequence of the trust bundles that it uses."""
    issuer: str
    """Hex SHA-256 of the root above its certificate; empty: it has not said."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the machines are with the present stage."""

    machines: int
    ready: int
    waiting: tuple[str, ...]
    """The first ``SHOWN`` names of those that are not."""


def progress(stage: Stage, machines: Iterable[Told], *, since: int, active: str) -> Progress:
    """``since``: the bundles in which the next root first stood; ``active``: the fingerprint
    of the root that signs now."""
    told = list(machines)
    if stage == "Stable":
        return Progress(len(told), len(told), ())
    late = [
        one.name
        for one in told
        if (one.bundles < since if stage == "Prepared" else one.issuer != active)
    ]
    return Progress(len(told), len(told) - len(late), tuple(sorted(late)[:SHOWN]))


def check(
    step: Step, stage: Stage, now: Progress, *, force: bool, age: timedelta = RETIRE_AFTER
) -> None:
    """Raises Conflict for a step that does not follow, NeedsPerson for one that is too early.

    ``age``: how long the present stage has lasted.
    """
    if _FROM[step] != stage:
        raise Conflict(
            f"`{step}` does not follow: the rotation is {stage}",
            hint=f"the next step is `edgewise ca rotate-root {NEXT_STEP[stage]}`",
        )
    missing = now.machines - now.ready
    if step in ("activate", "retire") and missing and not force:
        what = "trust the next root" if step == "activate" else "have a certificate from it"
        names = ", ".join(now.waiting[:5]) + (", ..." if missing > 5 else "")
        raise NeedsPerson(
            f"{missing} of {now.machines} machines do not {what} yet: {names}",
            hint="wait for them, forget those that will not come back, or add --force: "
            "they then rejoin with their enrolment key when they are back",
        )
    if step == "retire" and age < RETIRE_AFTER and not force:
        minutes = int((RETIRE_AFTER - age).total_seconds() // 60) + 1
        raise NeedsPerson(
            "workloads may still hold certificates under the old root",
            hint=f"they are renewed within the hour: try again in {minutes} min, or add --force",
        )
