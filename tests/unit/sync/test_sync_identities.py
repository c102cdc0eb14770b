"""Workload identities in the fleet repo: what compiles, what is refused and where."""

import msgspec
import pytest
from repo_of import app, compiled, doc, files, mistakes
from test_sync_compile import part_for, pos

from edgewise.model.selectors import KINDS, UnknownKind, WorkloadSelector
from edgewise.protocol.content import Part, ProcessApp, WorkloadRegistration

FLEET = (
    "selector: {matchLabels: {type: pos}}\napps: [{ref: {name: hello}}]\n"
    "configs: [{ref: {name: site}}]\n"
    "identities: [{ref: {name: web}, selector: {matchLabels: {region: east}}}]\n"
)
WEB = (
    "spiffeID: /app/shops/web\n"
    "selectors: ['systemd:unit:nginx.service', 'unix:user:www-data']\n"
    "ttl: 30m\ndnsNames: [web.shops.internal]\nhint: web\nfederatesWith: [partner.example]\n"
)


def repo(web: str = WEB, fleet: str = FLEET, **more: str | None) -> dict[str, str]:
    return files(
        fleets_pos=doc("Fleet", "pos", fleet),
        identities_web=doc("WorkloadIdentity", "web", web),
        **more,
    )


def test_an_app_that_asks_for_an_identity_gets_the_path_of_its_fleet_and_name() -> None:
    part = part_for(pos(compiled(files(apps_hello=app(more="identity: {}")))), "n-1", "hello")
    assert isinstance(part, ProcessApp)
    assert part.identity == WorkloadRegistration("hello", "/app/pos/hello", ("edgewise:app:hello",))


def test_an_app_may_name_its_own_path_below_app() -> None:
    more = "identity: {spiffeID: /app/till, hint: till, dnsNames: [till.internal]}"
    part = part_for(pos(compiled(files(apps_hello=app(more=more)))), "n-1", "hello")
    assert isinstance(part, ProcessApp)
    assert isinstance(part.identity, WorkloadRegistration)
    assert (part.identity.path, part.identity.hint) == ("/app/till", "till")
    assert part.identity.dns == ("till.internal",)


def test_a_workload_identity_is_a_part_for_the_nodes_that_the_fleet_names() -> None:
    fleet = pos(compiled(repo()))
    assert part_for(fleet, "n-1", "web") == WorkloadRegistration(
        name="web",
        path="/app/shops/web",
        selectors=("systemd:unit:nginx.service", "unix:user:www-data"),
        ttl_s=1800.0,
        dns=("web.shops.internal",),
        hint="web",
        federates_with=("partner.example",),
    )
    assert part_for(fleet, "n-3", "web") is None


def test_nothing_about_identities_is_left_for_later() -> None:
    result = compiled(repo(apps_hello=app(more="identity: {}")))
    assert not [line for line in result.not_acted_on if "dentity" in line]


def test_the_order_of_selectors_changes_no_digest() -> None:
    turned = WEB.replace(
        "['systemd:unit:nginx.service', 'unix:user:www-data']",
        "['unix:user:www-data', 'systemd:unit:nginx.service']",
    )
    assert pos(compiled(repo())).release == pos(compiled(repo(turned))).release


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [
        (("/app/shops/web", "/node/n-1"), "identities/web.yaml:5", "spec.spiffeID"),
        (("/app/shops/web", "/app/../node"), "identities/web.yaml:5", "spec.spiffeID"),
        (("/app/shops/web", "/app"), "identities/web.yaml:5", "spec.spiffeID"),
        (("systemd:unit:nginx", "systemd:unti:nginx"), "identities/web.yaml:6", "'systemd:unit'?"),
        (("unix:user:www-data", "unix:uid:www"), "identities/web.yaml:6", "unix:uid:1000"),
        (("unix:user:www-data", "nonsense"), "identities/web.yaml:6", "of no kind"),
        (("unix:user:www-data", "edgewise:app:helo"), "identities/web.yaml:6", "'hello'?"),
        (("ttl: 30m", "ttl: 2d"), "identities/web.yaml:7", "between 1m and 1h"),
        (("web.shops.internal", "Not_A_Name"), "identities/web.yaml:8", "spec.dnsNames[0]"),
    ],
)
def test_a_mistake_is_found_where_it_stands(change: tuple[str, str], line: str, said: str) -> None:
    found = mistakes(repo(WEB.replace(*change)))
    assert any(p.startswith(line) and said in p for p in found), found


def test_a_selector_that_contradicts_another_can_never_hold() -> None:
    found = mistakes(repo(WEB.replace("systemd:unit:nginx.service", "unix:user:root")))
    assert "contradicts" in found[0]


def test_a_program_alone_is_a_warning_because_anybody_can_start_it() -> None:
    alone = WEB.replace(
        "['systemd:unit:nginx.service', 'unix:user:www-data']", "['unix:path:/usr/sbin/nginx']"
    )
    (warning,) = compiled(repo(alone)).warnings
    assert "whoever runs it" in str(warning)
    assert compiled(repo()).warnings == ()


def test_two_documents_cannot_share_a_spiffe_id() -> None:
    more = "identity: {spiffeID: /app/shops/web}"
    (found,) = mistakes(repo(apps_hello=app(more=more)))
    assert found.startswith("identities/web.yaml:5")
    assert "apps/hello.yaml" in found


def test_a_workload_identity_cannot_take_the_path_that_an_app_has_by_default() -> None:
    web = WEB.replace("/app/shops/web", "/app/pos/hello")
    (found,) = mistakes(repo(web, apps_hello=app(more="identity: {}")))
    assert "'hello'" in found
    assert found.startswith("fleets/pos.yaml")


def test_a_fleet_cannot_name_an_identity_that_is_not_described() -> None:
    fleet = FLEET.replace("{name: web}", "{name: wep}")
    (found,) = mistakes(repo(fleet=fleet))
    assert "did you mean 'web'?" in found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_selector_has_an_example_that_parses(kind: str) -> None:
    fact, _, like = KINDS[kind]
    text = like.replace(" and 64 hex digits", "ab" * 32)
    assert WorkloadSelector.parse(text).fact == fact


def test_a_selector_without_a_value_is_of_no_kind() -> None:
    with pytest.raises(UnknownKind):
        WorkloadSelector.parse("unix:uid")
    with pytest.raises(ValueError, match="cannot be"):
        WorkloadSelector.parse("unix:path:relative")


def test_a_part_with_an_identity_reads_back_as_it_was_written() -> None:
    part: Part = WorkloadRegistration("web", "/app/web", ("unix:uid:0",))
    assert msgspec.json.decode(msgspec.json.encode(part), type=Part) == part
