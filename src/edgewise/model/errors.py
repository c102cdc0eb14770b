"""Errors, sorted by what the caller does next, not by where they arose.

``str(error)`` is one sentence about what happened, with the value; ``hint`` is one
sentence about what a person can do. ``exit_code`` is stable and documented in
docs/errors.md: 0 done, 2 wrong usage, 3 try later, 4 needs a person, 5 untrusted.
"""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar


class EdgewiseError(Exception):
    """What every error that we raise on purpose has in common."""

    exit_code: ClassVar[int] = 4

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


class TryLater(EdgewiseError):
    """The world was not ready. The same call may succeed after ``wait``."""

    exit_code = 3

    def __init__(
        self, what: str, *, wait: timedelta = timedelta(seconds=5), hint: str = ""
    ) -> None:
        super().__init__(what, hint=hint)
        self.wait = wait


class NeedsPerson(EdgewiseError):
    """Repeating cannot help; somebody has to change a file, a key or a disk."""

    exit_code = 4


class BadUsage(NeedsPerson):
    """The request itself is malformed or names something that does not exist."""

    exit_code = 2


class NotFound(BadUsage):
    """The request names a thing that does not exist (HTTP 404)."""


class Conflict(NeedsPerson):
    """The thing changed, or is in a state that forbids the request (HTTP 409)."""


class Forbidden(NeedsPerson):
    """The caller is known and may not do this (HTTP 403); audited."""


class Unauthenticated(NeedsPerson):
    """Nobody proved who calls, or the proof is no good (HTTP 401)."""

    def __init__(
        self,
        what: str = "the connection carries no certificate of this organisation that is valid now",
        *,
        hint: str = "`edgewise login`, or send an API token (docs/people.md)",
    ) -> None:
        super().__init__(what, hint=hint)


class Untrusted(EdgewiseError):
    """Bytes or a peer failed verification. Never retried as is; always audited."""

    exit_code = 5


def behind(group: BaseExceptionGroup[BaseException]) -> EdgewiseError | None:
    """The first of our errors in what a task group raised; None if it holds any other error."""
    ours, others = group.split(EdgewiseError)
    if ours is None or others is not None:
        return None
    first: BaseException = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, EdgewiseError) else None
