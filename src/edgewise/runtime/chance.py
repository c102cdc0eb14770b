"""Chance, as a value that is passed in: jitter, nonces and identifiers."""

from __future__ import annotations

import random
import secrets
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
        return random.random()

    def token(self, size: int) -> bytes:
        return secrets.token_bytes(size)


def _meets_its_port(chance: SystemChance) -> Chance:
    return chance
