"""The pure decisions: names and callers, lineages, renewal times, nonces."""

from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.identity.names import (
    Organisation,
    RouteKind,
    Station,
    authorise,
    is_server,
    upstream_of,
    well_placed,
)
from edgewise.identity.nonces import Nonces
from edgewise.identity.ports import Enrolled
from edgewise.identity.quarantine import standing
from edgewise.identity.rotation import (
    EARLIEST,
    Lineage,
    TwoUsers,
    Validity,
    clock_is_wrong,
    issued,
    renew_at,
    shown,
)
from edgewise.model.errors import BadUsage, Forbidden
from edgewise.model.names import SpiffeId

ACME = Organisation("acme")
NOW = datetime(2026, 6, 1, tzinfo=UTC)
HUB = Station(ACME)
RELAY = Station(ACME, "eu")

PEERS = {
    "nobody": None,
    "hub": ACME.hub,
    "user": ACME.user("anna"),
    "relay": ACME.relay("eu", "r1"),
    "node": ACME.node("eu", "kiosk-1"),
    "node of us": ACME.node("us", "kiosk-1"),
    "stranger": SpiffeId("eu.other", "/node/kiosk-1"),
    "user in a region": SpiffeId("eu.acme", "/user/anna"),
    "node in the hub's domain": SpiffeId("hub.acme", "/node/kiosk-1"),
    "hub in a region": SpiffeId("eu.acme", "/hub"),
    "hub with a name": SpiffeId("hub.acme", "/hub/x"),
    "app": SpiffeId("eu.acme", "/app/fleet/app"),
    "deep": SpiffeId("eu.acme", "/node/a/b"),
    "sub": SpiffeId("x.eu.acme", "/node/kiosk-1"),
}


SERVED = {"node", "relay", "user", "hub"}


def allowed(kind: RouteKind, at: Station) -> set[str]:
    found = set()
    for name, peer in PEERS.items():
        try:
            authorise(kind, peer, at)
        except Forbidden:
            continue
        found.add(name)
    return found


@pytest.mark.parametrize(
    ("kind", "at_hub", "at_relay"),
    [
        ("open", set(PEERS), set(PEERS)),
        ("sync", {"node", "node of us"}, {"node"}),
        (
            "content",
            {"node", "node of us", "relay", "user", "hub"},
            {"node", "relay", "user", "hub"},
        ),
        ("renew", {"node", "node of us", "relay", "user"}, {"node", "relay", "user"}),
        ("relay", {"relay"}, {"relay"}),
        ("operator", {"user", "hub"}, {"user", "hub"}),
    ],
)
def test_who_may_call_what(kind: RouteKind, at_hub: set[str], at_relay: set[str]) -> None:
    assert allowed(kind, HUB) == at_hub
    assert allowed(kind, RELAY) == at_relay


def test_every_kind_of_route_is_decided() -> None:
    for kind in get_args(RouteKind):
        allowed(kind, HUB)


def test_a_node_talks_to_the_hub_and_the_relays_of_its_region_only() -> None:
    node, relay, hub = PEERS["node"], PEERS["relay"], str(ACME.hub)
    assert node is not None
    assert relay is not None
    accepted = {n for n, p in PEERS.items() if p is not None and upstream_of(node, hub, p)}
    assert accepted == {"hub", "relay"}
    assert not upstream_of(node, hub, ACME.relay("us", "r1"))
    assert {n for n, p in PEERS.items() if p and upstream_of(relay, hub, p)} == {"hub"}
    assert not is_server(node)
    assert is_server(relay)


def test_a_role_counts_only_in_the_trust_domain_where_it_belongs() -> None:
    placed = {name for name, peer in PEERS.items() if peer is not None and well_placed(peer)}
    assert placed == {"hub", "user", "relay", "node", "node of us", "stranger"}


@pytest.mark.parametrize("region", ["hub", "", "a.b", "EU", "-", "x" * 64])
def test_a_region_cannot_take_the_hubs_place(region: str) -> None:
    with pytest.raises(BadUsage):
        ACME.domain(region)
    with pytest.raises(BadUsage):
        Organisation("a.b")


def test_a_certificate_alone_is_not_enough_to_get_anything() -> None:
    peer = ACME.node("eu", "kiosk-1")
    good = Enrolled("kiosk-1", "node", "eu", b"k", {}, NOW)

    def reason(enrolled: Enrolled | None) -> str:
        found = standing(peer, enrolled, ACME)
        return found.reason if found else ""

    assert reason(good) == ""
    assert reason(None) == "forgotten"
    assert reason(Enrolled("kiosk-1", "relay", "eu", b"k", {}, NOW)) == "forgotten"
    assert reason(Enrolled("kiosk-1", "node", "us", b"k", {}, NOW)) == "moved"
    assert (
        reason(Enrolled("kiosk-1", "node", "eu", b"k", {}, NOW, quarantined="x")) == "quarantined"
    )


@given(st.floats(0, 1), st.integers(60, 10**8))
def test_renewal_falls_into_the_middle_fifth_of_the_life(fraction: float, seconds: int) -> None:
    validity = Validity(NOW, NOW + timedelta(seconds=seconds))
    share = (renew_at(validity, fraction) - NOW) / validity.lifetime
    assert 0.399 <= share <= 0.601


def test_a_clock_before_this_program_or_our_own_certificate_is_wrong() -> None:
    own = Validity(NOW, NOW + timedelta(days=45))
    assert clock_is_wrong(datetime(1970, 1, 1, tzinfo=UTC))
    assert clock_is_wrong(EARLIEST, own)
    assert not clock_is_wrong(NOW - timedelta(minutes=5), own)
    assert not clock_is_wrong(datetime(2099, 1, 1, tzinfo=UTC), own)


class Machines:
    """Machines that renew with one identity; some answers are lost."""

    def __init__(self) -> None:
        self.lineage = issued(Lineage(), "0", NOW)
        self.now = NOW
        self.held = {"a": "0", "b": "0"}
        self.count = 0

    def renew(self, machine: str, *, lost: bool) -> bool:
        """Whether it was let through."""
        self.now += timedelta(days=1)
        found = shown(self.lineage, self.held[machine])
        if isinstance(found, TwoUsers):
            return False
        self.count += 1
        self.lineage = issued(found, str(self.count), self.now)
        if not lost:
            self.held[machine] = str(self.count)
        return True


@given(st.lists(st.booleans(), max_size=60))
def test_one_machine_is_never_taken_for_two_however_many_answers_are_lost(
    losses: list[bool],
) -> None:
    machines = Machines()
    assert all(machines.renew("a", lost=lost) for lost in losses)
    assert len(machines.lineage.replaced) <= 16


@given(st.lists(st.sampled_from("ab"), min_size=2, max_size=40))
def test_two_machines_are_noticed_at_the_latest_when_the_first_comes_back(order: list[str]) -> None:
    machines = Machines()
    through = [machines.renew(machine, lost=False) for machine in order]
    switches = [i for i in range(1, len(order)) if order[i] != order[i - 1]]
    if len(switches) >= 2:
        assert not all(through)
    if not switches:
        assert all(through)


def test_two_machines_in_turn_are_caught_at_the_third_renewal() -> None:
    machines = Machines()
    assert [machines.renew(m, lost=False) for m in "aba"] == [True, True, False]


def test_requests_that_overtake_each_other_are_no_second_machine() -> None:
    lineage = issued(Lineage(), "0", NOW)
    held = shown(lineage, "0")
    assert isinstance(held, Lineage)
    twice = issued(issued(held, "1", NOW), "2", NOW + timedelta(seconds=30))
    assert isinstance(shown(twice, "1"), Lineage)


def test_nonces_are_for_once_and_for_two_minutes() -> None:
    nonces = Nonces(b"k" * 32)
    made = [nonces.make(NOW, bytes([n]) * 16) for n in range(3)]
    assert len(set(made)) == 3
    assert nonces.use(made[0], NOW) == ""
    assert "before" in nonces.use(made[0], NOW)
    assert "expired" in nonces.use(made[1], NOW + timedelta(minutes=2))
    assert "not made" in Nonces(b"j" * 32).use(made[2], NOW)
    assert nonces.use(made[2], NOW + timedelta(seconds=119)) == ""


@given(st.text(max_size=80))
def test_a_made_up_nonce_is_never_good(text: str) -> None:
    assert Nonces(b"k" * 32).use(text, NOW)
