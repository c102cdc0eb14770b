"""Who is online, also when the hub's clock was wrong for a while."""

from datetime import UTC, datetime, timedelta

from edgewise.rollout.presence import Presence

T0 = datetime(2026, 1, 1, tzinfo=UTC)
AFTER = timedelta(minutes=5)


def test_a_silent_node_is_offline_after_its_time():
    presence = Presence(AFTER)
    assert presence.heard("n0", T0)
    assert not presence.heard("n0", T0 + timedelta(minutes=1))
    assert presence.silent(T0 + AFTER) == []
    assert presence.silent(T0 + timedelta(minutes=6)) == ["n0"]


def test_a_node_heard_in_2099_is_offline_in_time_once_the_clock_is_right():
    presence = Presence(AFTER)
    presence.heard("n0", T0 + timedelta(days=27_000))
    assert not presence.heard("n0", T0)
    assert presence.silent(T0 + AFTER) == ["n0"]
