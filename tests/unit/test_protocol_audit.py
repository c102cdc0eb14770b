"""Nobody can change the audit log without it showing."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from edgewise.protocol.api import AuditLine
from edgewise.protocol.audit import next_line, verify_chain

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def lines() -> list[AuditLine]:
    lines: list[AuditLine] = []
    for i in range(6):
        lines.append(next_line(lines[-1] if lines else None, AT, "ada", "approve", f"r{i}"))
    return lines


def test_an_untouched_log_verifies_whole_and_from_any_line(lines: list[AuditLine]) -> None:
    assert verify_chain(lines) is None
    assert verify_chain(lines[3:], after=lines[2]) is None


@pytest.mark.parametrize("field", ["actor", "action", "subject", "detail", "hash", "previous"])
def test_a_changed_field_is_found_at_its_line(lines: list[AuditLine], field: str) -> None:
    lines[3] = msgspec.structs.replace(lines[3], **{field: "x"})
    assert verify_chain(lines) == 4


def test_a_changed_time_is_found(lines: list[AuditLine]) -> None:
    lines[0] = msgspec.structs.replace(lines[0], at=datetime(2025, 1, 1, tzinfo=UTC))
    assert verify_chain(lines) == 1


def test_a_removed_a_swapped_and_an_inserted_line_are_found(lines: list[AuditLine]) -> None:
    assert verify_chain(lines[:2] + lines[3:]) == 3
    assert verify_chain([lines[0], lines[2], lines[1], *lines[3:]]) == 2
    assert verify_chain([*lines[:3], next_line(lines[1], AT, "eve", "x", "y"), *lines[3:]]) == 4


def test_a_line_rewritten_with_a_fitting_hash_breaks_the_next_one(lines: list[AuditLine]) -> None:
    lines[2] = next_line(lines[1], AT, "eve", "approve", "r2")
    assert verify_chain(lines) == 4


def test_truncation_shows_in_the_last_hash(lines: list[AuditLine]) -> None:
    short = lines[:4]
    assert verify_chain(short) is None
    assert (short[-1].sequence, short[-1].hash) != (lines[-1].sequence, lines[-1].hash)
