"""Who may call what: the rules of an EgressPolicy, without a socket."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.identity.egress import (
    Allowed,
    Policy,
    Refused,
    Subject,
    Target,
    canonical_host,
    is_expected,
    judge_address,
)
from edgewise.protocol.egress import EgressRule, EgressRules

TILL = Subject("till", ("spiffe://eu.acme/app/shops/till",))
DAEMON = Subject("", ("spiffe://eu.acme/app/daemons/sync",))


def policy(*rules: EgressRule, **more: object) -> Policy:
    return Policy(EgressRules("out", allow=rules, **more))  # type: ignore[arg-type]


def ask(rules: Policy, host: str, subject: Subject = TILL, **more: object) -> Allowed | Refused:
    said: dict[str, object] = {"port": 443, "method": "GET", "path": "/", **more}
    return rules.decide(subject, Target(host, **said))  # type: ignore[arg-type]


def refused(verdict: Allowed | Refused) -> Refused:
    assert isinstance(verdict, Refused)
    assert verdict.detail
    assert verdict.hint
    return verdict


def allowed(verdict: Allowed | Refused) -> Allowed:
    assert isinstance(verdict, Allowed), verdict
    return verdict


def test_what_no_rule_names_is_refused_and_the_nearest_rule_is_named() -> None:
    rules = policy(EgressRule("a.example.net"), EgressRule("*.acme.net"))
    verdict = refused(ask(rules, "b.example.net"))
    assert (verdict.reason, verdict.rule) == ("host", "out: allow[0] (a.example.net)")
    assert refused(ask(rules, "acme.net")).rule == "out: allow[1] (*.acme.net)"


def test_a_star_is_everything_below_a_name_and_not_the_name_itself() -> None:
    rules = policy(EgressRule("*.acme.net"))
    assert allowed(ask(rules, "x.acme.net")).identity == TILL.identities[0]
    allowed(ask(rules, "y.x.acme.net"))
    for host in ("acme.net", "notacme.net", "acme.net.evil.org"):
        assert refused(ask(rules, host)).reason == "host"


def test_a_network_is_for_addresses_only() -> None:
    rules = policy(EgressRule("10.2.0.0/16"), EgressRule("fd00::/8"))
    allowed(ask(rules, "10.2.3.4"))
    allowed(ask(rules, "fd00::1"))
    assert refused(ask(rules, "10.3.0.1")).reason == "host"


@pytest.mark.parametrize(
    ("reason", "rule", "more"),
    [
        ("port", EgressRule("h", (8443,)), {}),
        ("method", EgressRule("h", methods=("GET",)), {"method": "DELETE"}),
        ("path", EgressRule("h", paths=("/v1",)), {"path": "/v10/x"}),
        ("caller", EgressRule("h", apps=("other",)), {}),
        ("caller", EgressRule("h", identities=("/app/shops/other",)), {}),
        ("tunnel", EgressRule("h"), {"method": "CONNECT", "path": ""}),
        ("tunnel", EgressRule("h", protocol="TCP"), {}),
        ("tunnel", EgressRule("h", mtls=False, paths=("/v1",)), {"method": "CONNECT", "path": ""}),
    ],
)
def test_each_field_of_a_rule_refuses_with_its_own_reason(
    reason: str, rule: EgressRule, more: dict[str, object]
) -> None:
    verdict = refused(ask(policy(rule), "h", **more))
    assert (verdict.reason, verdict.rule) == (reason, "out: allow[0] (h)")


def test_a_workload_without_identity_cannot_call_over_mtls_and_may_without() -> None:
    nobody = Subject("till")
    rules = policy(EgressRule("secure"), EgressRule("open", mtls=False))
    assert refused(ask(rules, "secure", nobody)).reason == "identity"
    assert allowed(ask(rules, "open", nobody)).identity == ""
    assert allowed(ask(rules, "open")).identity == "", "no certificate goes where none is wanted"


def test_the_first_rule_that_fits_decides() -> None:
    rules = policy(
        EgressRule("h", paths=("/open",), mtls=False),
        EgressRule("h", paths=("/",)),
        EgressRule("h"),
    )
    assert allowed(ask(rules, "h", path="/open/x")).name.startswith("out: allow[0]")
    assert allowed(ask(rules, "h", path="/x")).name.startswith("out: allow[1]")
    assert allowed(ask(rules, "h", path="/open/../x")).name.startswith("out: allow[2]")


def test_a_policy_concerns_its_apps_and_callers_that_its_rules_name() -> None:
    rules = policy(EgressRule("h", identities=("/app/daemons/sync",)), apps=("kiosk",))
    assert refused(ask(rules, "h")).reason == "caller"
    assert allowed(ask(rules, "h", DAEMON)).identity == DAEMON.identities[0]


def test_a_process_of_no_app_only_has_the_rules_that_name_its_identity() -> None:
    rules = policy(
        EgressRule("h", identities=("/app/daemons/sync",)), EgressRule("open", mtls=False)
    )
    assert allowed(ask(rules, "h", DAEMON)).identity == DAEMON.identities[0]
    assert refused(ask(rules, "open", DAEMON)).reason == "caller"
    assert refused(ask(rules, "open", Subject())).reason == "caller"
    allowed(ask(rules, "open"))


def test_without_a_policy_nothing_leaves() -> None:
    assert refused(ask(Policy(None), "h")).reason == "policy"


def test_otherwise_allow_lets_out_what_is_not_listed_and_holds_what_is() -> None:
    rules = policy(EgressRule("listed", methods=("GET",)), otherwise="Allow")
    assert not allowed(ask(rules, "anything.example")).rule.mtls
    assert refused(ask(rules, "listed", method="POST")).reason == "method"


def test_a_url_without_a_port_goes_to_443_where_mtls_is_meant_and_else_to_80() -> None:
    plain = EgressRule("o", (80,), mtls=False)
    rules = policy(EgressRule("h", (80,), mtls=False), EgressRule("h"), plain)
    assert allowed(ask(rules, "h", port=80, default_port=True)).port == 443
    assert allowed(ask(rules, "o", port=80, default_port=True)).port == 80


@pytest.mark.parametrize(
    "path",
    (
        "/v1/../admin /v1/%2e%2e/admin /v1/.%2E/admin /v1%2f..%2fadmin /v1\\..\\admin "
        "/v1//admin /v1/..;/admin /v1/%252e%252e/admin /v1/%00 /v1/. /v1/%5c..%5c"
    ).split(),
)
def test_a_path_that_servers_read_in_different_ways_fits_no_prefix(path: str) -> None:
    verdict = refused(ask(policy(EgressRule("h", paths=("/v1",))), "h", path=path))
    assert verdict.reason == "path"
    assert "different ways" in verdict.detail


def test_a_query_does_not_count_as_path() -> None:
    rules = policy(EgressRule("h", paths=("/v1/",)))
    allowed(ask(rules, "h", path="/v1/x?next=/../y"))
    assert refused(ask(rules, "h", path="/x?/v1/")).reason == "path"


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Example.NET.", "example.net"),
        ("10.0.0.1", "10.0.0.1"),
        ("[::1]", "::1"),
        ("[::ffff:127.0.0.1]", "127.0.0.1"),
        ("[64:ff9b::7f00:1]", "127.0.0.1"),
        ("127.1", None),
        ("0x7f.0.0.1", None),
        ("0x7f000001", None),
        ("2130706433", None),
        ("0177.0.0.1", None),
        ("[fe80::1%eth0]", None),
        ("a..b", None),
        ("a b", None),
        ("", None),
        ("münchen.example", None),
        ("user@host", None),
    ],
)
def test_a_host_has_one_way_to_be_written(text: str, host: str | None) -> None:
    assert canonical_host(text) == host


ADDRESSES = [
    ("127.0.0.1", "loopback"),
    ("127.9.9.9", "loopback"),
    ("::1", "loopback"),
    ("::ffff:127.0.0.1", "loopback"),
    ("64:ff9b::7f00:1", "loopback"),
    ("169.254.169.254", "metadata"),
    ("::ffff:169.254.169.254", "metadata"),
    ("fd00:ec2::254", "metadata"),
    ("100.100.100.200", "metadata"),
    ("fe80::1%eth0", "link-local"),
    ("0.0.0.0", "this host"),
    ("::", "this host"),
    ("224.0.0.1", "multicast"),
    ("255.255.255.255", "broadcast"),
]


@pytest.mark.parametrize(("address", "what"), ADDRESSES)
def test_a_name_that_leads_back_into_the_machine_is_refused(address: str, what: str) -> None:
    rules = policy(EgressRule("*.example"), EgressRule("0.0.0.0/0"), EgressRule("::/0"))
    for host in ("a.example", "10.0.0.1", "fd00::1"):
        rule = allowed(ask(rules, host))
        verdict = judge_address(address, rule, rules.networks_of(rule))
        assert verdict is not None
        assert (verdict.reason, verdict.rule) == ("address", rule.name)
        assert what in verdict.detail


def test_an_address_that_the_rule_names_is_reached() -> None:
    rules = policy(
        EgressRule("local.example", addresses=("127.0.0.0/8",)), EgressRule("169.254.169.254")
    )
    name, literal = allowed(ask(rules, "local.example")), allowed(ask(rules, "169.254.169.254"))
    assert judge_address("127.0.0.1", name, rules.networks_of(name)) is None
    assert judge_address("169.254.169.254", literal, rules.networks_of(literal)) is None
    verdict = judge_address("10.0.0.1", name, rules.networks_of(name))
    assert verdict is not None
    assert "not in 127.0.0.0/8" in verdict.detail


def test_addresses_out_in_the_world_and_in_private_networks_are_reached() -> None:
    rules = policy(EgressRule("a.example"))
    rule = allowed(ask(rules, "a.example"))
    for address in ("192.0.2.1", "10.0.0.1", "2001:db8::1", "fd12::1"):
        assert judge_address(address, rule, ()) is None


@given(st.ip_addresses())
def test_no_address_is_judged_with_an_exception(address: object) -> None:
    rules = policy(EgressRule("a.example"))
    rule = allowed(ask(rules, "a.example"))
    verdict = judge_address(str(address), rule, ())
    inside = ipaddress.ip_address(str(address)).is_loopback
    assert verdict is not None or not inside


def test_the_far_end_is_who_the_rule_expects_by_its_one_uri_name() -> None:
    rule = EgressRule("h", spiffe_ids=("spiffe://eu.acme/app/a", "spiffe://us.acme/app/*"))
    assert is_expected(rule, ["spiffe://eu.acme/app/a"])
    assert is_expected(rule, ["spiffe://us.acme/app/x/y"])
    for uris in (
        [],
        ["spiffe://eu.acme/app/ab"],
        ["spiffe://us.acme/apple"],
        ["spiffe://eu.acme/app/a", "spiffe://eu.acme/app/a"],
        ["https://eu.acme/app/a"],
        ["spiffe://us.acme/app/../node/x"],
    ):
        assert not is_expected(rule, uris)


@given(st.text(max_size=60), st.sampled_from(["GET", "CONNECT", "POST"]), st.text(max_size=60))
def test_any_host_and_path_end_in_a_verdict(host: str, method: str, path: str) -> None:
    rules = policy(EgressRule("*.a", paths=("/x",)), EgressRule("b"), EgressRule("10.0.0.0/8"))
    canonical = canonical_host(host)
    if canonical is not None:
        verdict = rules.decide(TILL, Target(canonical, 443, method, path))
        assert isinstance(verdict, Allowed | Refused)


@given(st.from_regex(r"(/(x|\.|%2e|%2f|%25|\.\.|y|;|\\)*){1,6}", fullmatch=True))
def test_a_path_that_fits_a_prefix_is_plainly_below_it(path: str) -> None:
    verdict = policy(EgressRule("h", paths=("/x/y",))).decide(TILL, Target("h", 443, "GET", path))
    if isinstance(verdict, Allowed):
        assert path == "/x/y" or path.startswith("/x/y/")
        assert "/../" not in f"{path}/"
        assert "%2e" not in path


def test_the_paths_above_are_sometimes_allowed() -> None:
    allowed(ask(policy(EgressRule("h", paths=("/x/y",))), "h", path="/x/y/x"))
