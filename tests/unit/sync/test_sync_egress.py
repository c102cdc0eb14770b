"""EgressPolicy documents become one part of the fleet's release."""

import msgspec
import pytest
import repo_of
from repo_of import doc, files

from edgewise.protocol.content import Part, Release
from edgewise.protocol.egress import EgressRule, EgressRules
from edgewise.sync.ports import CompileFailed

FLEET = (
    "selector: {matchLabels: {type: pos}}\napps: [{ref: {name: hello}}]\n"
    "egressPolicyRef: {name: out}\n"
)
POLICY = """
apps: [{name: hello}]
allow:
  - {host: "*.acme.net", ports: [443, 8883]}
  - host: stock.acme.net
    spiffeIDs: ["spiffe://eu.acme/app/shops/stock", "spiffe://us.acme/*"]
    methods: [GET]
    paths: [/v1]
  - {host: 10.2.0.0/16, mtls: false}
enforce: true
"""


def repo(policy: str) -> dict[str, str]:
    return files(
        fleets_pos=doc("Fleet", "pos", FLEET), policies_out=doc("EgressPolicy", "out", policy)
    )


def mistake(policy: str) -> str:
    with pytest.raises(CompileFailed) as failed:
        repo_of.compiled(repo(policy))
    return " ".join(f"{p} {p.hint}" for p in failed.value.problems)


def test_a_policy_is_a_part_of_the_release_that_every_member_gets() -> None:
    fleet = repo_of.compiled(repo(POLICY)).fleets["pos"]
    release = msgspec.json.decode(fleet.documents[fleet.release], type=Release)
    chosen = [
        d for k, _, d in release.selection("n-1", fleet.members["n-1"].labels) if k == "egress"
    ]
    part = msgspec.json.decode(fleet.documents[chosen[0]], type=Part)
    assert isinstance(part, EgressRules)
    assert (part.name, part.apps, part.enforce) == ("out", ("hello",), True)
    assert part.allow[0] == EgressRule("*.acme.net", (443, 8883))
    assert part.allow[1].spiffe_ids[1] == "spiffe://us.acme/*"
    assert not part.allow[2].mtls


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("allow: [{host: Stock.acme.net}]", "spec.allow[0]: host"),
        ("allow: [{host: 10.2.0.0/33}]", "spec.allow[0]: host"),
        ("allow: [{host: 10.2.0.1/16}]", "host bits"),
        ("allow: [{host: 'https://a.b'}]", "spec.allow[0]: host"),
        ("allow: [{host: a.b, spiffeIDs: [eu.acme/app]}]", "spiffeIDs"),
        ("allow: [{host: a.b, mtls: false, spiffeIDs: ['spiffe://a/b']}]", "without mtls"),
        ("allow: [{host: a.b, protocol: TCP, methods: [GET]}]", "a tunnel has neither"),
        ("allow: [{host: a.b, trust: organisation!}]", "trust is Organisation"),
        ("allow: [{host: a.b, addresses: [localhost]}]", "addresses[0]"),
        ("allow: [{host: a.b, methods: [get]}]", "GET or POST"),
        ("allow: [{host: a.b, paths: [v1]}]", "/v1/stock"),
        ("apps: [{name: helo}]", "hello"),
        ("apps: [{name: hello}]\nallow: [{host: a.b, apps: [{name: till}]}]", "does not concern"),
    ],
)
def test_a_mistake_in_a_policy_is_shown_where_it_stands(policy: str, said: str) -> None:
    text = mistake(policy)
    assert "policies/out.yaml" in text
    assert said in text
