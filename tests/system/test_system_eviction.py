"""A node that is not trusted any more: what its disk still gets, at the relay and at the hub."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fleet_on_laptop import Fleet, fleet_on_laptop
from msgspec import structs

from edgewise.identity.on_agent import MachineIdentity, rejoin, renew
from edgewise.model.errors import BadUsage, EdgewiseError, Forbidden
from edgewise.net.client import Client, Endpoint
from edgewise.net.joining import by_identity
from edgewise.net.tls import client_context
from edgewise.protocol.codec import encode
from edgewise.protocol.sync import SyncRequest
from edgewise.protocol.workload import WorkloadRequest
from edgewise.runtime.clock import SystemClock

pytestmark = pytest.mark.slow

CLOCK = SystemClock()


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet_on_laptop(tmp_path) as running:
        yield running


class Thief:
    """Somebody with everything that was on a node's disk, and all the time in the world."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.identity = MachineIdentity(fleet.state(name) / "identity")
        card = self.identity.card()
        hub = fleet.client().context.told.url
        self.cards = {"relay": card, "hub": structs.replace(card, urls=(hub,))}

    def ways(self, at: str) -> dict[str, Callable[[], Awaitable[None]]]:
        """Everything that a node may ask for."""
        return {
            "sync": lambda: self._post(at, "/v1/sync", SyncRequest(hold_s=0)),
            "workload identities": lambda: self._post(at, "/v1/workloads", WorkloadRequest()),
            "secrets and releases": lambda: self._get(at, "/v1/content/tuf/1.root.json"),
            "renewal": lambda: self._by(at, rejoining=False),
            "rejoin": lambda: self._by(at, rejoining=True),
        }

    def _client(self, at: str) -> Client:
        card = self.cards[at]
        tls = client_context(self.identity.credentials)
        return Client(Endpoint(card.urls, tls, card.expects), CLOCK)

    async def _post(self, at: str, path: str, body: Any) -> None:
        async with self._client(at) as client:
            await client.request("POST", path, encode(body))

    async def _get(self, at: str, path: str) -> None:
        async with self._client(at) as client:
            await client.request("GET", path)

    async def _by(self, at: str, *, rejoining: bool) -> None:
        door = by_identity(self.cards[at], self.identity.credentials, CLOCK, expired=rejoining)
        try:
            await (rejoin if rejoining else renew)(self.identity, door)
        finally:
            await door.close()

    async def refused(self, at: str) -> dict[str, str]:
        """What is refused there, with the words."""
        said = {}
        for way, attempt in self.ways(at).items():
            try:
                await attempt()
            except BadUsage:
                continue  # it was let in, and asked for nothing
            except EdgewiseError as error:
                said[way] = f"{type(error).__name__}: {error}"
        return said

    async def is_refused(self, at: str) -> bool:
        """Whether its poll is, which is what says that word has got there."""
        try:
            await self._post(at, "/v1/sync", SyncRequest(hold_s=0))
        except Forbidden:
            return True
        except EdgewiseError:
            return False
        return False


async def until_refused(thief: Thief, at: str) -> None:
    ends = asyncio.get_running_loop().time() + 15  # a poll is held for 20 s: word is quicker
    while not await thief.is_refused(at):
        assert asyncio.get_running_loop().time() < ends
        await asyncio.sleep(0.05)


ALL = ["rejoin", "renewal", "secrets and releases", "sync", "workload identities"]


async def test_a_quarantined_node_gets_nothing_at_the_relay_nor_at_the_hub(fleet: Fleet) -> None:
    await fleet.kill("node-2")
    thief = Thief(fleet, "node-2")
    assert await thief.refused("relay") == {}  # the node was trusted until now
    await asyncio.to_thread(fleet.act, "/v1/nodes/node-2/quarantine", "stolen")
    for at in ("hub", "relay"):
        await until_refused(thief, at)
        said = await thief.refused(at)
        assert sorted(said) == ALL, at
    assert "stolen" in said["rejoin"]


async def test_a_forgotten_node_gets_nothing_also_while_the_relay_is_cut_off(
    fleet: Fleet,
) -> None:
    await fleet.kill("node-2")
    thief = Thief(fleet, "node-2")
    await asyncio.to_thread(lambda: fleet.client().delete("/v1/nodes/node-2"))
    for at in ("hub", "relay"):
        await until_refused(thief, at)
        assert sorted(await thief.refused(at)) == ALL, at
    await fleet.laptop.processes["hub"].stop()
    await fleet.laptop.processes["relay"].stop()
    await fleet.start_relay()
    said = await thief.refused("relay")
    assert sorted(said) == ALL
    assert [way for way in ALL if said[way].startswith("TryLater")] == ["rejoin"]  # the hub's
