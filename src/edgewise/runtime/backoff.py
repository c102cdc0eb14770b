"""How long to wait before the next try: exponential, with full jitter, with a cap.

Source: "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015), full jitter.
"""

from __future__ import annotations

from datetime import timedelta

from edgewise.runtime.chance import Chance


class Backoff:
    """Waits grow from ``first`` to ``cap``; ``reset`` after a success."""

    def __init__(
        self,
        chance: Chance,
        *,
        first: timedelta = timedelta(seconds=1),
        cap: timedelta = timedelta(seconds=60),
    ) -> None:
        self._chance = chance
        self._first = first
        self._cap = cap
        self._failures = 0

    def next(self) -> timedelta:
        """The next wait, between a tenth of and the whole of the current ceiling."""
        ceiling = min(self._cap, self._first * float(1 << min(self._failures, 32)))
        self._failures += 1
        return ceiling * (0.1 + 0.9 * self._chance.fraction())

    def reset(self) -> None:
        """A try succeeded: start from the first wait again."""
        self._failures = 0
