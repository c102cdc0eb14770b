"""Chance that repeats: the same seed gives the same run."""

from __future__ import annotations

import random

from edgewise.runtime.chance import Chance


class SeededChance:
    """Deterministic; not for secrets outside tests."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def fraction(self) -> float:
        return self._random.random()

    def token(self, size: int) -> bytes:
        return self._random.randbytes(size)


def _meets_its_port(chance: SeededChance) -> Chance:
    return chance
