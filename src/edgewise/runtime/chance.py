"""Chance, as a value that is passed in: jitter, nonces and identifiers."""

from __future__ import annotations

import os
from typing import Protocol


class Chance(Protocol):
    """Where random numbers come from."""

    def fraction(self) -> float:
        """Uniform in [0, 1); for jitter, never for secrets."""

    def token(self, size: int) -> bytes:
        """``size`` unpredictable bytes."""


class SystemChance:
    """The operating system's randomness."""

    def fraction(self) -> float:
        # Not ``random``: it and what it imports would stay in the agent's memory.
        return int.from_bytes(os.urandom(7), "big") / (1 << 56)

    def token(self, size: int) -> bytes:
        return os.urandom(size)


def _meets_its_port(chance: SystemChance) -> Chance:
    return chance
