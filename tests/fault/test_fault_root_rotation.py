"""The root certificate is replaced, and no machine is lost: hub, relay and nodes over TLS,
with the parts of the real agent that keep its certificate and its line."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from relay_region import RelayProcess, SecureHub, eventually, join_node, region

from edgewise.backends.pki.authority import Authority
from edgewise.backends.pki.keys import FileKeys
from edgewise.backends.pki.roots import Roots
from edgewise.identity.on_agent import MachineIdentity
from edgewise.model.errors import Conflict, EdgewiseError, NeedsPerson
from edgewise.protocol.api import CaStatus, RotateRoot
from edgewise.protocol.report import Observation
from edgewise.protocol.sync import SyncRequest
from edgewise.roles.node_certificate import CertificateKeeper, Timing, Upstream
from edgewise.roles.worker import InProcessWorker
from edgewise.runtime.clock import SystemClock
from edgewise.runtime.credentials import fingerprint
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog

QUICK = Timing(
    other_root=timedelta(seconds=0.3), first=timedelta(seconds=0.1), cap=timedelta(seconds=0.2)
)
Place = tuple[SecureHub, RelayProcess]


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr("edgewise.roles.relay.TRUST_LOOK", timedelta(seconds=0.1))
    async with region(tmp_path) as both:
        await both[0].announce(1)
        yield both


class Agent:
    """A node's line, certificate and worker, as the agent puts them together."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.worker = InProcessWorker(state)
        self.bundles = 0
        self.tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        clock = SystemClock()
        self.upstream = Upstream(self.state, clock)
        keeper = CertificateKeeper(
            self.upstream, self.worker, clock, SeededChance(), ListLog(), timing=QUICK
        )
        self.tasks = [asyncio.create_task(keeper.run()), asyncio.create_task(self._poll())]

    async def _poll(self) -> None:
        """What rollout.on_agent does with its line."""
        while True:
            said = Observation(bundles=self.bundles, issuer=self.upstream.card.root)
            request = SyncRequest(observation=said, bundles=self.bundles, hold_s=0.0)
            with contextlib.suppress(EdgewiseError):
                reply = await self.upstream.exchange(request, timedelta(seconds=2))
                if reply is not None and reply.bundles is not None:
                    self.bundles = (await self.worker.verify(reply)).bundles
                    self.upstream.retrusted()
            await asyncio.sleep(0.05)

    async def away(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.upstream.close()

    @property
    def root(self) -> str:
        """The root above its certificate."""
        return MachineIdentity(self.state / "identity").card().root

    @property
    def trusts(self) -> tuple[str, ...]:
        files = MachineIdentity(self.state / "identity").credentials
        return tuple(map(fingerprint, files.root_certificates()))

    async def is_well(self) -> bool:
        try:
            await self.upstream.exchange(SyncRequest(hold_s=0.0), timedelta(seconds=2))
        except EdgewiseError:
            return False
        return True


async def agent_of(hub: SecureHub, folder: Path, name: str, **terms: object) -> Agent:
    state = folder / name
    state.mkdir()
    token = await hub.token(**terms)
    await join_node(folder / "joining", name, token)
    (folder / "joining" / name).rename(state / "identity")
    agent = Agent(state)
    agent.start()
    return agent


async def step(hub: SecureHub, what: str, **how: bool) -> CaStatus:
    return await hub.rotator.step(RotateRoot(what, **how))  # type: ignore[arg-type]


async def ready(hub: SecureHub) -> bool:
    now = await hub.rotator.status()
    return now.ready == now.machines


async def test_a_root_is_replaced_without_losing_a_node(place: Place, tmp_path: Path) -> None:
    hub, relay = place
    direct = await agent_of(hub, tmp_path, "direct", region="us")
    behind = await agent_of(hub, tmp_path, "behind", region="eu", via="frankfurt")
    agents = (direct, behind)
    before = hub.authority.root_sha256
    prepared = await step(hub, "prepare")
    assert [line.state for line in prepared.roots] == ["signs", "next"]
    after = prepared.roots[1].sha256
    await eventually(lambda: ready(hub))
    for agent in agents:
        assert set(agent.trusts) == {before, after}
        assert agent.root == before
    await step(hub, "activate")
    assert hub.authority.root_sha256 == after
    await eventually(lambda: ready(hub))
    for agent in agents:
        assert agent.root == after
        assert await agent.is_well()
    with pytest.raises(NeedsPerson, match="workloads may still hold") as early:
        await step(hub, "retire")
    assert "try again in 120 min" in early.value.hint
    retired = await step(hub, "retire", force=True)
    assert [line.sha256 for line in retired.roots] == [after]
    await eventually(lambda: all(agent.trusts == (after,) for agent in agents))
    for agent in agents:
        assert await agent.is_well()
    relayed = MachineIdentity(relay.settings.state / "identity")
    assert relayed.card().root == after
    assert len(relayed.credentials.root_certificates()) == 1
    fresh = await agent_of(hub, tmp_path, "fresh", region="eu", via="frankfurt")
    assert fresh.trusts == (after,)
    for agent in (*agents, fresh):
        await agent.away()


async def test_a_node_and_a_relay_that_were_away_for_all_of_it_come_back(
    place: Place, tmp_path: Path
) -> None:
    hub, relay = place
    direct = await agent_of(hub, tmp_path, "direct", region="us")
    behind = await agent_of(hub, tmp_path, "behind", region="eu", via="frankfurt")
    agents = (direct, behind)
    await eventually(lambda: all(agent.bundles for agent in agents))
    for agent in agents:
        await agent.away()
    await relay.stop()
    for what in ("prepare", "activate", "retire"):
        await step(hub, what, force=True)
    after = hub.authority.root_sha256
    assert all(agent.trusts != (after,) for agent in agents)
    await relay.start()
    for agent in agents:
        agent.start()
    await eventually(lambda: all(a.trusts == (after,) for a in agents), 20.0)
    await eventually(lambda: all(a.root == after for a in agents), 20.0)
    for agent in agents:
        assert await agent.is_well()
        await agent.away()
    assert MachineIdentity(relay.settings.state / "identity").card().root == after


async def test_a_step_waits_for_the_machines_unless_a_person_insists(
    place: Place, tmp_path: Path
) -> None:
    hub, _ = place
    with pytest.raises(Conflict, match="rotation is Stable") as refused:
        await step(hub, "retire")
    assert "edgewise ca rotate-root prepare" in refused.value.hint
    gone = await agent_of(hub, tmp_path, "gone", region="us")
    await eventually(lambda: gone.bundles > 0)
    await gone.away()
    dry = await step(hub, "prepare", dry_run=True)
    assert dry.stage == "Stable"
    await step(hub, "prepare")
    with pytest.raises(NeedsPerson, match=r"of 2 machines do not trust the next root yet: .*gone"):
        await step(hub, "activate")
    assert "gone" in (await hub.rotator.status()).waiting
    await step(hub, "activate", force=True)
    with pytest.raises(NeedsPerson, match="do not have a certificate from it"):
        await step(hub, "retire")


async def test_a_prepared_root_can_be_forgotten(place: Place) -> None:
    hub, _ = place
    before = hub.authority.roots
    await step(hub, "prepare")
    assert len(hub.authority.roots) == 2
    after = await step(hub, "cancel")
    assert after.stage == "Stable"
    assert hub.authority.roots == before


@pytest.mark.parametrize("cut", ["old written", "first key moved", "keys moved"])
def test_an_activation_that_was_cut_off_is_finished_at_the_next_start(
    tmp_path: Path, cut: str
) -> None:
    clock = ManualClock()
    roots = Roots.open_or_create(tmp_path, "acme", clock, FileKeys(tmp_path))
    roots.prepare()
    old, fresh = roots.active, roots.next
    (tmp_path / "root-old.pem").write_bytes((tmp_path / "root.pem").read_bytes())
    if cut != "old written":
        roots.keys.move("root", "root-old")
    if cut == "keys moved":
        roots.keys.move("root-next", "root")
    again = Roots.open_or_create(tmp_path, "acme", clock, FileKeys(tmp_path))
    assert (again.active, again.old, again.next) == (fresh, old, None)
    assert again.stage == "Activated"
    key = again.signer().key
    assert key.public_key() == again.active.public_key()
    assert again.keys.has("root-old")
    again.retire()
    assert Roots.open_or_create(tmp_path, "acme", clock, FileKeys(tmp_path)).stage == "Stable"
    assert not again.keys.has("root-old")


def test_after_an_activation_the_hubs_own_cas_are_from_the_new_root(tmp_path: Path) -> None:
    authority = Authority.open_or_create(tmp_path, "acme", ManualClock())
    first = authority._signer("eu").certificate
    authority.root.prepare()
    assert authority._signer("eu").certificate == first
    authority.root.activate()
    authority.rotated()
    second = authority._signer("eu").certificate
    second.verify_directly_issued_by(authority.root.active)
    again = Authority.open_or_create(tmp_path, "acme", ManualClock())
    assert again._signer("eu").certificate == second
