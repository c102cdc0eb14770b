"""The audit log: lines that each carry the hash of the one before.

A line that was changed, removed or put in between breaks the chain at a sequence that
``verify_chain`` names. Lines cut off at the end are found by comparing the count and the
last hash with those that `edgewise status` showed earlier.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from edgewise.model.errors import BadUsage
from edgewise.protocol.api import AuditLine
from edgewise.protocol.codec import encode

BEGINNING: Final = "0" * 64
"""``previous`` of the first line."""
DETAIL: Final = 2000
"""Characters of a line's detail; more are cut."""
_HASH = re.compile(r"[0-9a-f]{64}")

Said = str | tuple[str, str]
"""Who acted, or (who, from which address)."""


def next_line(
    last: AuditLine | None, at: datetime, said: Said, action: str, subject: str, detail: str = ""
) -> AuditLine:
    """The line after ``last``; None before the first."""
    actor, address = said if isinstance(said, tuple) else (said, "")
    line = AuditLine(
        sequence=last.sequence + 1 if last else 1,
        at=at,
        actor=actor[:300],
        action=action[:100],
        subject=subject[:300],
        detail=detail[:DETAIL],
        previous=last.hash if last else BEGINNING,
        hash="",
        address=address[:64],
    )
    return msgspec.structs.replace(line, hash=_hash(line))


def verify_chain(lines: Iterable[AuditLine], after: AuditLine | None = None) -> int | None:
    """The first sequence that does not fit its predecessor, or None when all fit.

    ``after`` is the line before the first of ``lines``, when they are not from the start.
    """
    chain = Chain(after.sequence, after.hash) if after else Chain()
    for line in lines:
        if not chain.follow(line):
            return chain.sequence + 1
    return None


@dataclass(slots=True)
class Chain:
    """Follows a log line by line, however long it is."""

    sequence: int = 0
    hash: str = BEGINNING
    """Of the last line that fitted."""

    def follow(self, line: AuditLine) -> bool:
        """Whether ``line`` is the next one, as it was written."""
        fits = (
            line.sequence == self.sequence + 1
            and line.previous == self.hash
            and line.hash == _hash(line)
        )
        if fits:
            self.sequence, self.hash = line.sequence, line.hash
        return fits


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the log at an earlier time, kept elsewhere: ``SEQUENCE:HASH``."""

    sequence: int
    hash: str

    @classmethod
    def parse(cls, text: str) -> Head:
        """Raises BadUsage for anything else."""
        number, colon, digest = text.partition(":")
        if not colon or not number.isdecimal() or not _HASH.fullmatch(digest):
            raise BadUsage(
                f"{text[:80]!r} is no head of an audit log",
                hint="it is like 1042:9f2c..., as `edgewise audit verify` prints it",
            )
        return cls(int(number), digest)

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash}"


def _hash(line: AuditLine) -> str:
    body: tuple[object, ...] = (
        line.sequence, line.at, line.actor, line.action, line.subject, line.detail, line.previous,
    )  # fmt: skip
    if line.address:  # lines that were written before addresses were keep their hash
        body = (*body, line.address)
    return hashlib.sha256(encode(body)).hexdigest()
