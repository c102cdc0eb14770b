"""A bound on bytes per second holds whatever comes, and costs nobody more than it must."""

from hypothesis import given
from hypothesis import strategies as st

from edgewise.delivery.rates import BURST_S, Bucket


@given(
    st.integers(1000, 10**8),
    st.lists(st.tuples(st.integers(0, 70_000), st.floats(0, 3)), min_size=1, max_size=20),
)
def test_no_more_comes_than_rate_times_time_and_one_burst(
    rate: int, came: list[tuple[int, float]]
) -> None:
    bucket, now, total = Bucket(rate), 100.0, 0
    for count, pause in came:
        now += pause
        wait = bucket.take(count, now)
        total += count
        now += wait
        assert total <= rate * (now - 100.0 + BURST_S) * 1.0001 + 1
        assert wait <= total / rate


def test_without_a_rate_nobody_waits() -> None:
    assert Bucket(0).take(10**9, 1.0) == 0.0


def test_a_link_that_was_still_may_not_catch_up_more_than_a_burst() -> None:
    bucket = Bucket(1000)
    assert bucket.take(1000, 0.0) == 0.0
    assert bucket.take(1000, 3600.0) == 0.0
    assert bucket.take(1000, 3600.0) == 1.0
