"""An app's ingress in the fleet repo: what compiles, what is refused and where."""

from __future__ import annotations

import msgspec
import pytest
from repo_of import app, compiled, doc, files, mistakes
from test_sync_compile import part_for, pos

from edgewise.protocol.content import IngressPort, ProcessApp

GOOD = "identity: {}\ningress: [{port: 8443, to: 8080, allow: [/app/pos/till]}]"


def test_an_ingress_compiles_into_the_part_of_its_app() -> None:
    part = part_for(pos(compiled(files(apps_hello=app(more=GOOD)))), "n-1", "hello")
    assert isinstance(part, ProcessApp)
    assert part.ingress == (IngressPort(8443, 8080, ("/app/pos/till",)),)


def test_an_app_without_an_ingress_keeps_the_digest_that_it_had() -> None:
    part = part_for(pos(compiled(files())), "n-1", "hello")
    assert part is not None
    assert b"ingress" not in msgspec.json.encode(part)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("ingress: [{port: 8443, to: 8080, allow: [/app/pos/till]}]", "needs an identity"),
        (GOOD.replace("/app/pos/till", "/node/n-1"), "/app/shops/till"),
        (GOOD.replace("/app/pos/till", "'*'"), "/app/shops/till"),
        (GOOD.replace("[/app/pos/till]", "[]"), "allow"),
        (GOOD.replace("8443", "84430"), "port"),
        (GOOD.replace("}]", "}, {port: 8443, to: 8081, allow: [/app/x/y]}]"), "occurs twice"),
    ],
)
def test_an_ingress_that_cannot_be_is_refused_where_it_stands(more: str, says: str) -> None:
    (found,) = mistakes(files(apps_hello=app(more=more)))
    assert says in found
    assert found.startswith("apps/hello.yaml:")


def test_two_apps_of_a_fleet_cannot_have_one_port() -> None:
    fleet = (
        "selector: {matchLabels: {type: pos}}\napps: [{ref: {name: hello}}, {ref: {name: other}}]\n"
    )
    repo = files(
        apps_hello=app(more=GOOD),
        apps_other=app("other", more=GOOD).replace("ref: other", "ref: hello"),
        fleets_pos=doc("Fleet", "pos", fleet),
    )
    (found,) = mistakes(repo)
    assert "ingress port 8443 of 'other' is that of 'hello'" in found
