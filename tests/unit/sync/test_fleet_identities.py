"""Which identities a node's record grants while its fleet moves from one release to the next."""

from pathlib import Path

import pytest
from repo_of import app, compiled, doc, files

from edgewise.backends.files.objects import FileObjects
from edgewise.backends.tuf.repository import FileKeys, FileMetadata
from edgewise.delivery.on_hub import Publisher
from edgewise.protocol.channel import Channel
from edgewise.roles.fleet_identities import FleetIdentities
from edgewise.sync.ports import CompiledFleet
from edgewise.testing.clock import ManualClock

FLEET = (
    "selector: {matchLabels: {type: pos}}\napps: [{ref: {name: hello}}]\n"
    "identities: [{ref: {name: web}, selector: {matchLabels: {region: east}}}]\n"
)
NODES = ("n-1", "n-3")


def fleet(path: str, dns: str = "") -> CompiledFleet:
    web = f"spiffeID: {path}\nselectors: ['unix:uid:0']\ndnsNames: [{dns}]\n"
    return compiled(
        files(
            fleets_pos=doc("Fleet", "pos", FLEET),
            identities_web=doc("WorkloadIdentity", "web", web),
            apps_hello=app(more="identity: {}"),
            configs_site=None,
        )
    ).fleets["pos"]


@pytest.fixture
async def identities(tmp_path: Path) -> FleetIdentities:
    publisher = await Publisher.open(
        FileMetadata(tmp_path / "tuf"),
        FileKeys(tmp_path / "keys"),
        FileObjects(tmp_path / "content"),
        clock=ManualClock(),
    )
    return FleetIdentities(publisher)


async def test_a_node_gets_what_its_labels_select(identities: FleetIdentities) -> None:
    granted = await identities.of(fleet("/app/web", "a.internal"), None, NODES)
    assert granted == {
        "n-1": {"/app/pos/hello": (), "/app/web": ("a.internal",)},
        "n-3": {"/app/pos/hello": ()},
    }


async def test_a_node_keeps_the_old_identity_until_the_rollout_is_over(
    identities: FleetIdentities,
) -> None:
    old, new = fleet("/app/old", "a.internal"), fleet("/app/new", "b.internal")
    await identities.publisher.put_objects(old.documents)
    moving = Channel("pos", 2, stable=old.release, candidate=new.release)
    assert set((await identities.of(new, moving, NODES))["n-1"]) == {
        "/app/pos/hello",
        "/app/old",
        "/app/new",
    }
    settled = Channel("pos", 3, stable=new.release)
    assert set((await identities.of(new, settled, NODES))["n-1"]) == {"/app/pos/hello", "/app/new"}


async def test_names_of_both_releases_are_allowed_while_both_run(
    identities: FleetIdentities,
) -> None:
    old, new = fleet("/app/web", "a.internal"), fleet("/app/web", "b.internal")
    await identities.publisher.put_objects(old.documents)
    moving = Channel("pos", 2, stable=old.release, candidate=new.release)
    granted = await identities.of(new, moving, NODES)
    assert set(granted["n-1"]["/app/web"]) == {"a.internal", "b.internal"}


async def test_a_release_that_was_collected_grants_nothing(identities: FleetIdentities) -> None:
    new = fleet("/app/new")
    gone = Channel("pos", 2, stable="0" * 64, candidate=new.release)
    assert set((await identities.of(new, gone, NODES))["n-1"]) == {"/app/pos/hello", "/app/new"}


async def test_what_no_channel_names_is_forgotten(identities: FleetIdentities) -> None:
    await identities.of(fleet("/app/web"), None, NODES)
    identities.keep(())
    assert not identities._releases
    assert not identities._parts
