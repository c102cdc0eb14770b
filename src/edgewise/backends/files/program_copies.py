"""Copies between two programs whose references are put right before differences are taken."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from edgewise.backends.files import program_references
from edgewise.backends.files.copies import Copy, kept, subtract
from edgewise.backends.files.delta_trial import Pair
from edgewise.backends.files.program_alignment import slice_of
from edgewise.backends.files.program_references import Program
from edgewise.delivery import references
from edgewise.delivery.references import References, Steps


class Predictions(NamedTuple):
    """Two programs, and what moved between them."""

    before: Program
    after: Program
    steps: Steps

    def of(self, copies: list[Copy], offset: int) -> tuple[list[Copy], References | None]:
        """The copies of a slice that begins at ``offset`` of the new program, with smaller
        differences, and what has to be said for that; as they are where nothing helps."""
        part = slice_of(self.before, self.after, copies, offset)
        found = program_references.found_references(self.before, self.after, part, self.steps)
        if found is None:
            return copies, None
        old = references.predicted(part.old, part.copies, found, self.before.read)
        difference = subtract(part.new, bytes(old))
        smaller = []
        at = 0
        for copy in copies:
            end = at + len(copy.difference)
            smaller.append(copy._replace(difference=difference[at:end]))
            at = end
        return smaller, found


@lru_cache(maxsize=1)  # a large program is several slices, which come one after the other
def predictions(pair: Pair, cache: Path) -> Predictions | None:
    """Of a pair whose copies are in the cache; None where they are not both programs."""
    both = program_references.programs(pair.old, pair.new)
    if both is None:
        return None
    whole = slice_of(*both, list(kept(cache / pair.name)), 0)
    return Predictions(*both, program_references.moved(*both, whole))
