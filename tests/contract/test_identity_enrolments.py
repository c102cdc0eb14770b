"""What every store of enrolments does, the fake and SQLite alike."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edgewise.backends.sqlite.database import Database
from edgewise.backends.sqlite.enrolments import SqliteEnrolments
from edgewise.identity.ports import Enrolled, TokenRecord
from edgewise.identity.reattestation import Attestation, Counters
from edgewise.identity.rotation import Lineage
from edgewise.identity.tokens import key_digest
from edgewise.model.errors import NotFound
from edgewise.testing.enrolments import MemoryEnrolments

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
NODE = Enrolled("kiosk-1", "node", "eu", b"key 1", {"type": "pos"}, NOW, urls=("https://a:1",))
TOKEN = TokenRecord("t1", "ab" * 32, "node", "eu", {"a": "b"}, NOW + timedelta(hours=1), 2, {})

Store = MemoryEnrolments | SqliteEnrolments


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryEnrolments()
        return
    database = Database.open(tmp_path / "hub.db")
    yield SqliteEnrolments(database)
    database.close()


async def test_a_bound_token_keeps_the_enrolment_and_the_key(store: Store) -> None:
    await store.add_token(TOKEN)
    assert await store.token("t1") == TOKEN
    await store.bind("t1", NODE)
    await store.bind("t1", NODE)
    assert await store.get("kiosk-1") == NODE
    token = await store.token("t1")
    assert token is not None
    assert token.bound == {key_digest(b"key 1"): "kiosk-1"}
    assert await store.all() == (NODE,)


async def test_two_keys_on_one_token_are_both_known(store: Store) -> None:
    await store.add_token(TOKEN)
    await store.bind("t1", NODE)
    await store.bind("t1", replace(NODE, name="kiosk-2", key=b"key 2"))
    token = await store.token("t1")
    assert token is not None
    assert sorted(token.bound.values()) == ["kiosk-1", "kiosk-2"]
    assert [e.name for e in await store.all()] == ["kiosk-1", "kiosk-2"]


async def test_a_forgotten_node_takes_its_lineage_along_and_may_be_forgotten_twice(
    store: Store,
) -> None:
    await store.add_token(TOKEN)
    await store.bind("t1", NODE)
    await store.keep_lineage("kiosk-1", Lineage(issued="aa"))
    await store.forget("kiosk-1")
    await store.forget("kiosk-1")
    assert await store.get("kiosk-1") is None
    assert await store.lineage("kiosk-1") == Lineage()


async def test_a_quarantine_stays_until_it_is_lifted(store: Store) -> None:
    await store.add_token(TOKEN)
    await store.bind("t1", NODE)
    await store.quarantine("kiosk-1", "stolen")
    assert await store.get("kiosk-1") == replace(NODE, quarantined="stolen")
    await store.quarantine("kiosk-1", "")
    assert await store.get("kiosk-1") == NODE
    await store.quarantine("nobody", "x")
    assert await store.get("nobody") is None


async def test_a_lineage_comes_back_as_it_was(store: Store) -> None:
    lineage = Lineage("aa", "bb", NOW, ("cc", "dd"), 2, NOW)
    await store.keep_lineage("kiosk-1", Lineage())
    await store.keep_lineage("kiosk-1", lineage)
    assert await store.lineage("kiosk-1") == lineage
    assert await store.lineage("kiosk-2") == Lineage()


async def test_tokens_are_revoked_and_old_ones_forgotten(store: Store) -> None:
    late = replace(TOKEN, identifier="t2", expires=NOW + timedelta(days=9))
    await store.add_token(late)
    await store.add_token(TOKEN)
    assert [t.identifier for t in await store.tokens()] == ["t1", "t2"]
    await store.bind("t1", NODE)
    await store.forget_tokens(NOW + timedelta(days=1))
    assert await store.tokens() == (late,)
    await store.revoke_token("t2")
    await store.revoke_token("t2")
    assert await store.tokens() == ()
    assert await store.get("kiosk-1") == NODE


async def test_a_token_that_was_revoked_just_now_binds_nobody(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.bind("t1", NODE)
    assert await store.all() == ()


async def test_one_proof_belongs_to_one_name_until_it_is_forgotten(store: Store) -> None:
    proven = replace(NODE, method="tpm", evidence="ek:1", ak=b"ak", vouched="a maker")
    await store.enrol(proven)
    await store.enrol(proven)
    assert await store.proven_by("ek:1") == proven
    assert await store.proven_by("") is None
    await store.enrol(replace(proven, evidence="ek:2"))
    assert await store.proven_by("ek:1") is None
    await store.quarantine("kiosk-1", "stolen")
    found = await store.proven_by("ek:2")
    assert found is not None
    assert found.quarantined == "stolen"
    await store.forget("kiosk-1")
    assert await store.proven_by("ek:2") is None
    await store.enrol(replace(NODE, name="kiosk-2", evidence="ek:2"))
    assert (await store.get("kiosk-2")) is not None


async def test_what_a_tpm_has_shown_comes_back_as_it_was(store: Store) -> None:
    shown = Attestation(
        NOW, "image-1", Counters(9, 2, 1, 7), {"7": "ab"}, NOW, "wrong-pcr", "PCR 7"
    )
    await store.enrol(NODE)
    assert await store.attestation("kiosk-1") is None
    await store.keep_attestation("kiosk-1", Attestation())
    await store.keep_attestation("kiosk-1", shown)
    assert await store.attestation("kiosk-1") == shown
    assert await store.attestations() == {"kiosk-1": shown}
    await store.forget("kiosk-1")
    assert await store.attestations() == {}


async def test_what_was_kept_survives_a_restart(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "hub.db")
    first = SqliteEnrolments(database)
    await first.add_token(TOKEN)
    await first.bind("t1", NODE)
    database.close()
    database = Database.open(tmp_path / "hub.db")
    assert await SqliteEnrolments(database).get("kiosk-1") == NODE
    database.close()
