"""From documents to releases: the same content gives the same digest, everywhere."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import repo_of
from hypothesis import given, settings
from hypothesis import strategies as st
from repo_of import ARTIFACTS, app, compiled, doc, files

from edgewise.model.quantity import Share
from edgewise.protocol.codec import encode
from edgewise.protocol.content import (
    DeliverySettings,
    NotActedOn,
    Part,
    ProcessApp,
    Release,
    SealedSecret,
)
from edgewise.sync.matching import Candidate, assign_stages
from edgewise.sync.parse import ParseCache
from edgewise.sync.policy import SAFE_DEFAULT
from edgewise.sync.ports import Compiled, CompiledFleet, JoinedNode

FLEET = (
    "selector: {matchLabels: {type: pos}}\n"
    "apps: [{ref: {name: hello}}]\nconfigs: [{ref: {name: site}}]\n"
)
AGE = "|\n    -----BEGIN AGE ENCRYPTED FILE-----\n    abcd\n    -----END AGE ENCRYPTED FILE-----\n"


def pos(result: Compiled) -> CompiledFleet:
    return result.fleets["pos"]


def release_of(fleet: CompiledFleet) -> Release:
    return msgspec.json.decode(fleet.documents[fleet.release], type=Release)


def part_for(fleet: CompiledFleet, node: str, name: str) -> Part | None:
    """The part that a node gets, found the way the node finds it."""
    for _, part, digest in release_of(fleet).selection(node, fleet.members[node].labels):
        if part == name:
            return msgspec.json.decode(fleet.documents[digest], type=Part)
    return None


def test_parts_vary_only_by_the_labels_that_they_used() -> None:
    fleet = pos(compiled(files()))
    app_ref, config_ref = release_of(fleet).parts
    assert (app_ref.by, list(app_ref.variants), app_ref.nodes) == ((), [""], {})
    assert (config_ref.by, sorted(config_ref.variants)) == (("region",), ["east", "west"])


def test_a_template_that_uses_the_name_is_compiled_for_every_node() -> None:
    fleet = pos(compiled(files(apps_hello=app(more='env: {ME: "{{ node.name }}"}'))))
    ref = release_of(fleet).parts[0]
    assert sorted(ref.nodes) == ["n-1", "n-2", "n-3"]
    assert ref.variants == {}
    part = part_for(fleet, "n-2", "hello")
    assert isinstance(part, ProcessApp)
    assert part.env == {"ME": "n-2"}


def test_overrides_touch_only_their_own_node_and_only_where_they_are_used() -> None:
    repo = files(
        nodes_one=doc("Node", "n-9", 'overrides: {vars: {port: "9"}}').replace(
            "{name: n-9}", "{name: n-9, labels: {type: pos, region: east}}"
        ),
        apps_hello=app(more="env: {PORT: \"{{ vars.port | default('1') }}\"}"),
    )
    fleet = pos(compiled(repo))
    app_ref, config_ref = release_of(fleet).parts
    assert list(app_ref.nodes) == ["n-9"]
    assert config_ref.nodes == {}
    part = part_for(fleet, "n-9", "hello")
    assert isinstance(part, ProcessApp)
    assert part.env == {"PORT": "9"}


def test_overlays_are_merged_in_order_and_their_labels_count_as_used() -> None:
    overlays = (
        "overlays:\n"
        "  - {name: west, selector: {matchLabels: {region: west}}, vars: {tz: PST},\n"
        "     apps: [{name: hello, resources: {memory: 64Mi}, env: {B: west}}]}\n"
        "  - {name: canary, selector: {matchLabels: {ring: stable}}, vars: {tz: UTC}}\n"
    )
    more = "env: {A: \"{{ vars.tz | default('none') }}\"}\nresources: {memory: 32Mi, cpu: 250m}"
    fleet = pos(compiled(files(fleets_pos=doc("Fleet", "pos", FLEET + overlays),
                               apps_hello=app(more=more))))  # fmt: skip
    assert release_of(fleet).parts[0].by == ("region", "ring")
    first, last = part_for(fleet, "n-1", "hello"), part_for(fleet, "n-3", "hello")
    assert isinstance(first, ProcessApp)
    assert isinstance(last, ProcessApp)
    assert (first.env, first.memory_bytes) == ({"A": "none"}, 32 << 20)
    assert (last.env, last.memory_bytes) == ({"A": "UTC", "B": "west"}, 64 << 20)
    assert last.cpu_milli == 250


def test_a_part_with_a_selector_is_left_off_the_other_nodes() -> None:
    placed = FLEET.replace(
        "{ref: {name: hello}}", "{ref: {name: hello}, selector: {matchLabels: {region: west}}}"
    )
    fleet = pos(compiled(files(fleets_pos=doc("Fleet", "pos", placed))))
    assert part_for(fleet, "n-1", "hello") is None
    assert isinstance(part_for(fleet, "n-3", "hello"), ProcessApp)
    assert release_of(fleet).parts[0].variants["east"] == ""


def test_every_field_of_a_process_app_reaches_the_part() -> None:
    more = (
        "env: {A: b}\nuser: pos\nrestart: OnFailure\nstop: {signal: SIGINT, timeout: 3s}\n"
        "resources: {memory: 1Mi, cpu: 0.5}\nhealthPolicy: {minReady: 1m}\n"
        "hooks: {preUpdate: [{run: bin/save --all, timeout: 5s, onFailure: Ignore}],\n"
        "        postUpdate: [{run: [bin/smoke]}]}\n"
        "probes:\n"
        "  startup: {exec: {command: [bin/ok]}, failureThreshold: 30}\n"
        "  liveness: {httpGet: {port: 80, path: /h}, periodSeconds: 0.5, timeoutSeconds: 2}\n"
        "  readiness: {tcpSocket: {port: 81}, initialDelaySeconds: 4, successThreshold: 2}\n"
    )
    part = part_for(pos(compiled(files(apps_hello=app(more=more)))), "n-1", "hello")
    assert json.loads(msgspec.json.encode(part)) == {
        "type": "process",
        "name": "hello",
        "trees": {"linux/amd64": {"sha256": f"{0:064x}", "size": 1000, "files": 3}},
        "command": ["bin/hello"],
        "env": {"A": "b"},
        "user": "pos",
        "memory_bytes": 1 << 20,
        "cpu_milli": 500,
        "probes": {
            "startup": _probe({"type": "exec", "command": ["bin/ok"]}, failure_threshold=30),
            "liveness": _probe(
                {"type": "http", "port": 80, "path": "/h", "host": "127.0.0.1"},
                period_s=0.5,
                timeout_s=2.0,
            ),
            "readiness": _probe(
                {"type": "tcp", "port": 81, "host": "127.0.0.1"},
                initial_delay_s=4.0,
                success_threshold=2,
            ),
        },
        "min_ready_s": 60.0,
        "stop_signal": "SIGINT",
        "stop_timeout_s": 3.0,
        "restart": "OnFailure",
        "depends_on": [],
        "pre_update": [
            {"command": ["bin/save", "--all"], "timeout_s": 5.0, "on_failure": "Ignore"}
        ],
        "post_update": [{"command": ["bin/smoke"], "timeout_s": 60.0, "on_failure": "Rollback"}],
    }


def _probe(check: dict[str, object], **changed: float) -> dict[str, object]:
    plain = {
        "period_s": 10.0,
        "timeout_s": 1.0,
        "initial_delay_s": 0.0,
        "failure_threshold": 3,
        "success_threshold": 1,
    }
    return {"check": check, **plain, **changed}


def test_nothing_waits_for_an_app_that_the_node_does_not_get() -> None:
    other = doc("App", "box", "type: container\nimage: x")
    fleet = FLEET.replace("[{ref: {name: hello}}]", "[{ref: {name: hello}}, {ref: {name: box}}]")
    repo = files(
        apps_box=other,
        fleets_pos=doc("Fleet", "pos", fleet),
        apps_hello=app(more="dependsOn: [{name: box}]"),
    )
    result = compiled(repo)
    part = part_for(pos(result), "n-1", "hello")
    assert isinstance(part, ProcessApp)
    assert part.depends_on == ()
    assert isinstance(part_for(pos(result), "n-1", "App/box"), NotActedOn)
    assert result.not_acted_on == ("apps/box.yaml:1 App/box",)


def test_a_secret_is_named_by_its_ciphertext_and_kept_for_resealing() -> None:
    secret = doc("Secret", "pw", f"encryption: age\nmountPath: /run/pw\ndata:\n  key: {AGE}")
    repo = files(
        secrets_pw=secret, fleets_pos=doc("Fleet", "pos", FLEET + "secrets: [{ref: {name: pw}}]")
    )
    result = compiled(repo)
    part = part_for(pos(result), "n-1", "pw")
    assert isinstance(part, SealedSecret)
    assert (part.keys, part.mode) == (("key",), 0o400)
    kept = json.loads(result.secrets[part.source])
    assert kept["data"]["key"].startswith("-----BEGIN AGE")


def test_windows_and_drift_rules_reach_the_release() -> None:
    fleet = FLEET + (
        "driftPolicy: {mode: Report, interval: 1m}\n"
        'updateWindow: {apply: {at: "0 3 * * *", duration: 2h, timeZone: Node}}'
    )
    settings_ = release_of(pos(compiled(files(fleets_pos=doc("Fleet", "pos", fleet))))).settings
    assert (settings_.drift, settings_.drift_interval_s) == ("Report", 60.0)
    assert settings_.apply_window is not None
    assert settings_.apply_window.duration_s == 7200.0


def test_how_bytes_come_reaches_the_release_and_is_absent_where_nothing_is_said() -> None:
    fleet = FLEET + "delivery: {maxRate: 250k, meteredLinks: DeltasOnly, spread: 10m}"
    said = release_of(pos(compiled(files(fleets_pos=doc("Fleet", "pos", fleet))))).settings
    assert said.travel == DeliverySettings(250_000, "DeltasOnly", 600.0)
    plain = release_of(pos(compiled(files(fleets_pos=doc("Fleet", "pos", FLEET))))).settings
    assert "delivery" not in encode(plain).decode(), "such releases keep the digest they had"
    assert plain.travel == DeliverySettings()


# Who is where


def test_labels_in_the_repo_win_over_those_that_a_node_joined_with() -> None:
    result = compiled(
        files(),
        JoinedNode("n-1", {"region": "west", "rack": "r1"}),
        JoinedNode("new", {"type": "pos", "region": "north"}),
        JoinedNode("lost", {"type": "other"}),
    )
    assert pos(result).members["n-1"].labels["region"] == "east"
    assert pos(result).members["n-1"].labels["rack"] == "r1"
    assert "new" in pos(result).members
    assert result.unplaced == ("lost",)


def test_in_builder_trust_joined_nodes_change_no_digest_but_join_in_where_they_fit() -> None:
    repo = files()
    repo["edgewise.yaml"] = doc("Workspace", "acme", "trust: builder")
    alone = compiled(repo)
    joined = (
        JoinedNode("new", {"type": "pos", "region": "east"}),
        JoinedNode("odd", {"type": "pos", "region": "north"}),
        JoinedNode("n-1", {"extra": "x"}),
    )
    together = compiled(repo, *joined)
    assert pos(together).release == pos(alone).release
    assert "new" in pos(together).members
    assert "new" in pos(together).stages
    assert together.unplaced == ("odd",)
    assert "extra" not in pos(together).members["n-1"].labels


def test_limit_takes_the_same_nodes_every_time_and_leaves_the_others_to_later_stages() -> None:
    policy = doc(
        "RolloutPolicy", "p", "stages: [{name: one, limit: 1}, {name: half, limit: 50%}, {name: z}]"
    )
    repo = files(
        policies_p=policy,
        fleets_pos=doc("Fleet", "pos", FLEET + "rolloutPolicyRef: {name: p}"),
    )
    first = pos(compiled(repo)).stages
    assert sorted(first.values()) == ["half", "one", "z"]
    more = compiled(repo, JoinedNode("n-4", {"type": "pos", "region": "east"}))
    kept = [n for n, stage in first.items() if stage == "one"]
    assert [n for n, s in pos(more).stages.items() if s == "one"] in (kept, ["n-4"])


@given(st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=40))
def test_every_member_has_exactly_one_stage_and_held_nodes_take_no_place(names: set[str]) -> None:
    nodes = [Candidate(n, {}, held=n < "c") for n in sorted(names)]
    stages, left = assign_stages("f", SAFE_DEFAULT.stages, nodes)
    assert set(stages) == names
    assert left == ()
    first = [n for n, stage in stages.items() if stage == "first"]
    assert len(first) == Share(percent=10).of(len(names))
    unheld = sum(not n.held for n in nodes)
    assert sum(n < "c" for n in first) <= max(0, len(first) - unheld)


def test_a_fleet_without_a_policy_gets_the_staged_default() -> None:
    fleet = pos(compiled(files()))
    assert fleet.rules == SAFE_DEFAULT
    assert sorted(fleet.stages.values()) == ["first", "rest", "rest"]


def test_held_nodes_are_members_that_say_so() -> None:
    nodes = doc(
        "NodeSet", "all", "nodes: [{name: n-1, labels: {type: pos, region: e}, hold: true}]"
    )
    assert pos(compiled(files(nodes_all=nodes))).members["n-1"].held


def test_a_commit_that_takes_many_nodes_out_of_their_fleet_is_held() -> None:
    before = compiled(files())
    fewer = files(
        nodes_all=doc("NodeSet", "all", "nodes: [{name: n-1, labels: {type: pos, region: e}}]")
    )
    assert compiled(fewer).held == ""
    after = compile_as(fewer, before, "1")
    assert after.held == (
        "2 of 3 nodes would lose their fleet (n-2, n-3), more than pruneProtection.maxDeleted 10%"
    )
    assert compile_as(fewer, before, "0").held == "", "a forgotten node is not the commit's doing"
    fewer["edgewise.yaml"] = doc("Workspace", "acme", "pruneProtection: {maxDeleted: 2}")
    assert compile_as(fewer, before, "1").held == ""
    fewer["edgewise.yaml"] = doc("Workspace", "acme", "prune: false")
    assert compile_as(fewer, before, "1").held.endswith("more than prune: false")


def compile_as(repo: dict[str, str], before: Compiled, digit: str) -> Compiled:
    from edgewise.sync.compile import compile_workspace
    from edgewise.sync.ports import Inputs
    from edgewise.sync.validate import snapshot_of

    snapshot = snapshot_of(repo, digit * 40)
    return compile_workspace(snapshot, Inputs(ARTIFACTS), ParseCache(), before)


# Determinism


def digests(result: Compiled) -> dict[str, object]:
    return {
        name: (fleet.release, sorted((n, m.selection) for n, m in fleet.members.items()))
        for name, fleet in result.fleets.items()
    }


def test_a_warm_compile_is_the_same_as_a_cold_one_after_any_change() -> None:
    cache = ParseCache()
    changes = (
        files(),
        files(configs_site=doc("Config", "site", "files: [{path: /etc/x, content: new}]")),
        files(apps_hello=app(more="env: {A: b}")),
        files(
            nodes_more=doc(
                "NodeSet", "more", "nodes: [{name: n-7, labels: {type: pos, region: q}}]"
            )
        ),
        files(fleets_pos=doc("Fleet", "pos", FLEET + "vars: {a: b}\nsuspend: true")),
        files(),
    )
    for repo in changes:
        assert digests(compiled(repo, cache=cache)) == digests(compiled(repo))
    for joined in ((JoinedNode("n-1", {"a": "b"}),), ()):
        warm = compiled(files(), *joined, cache=cache)
        assert warm == compiled(files(), *joined)


def test_a_rebuilt_artifact_changes_the_release_although_no_document_changed() -> None:
    cache = ParseCache()
    first = compiled(files(), cache=cache)
    other = {("hello", "1.0.0"): repo_of.artifact("hello", "1.0.0", "linux/arm64", "linux/amd64")}
    second = compiled(files(), cache=cache, artifacts=other)
    assert pos(first).release != pos(second).release


def test_the_order_of_files_keys_and_joined_nodes_does_not_matter() -> None:
    joined = [JoinedNode(f"j-{i}", {"type": "pos", "region": "east"}) for i in range(5)]
    expected = digests(compiled(files(), *joined))
    shuffled = dict(reversed(files().items()))
    shuffled["apps/hello.yaml"] = (
        "spec:\n  command: [bin/hello]\n  artifact: {version: 1.0.0, ref: hello}\n  type: process\n"
        "metadata: {name: hello}\nkind: App\napiVersion: edgewise.dev/v1\n"
    )
    assert digests(compiled(shuffled, *reversed(joined))) == expected


SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import repo_of, test_sync_compile
from edgewise.sync.validate import check_files
print(json.dumps(test_sync_compile.digests(check_files(repo_of.example("retail")).compiled)))
"""


@pytest.mark.parametrize("seed", ["0", "1", "4711"])
def test_another_process_with_another_hash_seed_gives_the_same_digests(seed: str) -> None:
    from edgewise.sync.validate import check_files

    here = check_files(repo_of.example("retail")).compiled
    assert here is not None
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent)],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == json.loads(json.dumps(digests(here)))


def test_the_example_keeps_the_digest_that_it_had_when_this_was_written() -> None:
    """A change of this digest means that every fleet in the field gets a new release."""
    from edgewise.sync.validate import check_files

    hello = check_files(repo_of.example("hello")).compiled
    assert hello is not None
    assert hello.fleets["kiosks"].release == HELLO


HELLO = "db332082c73dea3ac424516e29439fc262b5408fb839cf13f547df44238fa5d7"

# Memoised rendering

REGIONS, RINGS = ("east", "west", None), ("canary", "stable", None)
PIECES = (
    "{{ node.labels.region | default('-') }}",
    "{{ node.labels.ring | default('-') }}",
    "{% if node.labels.region | default('') == 'west' %}"
    "{{ node.labels.ring | default('x') }}{% endif %}",
    "{% if node.labels.ring | default('') == 'canary' %}{{ node.name }}{% endif %}",
    "{{ vars.base }}",
    "{{ vars.laid | default('no') }}",
    "{{ vars.over | default('no') }}",
    "plain",
)


def repo_with(
    pieces: tuple[str, ...], rows: list[tuple[str | None, str | None, bool]]
) -> dict[str, str]:
    nodes = []
    for index, (region, ring, override) in enumerate(rows):
        labels = {"type": "pos", "region": region, "ring": ring}
        text = ", ".join(f"{k}: {v}" for k, v in labels.items() if v)
        spec = "overrides: {vars: {over: mine}}" if override else "hold: false"
        nodes.append(
            doc("Node", f"n-{index}", spec).replace(
                f"{{name: n-{index}}}", f"{{name: n-{index}, labels: {{{text}}}}}"
            )
        )
    content = "".join(f"      {piece}\n" for piece in pieces)
    return files(
        nodes_all="---\n".join(nodes),
        configs_site=doc("Config", "site", f"files:\n  - path: /etc/x\n    content: |\n{content}"),
        fleets_pos=doc(
            "Fleet",
            "pos",
            FLEET + "vars: {base: \"{{ node.labels.ring | default('b') }}\"}\n"
            "overlays:\n"
            "  - name: o\n    selector: {matchLabels: {region: west}}\n"
            "    vars: {laid: west, over: west}",
        ),
    )


ROWS = st.tuples(st.sampled_from(REGIONS), st.sampled_from(RINGS), st.booleans())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map(tuple),
    st.lists(ROWS, min_size=1, max_size=8),
)
def test_a_memoised_render_equals_a_render_of_each_node_alone(
    pieces: tuple[str, ...], rows: list[tuple[str | None, str | None, bool]]
) -> None:
    repo = repo_with(pieces, rows)
    together = pos(compiled(repo))
    for index in range(len(rows)):
        name = f"n-{index}"
        only = dict(repo)
        only["nodes/all.yaml"] = repo["nodes/all.yaml"].split("---\n")[index]
        alone = pos(compiled(only))
        assert part_for(together, name, "site") == part_for(alone, name, "site")


def test_the_memoised_render_meets_variants_names_and_overrides() -> None:
    rows = [*itertools.product(REGIONS, RINGS, (False,)), ("west", "stable", True)]
    ref = release_of(pos(compiled(repo_with(PIECES, rows)))).parts[1]
    assert ref.by == ("region", "ring")
    assert len(ref.variants) == 6, "each pair that is not canary"
    assert len(ref.nodes) == 4, "three canaries by name, one with an override"
