"""Did you mean: the nearest of what exists."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

SHOWN = 8
COMPARED = 2000
"""Candidates looked at; an inventory may have more names than are worth comparing."""


def did_you_mean(word: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """A hint: the nearest of ``known``, else what there is (when that is short)."""
    choices = sorted(set(known))[:COMPARED]
    if near := get_close_matches(word, choices, n=1, cutoff=0.6):
        return f"did you mean {near[0]!r}?"
    folded = {choice.casefold().replace("-", "").replace("_", ""): choice for choice in choices}
    if same := folded.get(word.casefold().replace("-", "").replace("_", "")):
        return f"did you mean {same!r}?"
    if otherwise:
        return otherwise
    if not choices:
        return "there is none yet"
    more = f" and {len(choices) - SHOWN} more" if len(choices) > SHOWN else ""
    return f"there is {', '.join(choices[:SHOWN])}{more}"
