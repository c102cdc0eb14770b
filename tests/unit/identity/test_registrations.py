"""Who gets which identity on a node, and what explains why not."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from edgewise.identity.registrations import Registrations, read
from edgewise.identity.workload_ports import Caller
from edgewise.protocol.content import WorkloadRegistration

TILL = WorkloadRegistration("till", "/app/pos/till", ("edgewise:app:till",))
WEB = WorkloadRegistration("web", "/app/web", ("unix:uid:33", "systemd:unit:nginx.service"))
AUDIT = WorkloadRegistration("audit", "/app/audit", ("edgewise:app:till", "unix:uid:7"))
NGINX = Caller(9, 33, 33, unit="nginx.service", executable="/usr/sbin/nginx")
GRANTED: dict[str, tuple[str, ...]] = {"/app/pos/till": (), "/app/web": (), "/app/audit": ()}


def node(*entries: WorkloadRegistration, granted: object = None) -> Registrations:
    return Registrations(
        read(entries),
        GRANTED if granted is None else granted,
        "eu.acme",  # type: ignore[arg-type]
    )


def test_all_selectors_must_hold() -> None:
    here = node(WEB)
    assert here.entitled(NGINX) == ("spiffe://eu.acme/app/web",)
    assert here.entitled(Caller(9, 33, 33)) == ()
    assert here.entitled(Caller(9, 34, 33, unit="nginx.service")) == ()


def test_the_apps_own_identity_is_the_default_one() -> None:
    caller = Caller(9, 7, 7, app="till")
    for order in itertools.permutations((AUDIT, TILL, WEB)):
        assert node(*order).entitled(caller) == (
            "spiffe://eu.acme/app/pos/till",
            "spiffe://eu.acme/app/audit",
        )


def test_what_the_signed_record_does_not_name_is_never_granted() -> None:
    here = node(WEB, granted={"/app/other": ()})
    assert here.entitled(NGINX) == ()
    assert here.wanted() == {}
    assert "record" in here.explain(NGINX)[0].problem


def test_a_name_that_the_record_does_not_allow_waits() -> None:
    named = WorkloadRegistration("web", "/app/web", WEB.selectors, dns=("web.internal",))
    assert node(named).entitled(NGINX) == ()
    assert node(named, granted={"/app/web": ("web.internal",)}).entitled(NGINX)


def test_a_selector_of_a_newer_release_holds_for_nobody() -> None:
    odd = WorkloadRegistration("web", "/app/web", ("moon:phase:full",))
    assert node(odd).entitled(NGINX) == ()
    assert "older" in node(odd).explain(NGINX)[0].problem
    assert node(WorkloadRegistration("web", "/app/web", ())).entitled(NGINX) == ()


def test_an_explanation_names_the_selectors_that_do_not_hold() -> None:
    here = node(TILL, WEB)
    first, second = here.explain(Caller(9, 33, 33, unit="apache2.service"))
    assert (first.name, second.name) == ("web", "till") or len(first.failed) <= len(second.failed)
    web = first if first.name == "web" else second
    assert [(f.selector, f.found) for f in web.failed] == [
        ("systemd:unit:nginx.service", "apache2.service")
    ]
    assert not web.granted


@given(
    st.builds(
        Caller,
        st.just(9),
        st.sampled_from([7, 33]),
        st.just(0),
        app=st.sampled_from(["", "till"]),
        unit=st.sampled_from(["", "nginx.service"]),
    )
)
def test_a_caller_is_entitled_to_just_what_the_explanation_grants(caller: Caller) -> None:
    here = node(TILL, WEB, AUDIT)
    granted = {c.spiffe_id for c in here.explain(caller) if c.granted}
    assert set(here.entitled(caller)) == granted


def test_some_caller_gets_two_and_some_none() -> None:
    here = node(TILL, WEB, AUDIT)
    assert len(here.entitled(Caller(9, 7, 0, app="till"))) == 2
    assert here.entitled(Caller(9, 8, 0)) == ()
