"""Rights, passwords and the pace of guessing: the decisions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.identity import api_tokens
from edgewise.identity.people import (
    EVERYTHING,
    NOBODY,
    Grant,
    Place,
    Rights,
    check_password,
    checked_groups,
    checked_user_name,
    rights_of,
)
from edgewise.identity.people_ports import ApiToken
from edgewise.identity.throttle import FREE, LONGEST_AT_HOME, SUPPLY, Throttle, network_of
from edgewise.model.errors import BadUsage
from edgewise.model.labels import parse_selector
from edgewise.model.roles import INCLUDED, Binding

BERLIN = parse_selector("site=berlin")
ROLES = st.sampled_from(sorted(INCLUDED))
PLACES = st.builds(
    Place,
    st.dictionaries(st.sampled_from(["site", "ring"]), st.sampled_from(["berlin", "bonn"])),
    st.sampled_from(["", "kiosks", "tills"]),
)
GRANTS = st.builds(
    Grant,
    ROLES,
    st.sampled_from([parse_selector(""), BERLIN, parse_selector("ring in (bonn)")]),
    st.sampled_from([(), ("kiosks",)]),
)
RIGHTS = st.builds(Rights, st.lists(GRANTS, max_size=3).map(tuple))


def test_bindings_give_to_users_and_to_groups_and_to_nobody_else() -> None:
    bindings = (
        Binding("one", "operator", ("ada",), (), BERLIN),
        Binding("two", "viewer", (), ("shops",)),
    )
    assert rights_of("ada", (), bindings).over("operator", Place({"site": "berlin"}))
    assert not rights_of("ada", (), bindings).over("operator", Place({"site": "bonn"}))
    assert rights_of("bob", ("shops",), bindings).everywhere("viewer")
    assert rights_of("shops", ("ada",), bindings) == NOBODY, "a user's name is no group's"


def test_the_administrator_has_everything_without_any_binding() -> None:
    assert rights_of("admin", (), ()) == EVERYTHING


@given(RIGHTS, ROLES, PLACES)
def test_everywhere_means_every_node_and_over_means_somewhere(
    rights: Rights, role: str, place: Place
) -> None:
    if rights.everywhere(role):  # type: ignore[arg-type]
        assert rights.over(role, place)  # type: ignore[arg-type]
    if rights.over(role, place):  # type: ignore[arg-type]
        assert rights.somewhere(role)  # type: ignore[arg-type]


@given(RIGHTS, RIGHTS, ROLES, PLACES)
def test_a_token_never_does_what_its_owner_may_not(
    own: Rights, owner: Rights, role: str, place: Place
) -> None:
    token = Rights(own.grants, within=owner)
    for question in ("somewhere", "everywhere"):
        if getattr(token, question)(role):
            assert getattr(owner, question)(role)
            assert getattr(own, question)(role)
    if token.over(role, place):  # type: ignore[arg-type]
        assert owner.over(role, place)  # type: ignore[arg-type]
        assert own.over(role, place)  # type: ignore[arg-type]
    if token.over_fleet(role, "kiosks", [place.labels]):  # type: ignore[arg-type]
        assert owner.over_fleet(role, "kiosks", [place.labels])  # type: ignore[arg-type]


def test_a_token_of_a_useful_owner_is_of_use() -> None:
    token = ApiToken("t", "ada", "viewer", "", datetime.now(UTC), datetime.now(UTC))
    assert api_tokens.rights(token, EVERYTHING).everywhere("viewer")
    assert not api_tokens.rights(token, EVERYTHING).somewhere("operator")


def test_an_empty_fleet_belongs_to_who_has_it_by_name_or_has_all() -> None:
    by_label = Rights((Grant("operator", BERLIN),))
    assert not by_label.over_fleet("operator", "kiosks", [])
    assert Rights((Grant("operator", fleets=("kiosks",)),)).over_fleet("operator", "kiosks", [])
    assert EVERYTHING.over_fleet("operator", "kiosks", [])


def test_an_operator_does_not_approve_and_an_approver_does_not_operate() -> None:
    assert not Rights((Grant("operator"),)).somewhere("approver")
    assert not Rights((Grant("approver"),)).somewhere("operator")


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("short", "5 characters"),
        ("a" * 513, "longer than"),
        ("annannannanna", "repeats"),
        ("anna-schmidt-2026", "little more than the user's name"),
        ("abcdefghijklmnop", "alphabet"),
        ("9876543210987654", "alphabet"),
        ("qwertyuiopasdf", "keyboard"),
    ],
)
def test_bad_passwords_are_refused_with_the_reason(password: str, why: str) -> None:
    with pytest.raises(BadUsage, match=why):
        check_password(password, "anna-schmidt")


@pytest.mark.parametrize("password", ["correct horse battery", "straße im nebel", "K7#mPq2!vX9z"])
def test_good_passwords_need_no_rules_of_kinds(password: str) -> None:
    check_password(password, "anna-schmidt")


def test_nobody_can_be_called_admin() -> None:
    with pytest.raises(BadUsage, match="administrator"):
        checked_user_name("admin")
    with pytest.raises(BadUsage):
        checked_user_name("Anna Schmidt")
    with pytest.raises(BadUsage):
        checked_groups(["a\nb"])
    assert checked_groups(["b", "a", "b"]) == ("a", "b")


# The pace of guessing.


def guess(
    throttle: Throttle, name: str, address: str, now: float, *, at_home: bool = False
) -> float:
    return throttle.attempt(name, address, at_home=at_home, now=now)


def test_a_few_mistakes_cost_nothing_and_then_each_waits_twice_as_long() -> None:
    throttle = Throttle()
    assert [guess(throttle, "ada", "10.0.0.1", 0.0) for _ in range(FREE)] == [0.0] * FREE
    waits, now = [], 0.0
    for _ in range(5):
        wait = guess(throttle, "ada", "10.0.0.1", now)
        waits.append(wait)
        now += wait
        assert guess(throttle, "ada", "10.0.0.1", now) == 0.0
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]


def test_an_attacker_with_many_addresses_slows_down_only_strangers() -> None:
    throttle = Throttle()
    for number in range(SUPPLY * 3):
        guess(throttle, "ada", f"10.1.{number}.1", 0.0)
    assert guess(throttle, "ada", "10.9.9.9", 0.0) > 0, "or this test shows nothing"
    assert guess(throttle, "ada", "192.0.2.7", 0.0, at_home=True) == 0.0
    assert guess(throttle, "bob", "10.9.9.9", 0.0) == 0.0


def test_one_address_cannot_try_many_names() -> None:
    throttle = Throttle()
    through = sum(guess(throttle, f"u{n}", "10.0.0.1", 0.0) == 0.0 for n in range(1000))
    assert through == SUPPLY


def test_whoever_shares_an_address_with_an_attacker_waits_half_a_minute_at_most() -> None:
    throttle = Throttle()
    now = 0.0
    for _ in range(40):
        now += guess(throttle, "ada", "10.0.0.1", now, at_home=True)
        guess(throttle, "ada", "10.0.0.1", now, at_home=True)
    assert guess(throttle, "ada", "10.0.0.1", now, at_home=True) <= LONGEST_AT_HOME


def test_a_success_counts_for_nothing() -> None:
    throttle = Throttle()
    for _ in range(200):
        assert guess(throttle, "ada", "10.0.0.1", 0.0) == 0.0
        throttle.succeeded("ada", "10.0.0.1", at_home=False)


def test_a_home_network_is_one_address() -> None:
    assert network_of("2001:db8:1:2::5") == network_of("2001:db8:1:2:ffff::1")
    assert network_of("::ffff:10.0.0.1") == "10.0.0.1"
    assert network_of("unknown") == "unknown"


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_as_an_api_token(text: str) -> None:
    assert api_tokens.read(text) is None


def test_an_api_token_reads_back() -> None:
    identifier, text, digest = api_tokens.written(b"12345678", b"s" * 32)
    found = api_tokens.read(text)
    assert found is not None
    assert found[0] == identifier
    now = datetime.now(UTC)
    token = ApiToken(identifier, "ada", "viewer", digest, now, now + timedelta(days=1))
    assert api_tokens.fits(token, found[1])
    assert not api_tokens.fits(token, found[1][:-1] + "A")
    assert digest not in text
