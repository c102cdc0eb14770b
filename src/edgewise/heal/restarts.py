"""When a process that ended is started again, and when it counts as crash-looping.

Full-jitter exponential backoff (AWS Architecture Blog, 2015): it starts small, has a cap,
and starts again from the bottom once a process has run for ``stable_s``. It never gives up:
nobody comes by to restart an unattended node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import msgspec

FAILURES_KEPT: Final = 32
"""Failure times kept for one app; only those in the window count."""


@dataclass(frozen=True, slots=True)
class RestartRules:
    """Seconds throughout."""

    first_s: float = 0.25
    cap_s: float = 60.0
    stable_s: float = 60.0
    """A process that ran this long was well: the backoff starts from the bottom."""
    window_s: float = 300.0
    loop: int = 3
    """Failures within the window that make a crash loop."""


class History(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept on disk about one app's past, saved before any wait."""

    failures: tuple[float, ...] = ()
    """Unix times, oldest first."""
    in_a_row: int = 0
    restarts: int = 0
    """Since this version of the app was first started."""


class Exit(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a process ended."""

    code: int | None = None
    """Exit status; 128 + signal for a signal; None when nobody could learn it."""
    why: str = ""
    """Set when we ended it: which probe failed, what it did not do."""

    def says(self) -> str:
        """For people."""
        if self.why:
            return self.why
        if self.code is None:
            return "ended, exit code unknown"
        if self.code > 128:
            return f"killed by signal {self.code - 128}"
        return f"exit code {self.code}"


def failed(exit: Exit) -> bool:
    """Whether this end is a failure."""
    return bool(exit.why) or exit.code != 0


def restarts_after(exit: Exit, policy: Literal["Always", "OnFailure", "Never"]) -> bool:
    """Whether the app is started again. A process that we ended for a reason always is."""
    if exit.why:
        return True
    return policy == "Always" or (policy == "OnFailure" and failed(exit))


def after(
    history: History, exit: Exit, *, now: float, ran_s: float, rules: RestartRules
) -> History:
    """The history with this end in it. An app that ends well, quickly, also backs off."""
    in_a_row = 1 if ran_s >= rules.stable_s else history.in_a_row + 1
    failures = history.failures
    if failed(exit):
        # A clock that was set back must not keep old failures in the window for ever.
        failures = tuple(f for f in failures if now - rules.window_s < f <= now)
        failures = (*failures, now)[-FAILURES_KEPT:]
    return History(failures=failures, in_a_row=in_a_row, restarts=history.restarts + 1)


def wait_before(history: History, rules: RestartRules, fraction: float) -> float:
    """Seconds to wait before the next start; ``fraction`` is uniform in [0, 1)."""
    if history.in_a_row == 0:
        return 0.0
    ceiling = min(rules.cap_s, rules.first_s * float(1 << min(history.in_a_row - 1, 32)))
    return ceiling * (0.1 + 0.9 * fraction)


def crash_looping(history: History, now: float, rules: RestartRules) -> bool:
    """Whether it failed too often lately."""
    recent = sum(1 for f in history.failures if now - rules.window_s < f <= now)
    return recent >= rules.loop
