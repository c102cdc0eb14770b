from __future__ import annotations

import pytest

from edgewise.model.errors import Untrusted
from edgewise.protocol.channel import Bitmap, Channel, Signed
from edgewise.protocol.codec import encode
from edgewise.protocol.sync import RelayNews, SyncRequest
from edgewise.rollout.fanout import BUNDLE_FILE, Known, concerned, learn, news_for
from edgewise.testing.relay_words import A, B, C, channel, news, record


def knowing(*batches: RelayNews) -> Known:
    known = Known()
    for batch in batches:
        known, _ = learn(known, batch)
    return known


FLEET = {f"n{i}": record(f"n{i}", index=i) for i in range(4)}
RUN_A = {f"n{i}": A for i in range(4)}


def test_an_older_channel_never_replaces_a_newer_one() -> None:
    known = knowing(news(channel(5, stable=B)), news(channel(4, stable=A)))
    assert known.channels["shops"].sequence == 5
    assert known.metadata["channels/shops.json"] == encode(channel(5, stable=B))


def test_numbered_role_files_are_replaced_and_roots_stay() -> None:
    known = knowing(news(channel(1)), news(channel(2)))
    assert sorted(known.metadata) == [
        "1.builds.json",
        "1.root.json",
        "2.channels.json",
        "2.snapshot.json",
        "channels/shops.json",
        "timestamp.json",
    ]


def test_what_a_newer_file_replaced_is_named_for_the_disk() -> None:
    _, change = learn(knowing(news(channel(1))), news(channel(2)))
    assert change.dropped == {"1.snapshot.json", "1.channels.json"}


def test_the_same_news_twice_change_nothing() -> None:
    batch = news(channel(1, stable=A), records=FLEET, cursor=4)
    known = knowing(batch)
    assert learn(known, batch)[0] == known
    assert concerned(known, learn(known, batch)[0], RUN_A) == frozenset()


def test_a_wave_wakes_the_nodes_in_it_and_nobody_else() -> None:
    before = knowing(news(channel(1, stable=A), records=FLEET))
    after, _ = learn(before, news(channel(2, stable=A, candidate=B, wave=(1, 3))))
    assert concerned(before, after, RUN_A) == {"n1", "n3"}


def test_success_of_a_rollout_wakes_nobody_that_runs_it_already() -> None:
    before = knowing(
        news(channel(2, stable=A, candidate=B, wave=(0, 1, 2, 3)), records=FLEET),
    )
    after, _ = learn(before, news(channel(3, stable=B)))
    assert concerned(before, after, {**RUN_A, "n0": B}) == frozenset()


def test_a_quarantine_wakes_the_nodes_that_were_told_to_run_the_bad_release() -> None:
    before = knowing(news(channel(2, stable=A, candidate=B, wave=(0, 1)), records=FLEET))
    after, _ = learn(before, news(channel(3, stable=A, quarantined=(B,))))
    assert concerned(before, after, {**RUN_A, "n0": B}) == {"n0", "n1"}


def test_a_quarantine_finds_nodes_whose_last_words_are_older_than_two_changes() -> None:
    kept = Bitmap.of([0]).data
    before = knowing(news(channel(2, stable=A, candidate=C, stay=kept), records=FLEET))
    after, _ = learn(before, news(channel(3, stable=A, stay=kept, quarantined=(B,))))
    assert "n0" in concerned(before, after, RUN_A)


def test_a_node_that_never_said_what_it_runs_is_told_of_every_change() -> None:
    before = knowing(news(channel(1, stable=A), records=FLEET))
    after, _ = learn(before, news(channel(2, stable=A, candidate=B)))
    assert concerned(before, after, {"n0": A}) == {"n1", "n2", "n3"}


def test_a_new_record_wakes_its_node() -> None:
    before = knowing(news(channel(1, stable=A), records=FLEET))
    after, _ = learn(before, RelayNews(records={"n2": record("n2", 2, fleet="vans")}, cursor=9))
    assert concerned(before, after, RUN_A) == {"n2"}


def test_an_older_record_is_ignored() -> None:
    known = knowing(news(records={"n0": record("n0", 5)}), news(records={"n0": record("n0", 4)}))
    assert known.nodes["n0"].sequence == 5


def test_a_forgotten_node_is_woken_and_refused_until_it_has_a_record_again() -> None:
    before = knowing(news(channel(1), records=FLEET))
    after, _ = learn(before, RelayNews(gone=("n1",), cursor=5))
    assert concerned(before, after, RUN_A) == {"n1"}
    assert after.gone == {"n1"}
    again, _ = learn(after, RelayNews(records={"n1": record("n1", 1)}, cursor=6))
    assert again.gone == frozenset()


def test_a_record_under_another_name_is_refused_whole() -> None:
    before = knowing(news(channel(1)))
    with pytest.raises(Untrusted, match="record of n1"):
        learn(before, RelayNews(records={"n1": record("n2")}))


def test_a_channel_under_another_fleets_name_is_refused() -> None:
    with pytest.raises(Untrusted, match="holds the channel of fleet"):
        learn(Known(), RelayNews({"channels/vans.json": encode(Channel("shops", 1))}))


def test_a_receipt_cannot_pass_as_a_record() -> None:
    signed = record("n1")
    with pytest.raises(Untrusted):
        learn(Known(), RelayNews(records={"n1": Signed("receipt/1", signed.payload, "k", b"")}))


def test_a_node_that_has_everything_is_held() -> None:
    known = knowing(news(channel(3, stable=A), records=FLEET))
    request = SyncRequest(channel=3, fleet="shops", record=1)
    assert news_for(known, "n1", request, acknowledged=0, hold_s=60) is None


def test_a_node_that_lags_gets_channel_and_metadata_in_one_answer() -> None:
    known = knowing(news(channel(3, stable=A), records=FLEET))
    reply = news_for(
        known, "n1", SyncRequest(channel=2, fleet="shops", record=1), acknowledged=0, hold_s=60
    )
    assert reply is not None
    assert reply.record is None
    assert sorted(reply.metadata) == [
        "1.builds.json",
        "1.root.json",
        "3.channels.json",
        "3.snapshot.json",
        "channels/shops.json",
        "timestamp.json",
    ]


def test_a_node_gets_the_channel_of_its_own_fleet_only() -> None:
    vans = Channel("vans", 7)
    known = knowing(news(channel(3), vans, records=FLEET))
    reply = news_for(known, "n1", SyncRequest(), acknowledged=0, hold_s=60)
    assert reply is not None
    assert "channels/vans.json" not in reply.metadata
    assert reply.record == FLEET["n1"]


def test_big_role_files_are_left_for_the_cache() -> None:
    big = RelayNews({"2.builds.json": b"x" * (BUNDLE_FILE + 1)})
    known = knowing(news(channel(3), records=FLEET), big)
    reply = news_for(known, "n1", SyncRequest(), acknowledged=0, hold_s=60)
    assert reply is not None
    assert "2.builds.json" not in reply.metadata


def test_a_node_without_a_record_yet_gets_its_receipts_acknowledged() -> None:
    reply = news_for(Known(), "new", SyncRequest(), acknowledged=4, hold_s=60)
    assert reply is not None
    assert reply.acknowledged == 4
    assert news_for(Known(), "new", SyncRequest(), acknowledged=0, hold_s=60) is None
