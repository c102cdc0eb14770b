from __future__ import annotations

import pytest

from edgewise.model.errors import Untrusted
from edgewise.protocol.bundles import TrustBundles
from edgewise.protocol.channel import Bitmap, Channel, Signed
from edgewise.protocol.codec import encode
from edgewise.protocol.sync import RelayNews, SyncRequest
from edgewise.rollout.fanout import Known, Newer, concerned, learn, newer_for
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
    assert newer_for(known, "n1", SyncRequest(channel=3, fleet="shops", record=1)) is None


def test_a_node_that_lags_is_told_of_its_fleets_channel() -> None:
    known = knowing(news(channel(3, stable=A), records=FLEET))
    request = SyncRequest(channel=2, fleet="shops", record=1)
    assert newer_for(known, "n1", request) == Newer(None, "shops")


def test_a_node_with_an_old_record_gets_the_new_one() -> None:
    known = knowing(news(channel(3, stable=A), records=FLEET))
    request = SyncRequest(channel=3, fleet="shops")
    assert newer_for(known, "n1", request) == Newer(FLEET["n1"], "")


def test_the_channel_number_of_another_fleet_says_nothing() -> None:
    known = knowing(news(channel(3), records=FLEET))
    request = SyncRequest(channel=9, fleet="vans", record=1)
    assert newer_for(known, "n1", request) == Newer(None, "shops")


def test_a_node_that_the_hub_has_not_told_about_yet_is_held() -> None:
    assert newer_for(Known(), "new", SyncRequest()) is None


def trust(sequence: int) -> Signed:
    return Signed("bundle/1", encode(TrustBundles(sequence, {})), "k", b"s")


def test_new_trust_bundles_concern_every_node_and_older_ones_nobody() -> None:
    before, _ = learn(Known(), news(channel(1), records={"n1": record("n1")}, cursor=1))
    after, change = learn(before, RelayNews(cursor=1, bundles=trust(5)))
    assert change.bundles == trust(5)
    assert concerned(before, after, {"n1": A}) == {"n1"}
    again, nothing = learn(after, RelayNews(cursor=1, bundles=trust(4)))
    assert again == after
    assert nothing.bundles is None
    for has, given in ((0, trust(5)), (4, trust(5)), (5, None), (-1, None)):
        request = SyncRequest(1, "shops", 1, bundles=has)
        newer = newer_for(after, "n1", request)
        assert (newer.bundles if newer else None) == given
        stranger = newer_for(after, "without a record", request)
        assert (stranger.bundles if stranger else None) == given
