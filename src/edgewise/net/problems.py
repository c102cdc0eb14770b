"""Errors as HTTP says them: RFC 9457 problem documents with the next move in them.

Every ``EdgewiseError`` has one status code, by what the caller does next. The few problems
that only HTTP knows (no certificate, wrong method, too large) are made here too, so that
no client ever meets another shape.
"""

from __future__ import annotations

from typing import Final

import msgspec

from edgewise.model.errors import (
    BadUsage,
    Conflict,
    EdgewiseError,
    Forbidden,
    NeedsPerson,
    NotFound,
    TryLater,
    Unauthenticated,
    Untrusted,
)
from edgewise.protocol.api import Problem

CONTENT_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "https://edgewise.dev/errors/"

# The most special class first: the first that fits an error gives its status.
_STATUS: Final[tuple[tuple[type[EdgewiseError], int, str], ...]] = (
    (NotFound, 404, "There is no such thing"),
    (Conflict, 409, "The present state forbids it"),
    (Unauthenticated, 401, "The caller has not proved itself"),
    (Forbidden, 403, "The caller may not do this"),
    (BadUsage, 400, "The request is malformed"),
    (TryLater, 503, "Not now; the same call may succeed later"),
    (Untrusted, 422, "Verification failed"),
    (NeedsPerson, 422, "A person has to change something"),
)

HTTP_ONLY: Final = ("MethodNotAllowed", "TooLarge", "TooSlow", "NotCached", "Internal")
"""Problem names without an exception class; docs/errors.md documents them as well."""

_encode = msgspec.json.Encoder().encode


def statuses_of(errors: tuple[type[EdgewiseError], ...]) -> dict[int, str]:
    """Status code to error names, for the API description."""
    found: dict[int, str] = {}
    for error in errors:
        status = next(code for kind, code, _ in _STATUS if issubclass(error, kind))
        found[status] = f"{found[status]}, {error.__name__}" if status in found else error.__name__
    return found


def problem_of(error: EdgewiseError) -> Problem:
    """The problem document of one of our own errors."""
    for kind, status, title in _STATUS:
        if isinstance(error, kind):
            wait = error.wait.total_seconds() if isinstance(error, TryLater) else 0.0
            return Problem(
                type=TYPE_PREFIX + kind.__name__,
                title=title,
                status=status,
                detail=str(error),
                hint=error.hint,
                exit_code=error.exit_code,
                retry_after_s=wait,
            )
    return internal("none", str(error), error.hint)


def wrong_method(method: str, allowed: tuple[str, ...]) -> Problem:
    """The path exists, the method does not."""
    return Problem(
        type=TYPE_PREFIX + "MethodNotAllowed",
        title="The path does not take this method",
        status=405,
        detail=f"{method[:16]} is not possible here",
        hint=f"use {' or '.join(allowed)}",
        exit_code=2,
    )


def too_large(at_most: int) -> Problem:
    """The body exceeds the route's bound."""
    return Problem(
        type=TYPE_PREFIX + "TooLarge",
        title="The body is too large",
        status=413,
        detail=f"at most {at_most} bytes are accepted here",
        hint="send less at a time; big objects go to PUT /v1/objects/{sha256}",
        exit_code=2,
    )


class Refusal(Exception):
    """A problem that only HTTP knows."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def too_slow(seconds: float) -> Problem:
    """The body does not come."""
    return Problem(
        type=TYPE_PREFIX + "TooSlow",
        title="The body did not come in time",
        status=408,
        detail=f"the body was not here within {seconds:.0f} s",
        hint="look at the line between here and the hub, and repeat the call",
        exit_code=3,
    )


def not_cached(detail: str) -> Problem:
    """The caller wants only what is here, and it is not."""
    return Problem(
        type=TYPE_PREFIX + "NotCached",
        title="It is not kept here",
        status=504,
        detail=detail,
        hint="ask without `Cache-Control: only-if-cached`, and it is fetched",
        exit_code=3,
    )


def internal(identifier: str, detail: str = "", hint: str = "") -> Problem:
    """A fault of ours; the log has the details under ``identifier``."""
    return Problem(
        type=TYPE_PREFIX + "Internal",
        title="The hub made a mistake",
        status=500,
        detail=detail or f"an unexpected error, logged as {identifier}",
        hint=hint or f"look for problem={identifier} in the hub's log and report it",
        exit_code=4,
    )


def encoded(problem: Problem) -> bytes:
    """The document's bytes."""
    return _encode(problem)
