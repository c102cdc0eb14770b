"""Where people are kept, and how passwords are hashed: every implementation alike."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from edgewise.backends.passwords import Argon2Passwords
from edgewise.backends.sqlite.database import Database
from edgewise.backends.sqlite.people import SqlitePeople
from edgewise.identity.people_ports import Account, ApiToken, LoginSession, Passwords
from edgewise.model.labels import parse_selector
from edgewise.model.roles import Binding
from edgewise.testing.people import MemoryPeople, PlainPasswords

AT = datetime(2026, 1, 1, tzinfo=UTC)
Store = MemoryPeople | SqlitePeople
ADA = Account("ada", "local", AT, ("shops",), "1:x", addresses=("10.0.0.1",))
SESSION = LoginSession("s1", "ada", AT, AT + timedelta(days=1), "10.0.0.1", ("ab", "cd"))
TOKEN = ApiToken(
    "t1", "ada", "viewer", "ab" * 32, AT, AT + timedelta(days=1), "grafana", parse_selector("a=b")
)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryPeople()
        return
    database = Database.open(tmp_path / "hub.db")
    yield SqlitePeople(database)
    database.close()


async def test_what_is_saved_comes_back_and_replaces_what_was(store: Store) -> None:
    await store.save_account(ADA)
    await store.save_account(msgspec.structs.replace(ADA, disabled="left"))
    await store.save_session(SESSION)
    await store.save_api_token(TOKEN)
    assert await store.accounts() == (msgspec.structs.replace(ADA, disabled="left"),)
    assert await store.sessions() == (SESSION,)
    assert await store.api_tokens() == (TOKEN,)


async def test_a_person_goes_with_its_sessions_and_tokens_and_nobody_elses(store: Store) -> None:
    bob = msgspec.structs.replace(ADA, name="bob")
    for account, letter in ((ADA, "a"), (bob, "b")):
        await store.save_account(account)
        await store.save_session(
            msgspec.structs.replace(SESSION, id=f"s{letter}", user=account.name)
        )
        await store.save_api_token(
            msgspec.structs.replace(TOKEN, id=f"t{letter}", owner=account.name)
        )
    await store.remove_account("ada")
    await store.remove_account("ada")
    assert [one.name for one in await store.accounts()] == ["bob"]
    assert [one.id for one in await store.sessions()] == ["sb"]
    assert [one.id for one in await store.api_tokens()] == ["tb"]


async def test_ended_and_removed_is_gone_and_repeating_harms_nothing(store: Store) -> None:
    await store.save_session(SESSION)
    await store.save_api_token(TOKEN)
    for _ in range(2):
        await store.end_sessions(["s1", "unknown"])
        await store.remove_api_tokens(["t1"])
    assert (await store.sessions(), await store.api_tokens()) == ((), ())


async def test_a_use_is_noted_on_the_token_and_brings_no_removed_one_back(store: Store) -> None:
    await store.save_api_token(TOKEN)
    later = AT + timedelta(hours=1)
    await store.used({"t1": (later, "10.0.0.9"), "gone": (later, "10.0.0.9")})
    (kept,) = await store.api_tokens()
    assert kept == msgspec.structs.replace(TOKEN, last_used=later, last_address="10.0.0.9")


async def test_bindings_are_replaced_as_a_whole(store: Store) -> None:
    first = Binding("b", "viewer", ("ada",)), Binding("a", "operator", (), ("shops",))
    await store.save_bindings(first)
    assert await store.bindings() == (first[1], first[0])
    await store.save_bindings((Binding("c", "admin", ("ada",), (), parse_selector("site=x")),))
    assert [one.name for one in await store.bindings()] == ["c"]


@pytest.fixture(params=["plain", "argon2"])
def passwords(request: pytest.FixtureRequest) -> Passwords:
    return PlainPasswords() if request.param == "plain" else Argon2Passwords(1, 64, 1)


async def test_only_the_right_password_matches(passwords: Passwords) -> None:
    kept = await passwords.hashed("correct horse battery")
    assert await passwords.matches("correct horse battery", kept)
    assert not await passwords.matches("correct horse batterx", kept)
    assert not await passwords.matches("", kept)
    assert not passwords.outdated(kept)


async def test_nobody_has_no_password(passwords: Passwords) -> None:
    assert not await passwords.matches("", "")
    assert not await passwords.matches("nobody has this password", "")
