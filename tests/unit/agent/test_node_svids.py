"""The node's supply of identities: fresh, in one request, and through every outage."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from edgewise.identity.supply import JWTS, Held, due, held
from edgewise.identity.workload_ports import Caller, LocalSvid
from edgewise.model.errors import Forbidden, TryLater
from edgewise.protocol.content import WorkloadRegistration
from edgewise.testing.clock import ManualClock
from edgewise.testing.svids import FOREIGN, DeskInProcess, registered, supply

START = datetime(2026, 1, 1, tzinfo=UTC)
TILL = WorkloadRegistration("till", "/app/till", ("edgewise:app:till",), hint="till")
WEB = WorkloadRegistration("web", "/app/web", ("unix:uid:33",), federates_with=(FOREIGN,))
TILL_ID, WEB_ID = "spiffe://eu.acme/app/till", "spiffe://eu.acme/app/web"


class World:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.desk = DeskInProcess(folder, self.clock)
        self.svids = supply(self.desk)

    async def serial(self, spiffe_id: str = TILL_ID) -> int:
        svid = await self.svids.x509(spiffe_id)
        return x509.load_der_x509_certificate(svid.chain[0]).serial_number

    async def later(self, **span: float) -> None:
        await self.clock.run_for(timedelta(**span))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    running = asyncio.ensure_future(world.svids.run())
    yield world
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_everything_that_is_due_is_asked_for_in_one_request(world: World) -> None:
    registered(world.svids, world.desk, TILL, WEB)
    await settle()
    assert await world.serial() != await world.serial(WEB_ID)
    assert [len(request.x509) for request in world.desk.requests] == [2]
    await world.later(minutes=37)
    assert [len(request.x509) for request in world.desk.requests] == [2, 2]


async def test_an_svid_is_renewed_at_about_half_of_its_life(world: World) -> None:
    registered(world.svids, world.desk, TILL)
    await settle()
    first = await world.serial()
    await world.later(minutes=23)
    assert await world.serial() == first
    await world.later(minutes=14)
    assert await world.serial() != first


async def test_a_shorter_life_is_renewed_more_often(world: World) -> None:
    short = WorkloadRegistration("till", "/app/till", TILL.selectors, ttl_s=60)
    registered(world.svids, world.desk, short)
    await settle()
    svid = await world.svids.x509(TILL_ID)
    assert svid.not_after - START == timedelta(minutes=1)
    await world.later(minutes=10)
    assert 15 <= len(world.desk.requests) <= 25


async def test_what_there_is_lasts_while_the_relay_is_away(world: World) -> None:
    registered(world.svids, world.desk, TILL)
    await settle()
    first = await world.serial()
    world.desk.away = True
    await world.later(minutes=58)
    assert await world.serial() == first
    assert world.svids.problem() == ""
    assert world.svids.lines()[0].problem.startswith("the relay does not answer")


async def test_an_end_is_said_and_nothing_breaks_and_the_next_one_comes(world: World) -> None:
    registered(world.svids, world.desk, TILL)
    await settle()
    world.desk.away = True
    await world.later(hours=5)
    with pytest.raises(TryLater, match="ended at 01:00:00"):
        await world.svids.x509(TILL_ID)
    assert "has ended: the relay does not answer" in world.svids.problem()
    version = world.svids.version
    world.desk.away = False
    await world.later(minutes=3)
    assert await world.svids.newer_than(version) > version
    assert await world.serial()
    assert world.svids.problem() == ""


async def test_a_relay_that_is_away_is_not_asked_all_the_time(world: World) -> None:
    world.desk.away = True
    registered(world.svids, world.desk, TILL, WEB)
    await settle()
    await world.later(hours=1)
    assert 25 <= len(world.desk.requests) <= 120


async def test_one_identity_that_is_refused_keeps_no_other_away(world: World) -> None:
    world.desk.refuses = frozenset({"/app/web"})
    registered(world.svids, world.desk, TILL, WEB)
    await settle()
    assert await world.serial()
    with pytest.raises(TryLater, match="may not have /app/web"):
        await world.svids.x509(WEB_ID)
    world.desk.refuses = frozenset()
    await world.later(minutes=2)
    assert await world.serial(WEB_ID)


async def test_nothing_is_asked_for_that_the_record_does_not_grant(world: World) -> None:
    registered(world.svids, world.desk, TILL)
    world.svids.recorded(None)
    await settle()
    world.desk.requests.clear()
    await world.later(hours=2)
    assert world.desk.requests == []
    assert world.svids.entitled(Caller(1, 0, 0, app="till")) == ()


async def test_an_identity_that_is_taken_away_is_gone_at_once(world: World) -> None:
    registered(world.svids, world.desk, TILL, WEB)
    await settle()
    await world.svids.jwt(WEB_ID, ("db",))
    version = world.svids.version
    registered(world.svids, world.desk, TILL)
    with pytest.raises(TryLater):
        await world.svids.x509(WEB_ID)
    assert world.svids.version > version
    assert world.svids.tokens == 0


async def test_another_name_or_life_is_asked_for_at_once(world: World) -> None:
    registered(world.svids, world.desk, TILL)
    await settle()
    first = await world.serial()
    named = WorkloadRegistration("till", "/app/till", TILL.selectors, dns=("till.eu.acme",))
    registered(world.svids, world.desk, named)
    await settle()
    assert await world.serial() != first


async def test_another_hint_needs_no_other_svid(world: World) -> None:
    registered(world.svids, world.desk, TILL)
    await settle()
    first = await world.serial()
    registered(
        world.svids,
        world.desk,
        WorkloadRegistration("till", "/app/till", TILL.selectors, hint="other"),
    )
    await settle()
    assert await world.serial() == first
    assert (await world.svids.x509(TILL_ID)).hint == "other"


async def test_a_node_that_moved_to_another_region_has_none_of_its_old_names(
    world: World,
) -> None:
    registered(world.svids, world.desk, TILL)
    await settle()
    world.svids.moved("us.acme")
    with pytest.raises(TryLater):
        await world.svids.x509(TILL_ID)
    assert world.svids.entitled(Caller(1, 0, 0, app="till")) == ("spiffe://us.acme/app/till",)


async def test_svids_by_other_names_are_not_used_and_not_asked_for_without_end(
    world: World,
) -> None:
    registered(world.svids, world.desk, TILL)
    world.svids.moved("us.acme")  # the desk still issues for eu.acme
    await settle()
    await world.later(minutes=10)
    assert len(world.desk.requests) < 40
    with pytest.raises(TryLater, match="other names"):
        await world.svids.x509("spiffe://us.acme/app/till")


async def test_a_wall_clock_that_is_set_forward_is_noticed(world: World) -> None:
    registered(world.svids, world.desk, TILL)
    await settle()
    first = await world.serial()
    world.clock.set_wall(START + timedelta(minutes=40))
    await world.later(minutes=5)
    assert await world.serial() != first


# JWT-SVIDs


async def test_a_token_is_kept_for_half_of_its_life(world: World) -> None:
    registered(world.svids, world.desk, TILL)
    await settle()
    first = await world.svids.jwt(TILL_ID, ("db", "audit"))
    assert await world.svids.jwt(TILL_ID, ("audit", "db")) == first
    await world.later(seconds=160)
    assert await world.svids.jwt(TILL_ID, ("db", "audit")) == first  # and asks for the next
    await settle()
    assert await world.svids.jwt(TILL_ID, ("db", "audit")) != first


async def test_a_token_that_nearly_ends_is_not_given_out_when_another_can_be_had(
    world: World,
) -> None:
    registered(world.svids, world.desk, TILL)
    await settle()
    first = await world.svids.jwt(TILL_ID, ("db",))
    await world.later(seconds=240)
    assert await world.svids.jwt(TILL_ID, ("db",)) != first


async def test_a_token_that_holds_is_given_out_while_the_relay_is_away(world: World) -> None:
    registered(world.svids, world.desk, TILL)
    await settle()
    first = await world.svids.jwt(TILL_ID, ("db",))
    world.desk.away = True
    for _ in range(2):
        await world.later(seconds=140)
        assert await world.svids.jwt(TILL_ID, ("db",)) == first
    await world.later(seconds=40)
    with pytest.raises(TryLater):
        await world.svids.jwt(TILL_ID, ("db",))


async def test_all_that_want_tokens_at_once_are_one_request(world: World) -> None:
    registered(world.svids, world.desk, TILL)
    await settle()
    world.desk.requests.clear()
    wanted = [("db",), ("db",), ("audit",), ("db",)]
    found = await asyncio.gather(*(world.svids.jwt(TILL_ID, names) for names in wanted))
    assert found[0] == found[1] == found[3] != found[2]
    assert [len(request.jwt) for request in world.desk.requests] == [2]


async def test_a_token_that_is_refused_keeps_no_other_away(world: World) -> None:
    registered(world.svids, world.desk, TILL, WEB)
    await settle()
    world.desk.refuses = frozenset({"/app/web"})
    till, web = await asyncio.gather(
        world.svids.jwt(TILL_ID, ("db",)),
        world.svids.jwt(WEB_ID, ("db",)),
        return_exceptions=True,
    )
    assert isinstance(web, Forbidden)
    assert not isinstance(till, BaseException)


async def test_tokens_for_ever_new_audiences_do_not_pile_up(world: World) -> None:
    registered(world.svids, world.desk, TILL)
    await settle()
    for start in range(0, JWTS + 128, 64):
        audiences = [(f"a{number}",) for number in range(start, start + 64)]
        world.clock.advance(timedelta(minutes=1))
        await asyncio.gather(*(world.svids.jwt(TILL_ID, names) for names in audiences))
    assert world.svids.tokens <= JWTS


async def test_whom_a_workload_trusts_is_what_its_registration_says(world: World) -> None:
    registered(world.svids, world.desk, TILL, WEB)
    assert world.svids.federates_with([TILL_ID]) == ()
    assert world.svids.federates_with([WEB_ID]) == (FOREIGN,)


# What is due (pure)


def test_what_is_nearly_due_goes_with_what_is_due() -> None:
    svid = LocalSvid(TILL_ID, (), b"", START, START + timedelta(hours=1))
    soon = Held(svid, START + timedelta(minutes=33), TILL)
    now = held(svid, WEB, 0.5)
    wanted = {TILL_ID: TILL, WEB_ID: WEB}
    have = {TILL_ID: soon, WEB_ID: now}
    assert due(wanted, have, START + timedelta(minutes=29)) == ()
    assert due(wanted, have, START + timedelta(minutes=30)) == (TILL_ID, WEB_ID)
