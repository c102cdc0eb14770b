"""Startup, liveness and readiness: what consecutive answers mean.

Kubernetes' semantics: startup holds the other two back until it has passed; liveness that
fails ``failure_threshold`` times in a row restarts the app; readiness only counts for
health. Without a readiness probe an app is ready once it has started.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from edgewise.protocol.content import Probe, Probes

Which = Literal["startup", "liveness", "readiness"]
Verdict = Literal["go on", "restart"]


@dataclass(frozen=True, slots=True)
class Count:
    """Answers in a row: positive for good ones, negative for bad ones."""

    run: int = 0
    last: str = ""
    """What the last bad answer said."""

    def with_answer(self, good: bool, said: str) -> Count:
        """One more."""
        if good:
            return Count(max(self.run, 0) + 1)
        return Count(min(self.run, 0) - 1, said)


@dataclass(frozen=True, slots=True)
class Watch:
    """What is known about one process through its probes."""

    started: bool
    ready: bool
    startup: Count = Count()
    liveness: Count = Count()
    readiness: Count = Count()

    @property
    def complaint(self) -> str:
        """Why it is not ready; empty when no probe says anything."""
        for which in ("startup", "readiness", "liveness"):
            count: Count = getattr(self, which)
            if count.run < 0:
                return f"{which} probe: {count.last}"
        return ""


def begin(probes: Probes) -> Watch:
    """A process that was just started, or found running by a new agent."""
    started = probes.startup is None
    return Watch(started=started, ready=started and probes.readiness is None)


def probe(probes: Probes, which: Which) -> Probe | None:
    """The rules of one probe."""
    return {
        "startup": probes.startup,
        "liveness": probes.liveness,
        "readiness": probes.readiness,
    }[which]


def active(probes: Probes, watch: Watch) -> tuple[Which, ...]:
    """The probes that are asked now."""
    if not watch.started:
        return ("startup",)
    kinds: tuple[Which, ...] = ("liveness", "readiness")
    return tuple(which for which in kinds if probe(probes, which) is not None)


def answered(
    probes: Probes, watch: Watch, which: Which, *, good: bool, said: str = ""
) -> tuple[Watch, Verdict]:
    """What one answer changes. Answers of a probe that is not active change nothing."""
    rules = probe(probes, which)
    if rules is None or which not in active(probes, watch):
        return watch, "go on"
    count = getattr(watch, which).with_answer(good, said)
    passed = count.run >= rules.success_threshold
    refused = -count.run >= rules.failure_threshold
    match which:
        case "startup":
            started = watch.started or passed
            fresh = replace(
                watch, startup=count, started=started, ready=started and probes.readiness is None
            )
            return fresh, "restart" if refused else "go on"
        case "liveness":
            return replace(watch, liveness=count), "restart" if refused else "go on"
        case "readiness":
            ready = (watch.ready or passed) and not refused
            return replace(watch, readiness=count, ready=ready), "go on"


def patience_s(probes: Probes) -> float:
    """Seconds in which a sound process has become ready, by its own probes' rules."""
    total = 0.0
    for rules in (probes.startup, probes.readiness):
        if rules is not None:
            tries = rules.failure_threshold + rules.success_threshold
            total += rules.initial_delay_s + tries * (rules.period_s + rules.timeout_s)
    return total
