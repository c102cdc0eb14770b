"""Windows: cron, zones and daylight saving."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.protocol.content import Window
from edgewise.rollout.windows import is_open, next_open, parse_cron


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


NIGHTS = Window("0 2 * * *", 3600)


def test_no_window_is_always_open() -> None:
    assert is_open(None, at("2026-01-01"))


@pytest.mark.parametrize(
    ("when", "expected"),
    [("01:59:59", False), ("02:00:00", True), ("02:59:59", True), ("03:00:00", False)],
)
def test_a_window_opens_on_time_and_closes_on_time(when: str, expected: bool) -> None:
    assert is_open(NIGHTS, at(f"2026-05-05T{when}")) is expected


def test_a_window_over_midnight_is_open_on_both_days() -> None:
    late = Window("0 23 * * fri", 4 * 3600)
    assert is_open(late, at("2026-05-09T01:00"))  # a Saturday
    assert not is_open(late, at("2026-05-08T01:00"))


def test_the_window_is_in_its_own_zone() -> None:
    tokyo = Window("0 2 * * *", 3600, "Asia/Tokyo")
    assert is_open(tokyo, at("2026-05-05T17:30"))
    node = Window("0 2 * * *", 3600, "Node")
    assert is_open(node, at("2026-05-05T17:30"), "Asia/Tokyo")
    assert is_open(node, at("2026-05-05T02:30"), "UTC")


def test_a_start_in_the_hour_that_daylight_saving_skips_still_happens() -> None:
    berlin = Window("30 2 * * *", 1800, "Europe/Berlin")
    # On 2026-03-29 clocks jump from 02:00 to 03:00 local, at 01:00 UTC.
    assert is_open(berlin, at("2026-03-29T01:40"))
    # On 2026-10-25 02:30 happens twice (00:30 and 01:30 UTC); the window opens once.
    assert is_open(berlin, at("2026-10-25T00:40"))
    assert not is_open(berlin, at("2026-10-25T01:40"))


def test_next_open_says_now_while_open_and_the_next_start_else() -> None:
    assert next_open(NIGHTS, at("2026-05-05T02:30")) == at("2026-05-05T02:30")
    assert next_open(NIGHTS, at("2026-05-05T03:30")) == at("2026-05-06T02:00")
    assert next_open(Window("0 0 29 2 *", 60), at("2026-05-05")) == at("2028-02-29")
    assert next_open(Window("0 0 31 2 *", 60), at("2026-05-05")) is None


@given(st.integers(0, 60 * 24 * 400))
def test_a_window_is_open_at_its_next_opening(minutes: int) -> None:
    now = at("2026-01-01") + timedelta(minutes=minutes)
    window = Window("15 1-5/2 1,15 * sun", 1200, "America/New_York")
    opening = next_open(window, now)
    assert opening is not None
    assert opening >= now
    assert is_open(window, opening)


@pytest.mark.parametrize(
    "bad", ["", "* * * *", "60 * * * *", "* * 0 * *", "*/0 * * * *", "a * * * *"]
)
def test_a_bad_expression_names_its_field(bad: str) -> None:
    with pytest.raises(ValueError, match="cron"):
        parse_cron(bad)
