"""The audit log: lines that each carry the hash of the one before.

A line that was changed, removed or put in between breaks the chain at a sequence that
``verify_chain`` names. Lines cut off at the end are found by comparing the count and the
last hash with those that `edgewise status` showed earlier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from edgewise.protocol.api import AuditLine
from edgewise.protocol.codec import encode

BEGINNING: Final = "0" * 64
"""``previous`` of the first line."""
DETAIL: Final = 2000
"""Characters of a line's detail; more are cut."""


def next_line(
    last: AuditLine | None, at: datetime, actor: str, action: str, subject: str, detail: str = ""
) -> AuditLine:
    """The line after ``last``; None before the first."""
    sequence = last.sequence + 1 if last else 1
    previous = last.hash if last else BEGINNING
    body = (sequence, at, actor[:300], action[:100], subject[:300], detail[:DETAIL], previous)
    return AuditLine(*body, hash=_hash(body))


def verify_chain(lines: Iterable[AuditLine], after: AuditLine | None = None) -> int | None:
    """The first sequence that does not fit its predecessor, or None when all fit.

    ``after`` is the line before the first of ``lines``, when they are not from the start.
    """
    sequence = after.sequence if after else 0
    previous = after.hash if after else BEGINNING
    for line in lines:
        sequence += 1
        body = (
            line.sequence,
            line.at,
            line.actor,
            line.action,
            line.subject,
            line.detail,
            line.previous,
        )
        if line.sequence != sequence or line.previous != previous or line.hash != _hash(body):
            return sequence
        previous = line.hash
    return None


def _hash(body: tuple[object, ...]) -> str:
    return hashlib.sha256(encode(body)).hexdigest()
