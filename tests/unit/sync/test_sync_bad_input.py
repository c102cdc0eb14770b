"""What people and attackers write into a fleet repo, and the line they get back."""

import time
import tracemalloc

import pytest
import repo_of
from hypothesis import given
from hypothesis import strategies as st
from repo_of import ARTIFACTS, app, compiled, doc, files, mistakes

from edgewise.sync import yaml_text
from edgewise.sync.parse import parse_file
from edgewise.sync.ports import JoinedNode


def only(repo: dict[str, str], *joined: JoinedNode) -> str:
    """The one problem of a repo."""
    (problem,) = mistakes(repo, *joined)
    return problem


def bounded(data: bytes) -> yaml_text.Text:
    """Read hostile bytes; fail when that takes long or much memory."""
    tracemalloc.start()
    began = time.process_time()
    text = yaml_text.read(data)
    took, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 10
    assert peak < 200 << 20
    return text


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


def test_a_yaml_bomb_of_anchors_is_refused_at_its_first_anchor() -> None:
    (flaw,) = bounded(BOMB.encode()).flaws
    assert (flaw.line, flaw.column) == (1, 4)
    assert "anchors and aliases are not accepted (&a)" in flaw.message


def test_an_alias_to_nowhere_and_a_merge_key_are_refused() -> None:
    assert "not accepted" in yaml_text.read(b"a: *b\n").flaws[0].message
    assert "merge keys" in yaml_text.read(b"<<: {a: 1}\n").flaws[0].message


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"x: " + b"y" * (10 << 20), "at most 1,048,576 are read"),
        (b"[" * 500_000, "inside each other"),
        (b"{a: " * 200_000, "inside each other"),
        (b"- " * 300_000, "inside each other"),
        (b"? " * 300_000, "cannot be a key"),
        (b"- a\n" * 262_000, ""),
        (b"[" + b"a," * 400_000 + b"]", "more than 300,000 values"),
        (b"---\na\n" * 2000, "more than 1000 documents"),
        (b"{a: b, " * 1, "not YAML"),
        (b"a: !!python/object/apply:os.system [id]\n", "tags are not accepted"),
        (b"a: b\nc: \xff\n", "byte 0xff is not UTF-8"),
        (b"a: \x00b\n", "not YAML"),
        (b"a: 1\na: 2\n", "key 'a' occurs twice"),
        (b"{[1]: 2}\n", "cannot be a key"),
        (b"a:\n\t- b\n", "not YAML"),
    ],
    ids=lambda value: value[:12].decode("latin1") if isinstance(value, bytes) else None,
)
def test_no_file_costs_much_memory_or_time(data: bytes, says: str) -> None:
    flaws = bounded(data).flaws
    assert says in (flaws[0].message if flaws else "")


@given(st.binary(max_size=400) | st.text(max_size=400).map(str.encode))
def test_any_bytes_end_in_documents_or_flaws_and_never_in_a_traceback(data: bytes) -> None:
    text = yaml_text.read(data)
    parse_file(data)
    if not text.flaws:
        yaml_text.locate(data)


def test_plain_scalars_follow_yaml_1_2_so_that_norway_is_a_text() -> None:
    text = yaml_text.read(b"[no, yes, on, 0644, 1.2.0, 1.5, true, ~, '1', 12:30:45]")
    assert text.documents[0] == [
        "no",
        "yes",
        "on",
        644,
        "1.2.0",
        1.5,
        True,
        None,
        "1",
        "12:30:45",
    ]


def test_an_unknown_kind_is_named_with_the_one_that_was_meant() -> None:
    problem = only(files(apps_more=doc("Aap", "x", "a: 1")))
    assert problem == "apps/more.yaml:2:7: unknown kind 'Aap' (did you mean 'App'?)"


def test_an_unknown_field_is_named_at_its_key_with_the_one_that_was_meant() -> None:
    problem = only(files(apps_hello=app(more="helthPolicy: {minReady: 5s}")))
    assert problem == (
        "apps/hello.yaml:8:3: unknown field 'helthPolicy' in spec (did you mean 'healthPolicy'?)"
    )


def test_another_api_version_says_which_is_accepted() -> None:
    text = app().replace("edgewise.dev/v1", "edgewise.dev/v2")
    assert "apiVersion is 'edgewise.dev/v2' (it takes edgewise.dev/v1)" in only(
        files(apps_hello=text)
    )


def test_all_mistakes_of_a_repo_are_reported_in_file_order() -> None:
    repo = files(
        apps_hello=app(
            more="restart: Sometimes\nprobes: {liveness: {httpGet: {port: 99999}}}\nenv: {A: 1}"
        ),
        configs_site=doc("Config", "site", "files:\n  - {path: etc/x, content: 5}\n"),
        fleets_more=doc("Fleet", "more", "priority: high\nselector: {matchLabel: {a: b}}"),
    )
    found = mistakes(repo)
    places = [line.split(": ")[0].rsplit(":", 2) for line in found]
    assert places == sorted(places, key=lambda p: (p[0], int(p[1]), int(p[2])))
    assert len({file for file, _, _ in places}) == 3
    for text in (
        "spec.restart is 'Sometimes'",
        "spec.probes.liveness.httpGet.port is 99999 (it takes a whole number from 1 to 65,535)",
        'spec.env.A is 1, not text (write it in quotes: "1")',
        "spec.files[0].path is 'etc/x' (it takes an absolute path such as /etc/app.conf)",
        'spec.files[0].content is 5, not text (write it in quotes: "5")',
        "spec.priority is 'high'",
        "unknown field 'matchLabel' in spec.selector (did you mean 'matchLabels'?)",
    ):
        assert any(text in line for line in found), (text, found)


def test_a_broken_document_is_not_also_reported_as_missing() -> None:
    found = mistakes(files(apps_hello=app(more="restart: Sometimes")))
    assert len(found) == 1


def test_duplicate_names_point_to_the_first() -> None:
    repo = files(apps_again=app())
    assert only(repo) == (
        "apps/hello.yaml:3:18: App 'hello' is described twice "
        "(first in apps/again.yaml:1 App/hello)"
    )
    twice = repo_of.files(nodes_more=doc("NodeSet", "more", "nodes: [{name: n-1}]"))
    assert "node 'n-1' is described twice (first in nodes/all.yaml:1 NodeSet/all)" in only(twice)


def test_cyclic_depends_on_is_an_error_that_shows_the_circle() -> None:
    repo = files(
        apps_hello=app(more="dependsOn: [{name: b}]"),
        apps_b=app("b", "dependsOn: [{name: c}]"),
        apps_c=app("c", "dependsOn: [{name: hello}]"),
        fleets_pos=doc(
            "Fleet",
            "pos",
            "selector: {matchLabels: {type: pos}}\n"
            "apps: [{ref: {name: hello}}, {ref: {name: b}}, {ref: {name: c}}]",
        ),
    )
    artifacts = {(n, "1.0.0"): repo_of.artifact(n) for n in ("hello", "b", "c")}
    (problem,) = mistakes(repo, artifacts=artifacts)
    assert "dependsOn goes in a circle: b -> c -> hello -> b" in problem


def test_an_app_that_depends_on_itself_is_a_circle_too() -> None:
    (problem,) = mistakes(files(apps_hello=app(more="dependsOn: [{name: hello}]")))
    assert "hello -> hello" in problem


def test_references_that_lead_nowhere_name_what_was_meant() -> None:
    repo = files(
        fleets_pos=doc(
            "Fleet",
            "pos",
            "selector: {matchLabels: {type: pos}}\n"
            "apps: [{ref: {name: helo}}]\nrolloutPolicyRef: {name: careful}",
        )
    )
    first, second = mistakes(repo)
    assert first.endswith("there is no App 'helo' (did you mean 'hello'?)")
    assert second.endswith("there is no RolloutPolicy 'careful' (there is none yet)")


def test_a_selector_typo_is_a_warning_with_the_value_that_exists() -> None:
    repo = files(
        fleets_pos=doc("Fleet", "pos", "selector: {matchLabels: {type: pos}}"),
        fleets_typo=doc("Fleet", "typo", "selector: {matchLabels: {ring: canarry}}"),
    )
    (warning,) = compiled(repo).warnings
    assert str(warning) == (
        "fleets/typo.yaml:5:13: fleet 'typo' selects no node "
        "(no node has ring=canarry: did you mean 'canary'?)"
    )


def test_a_document_in_a_folder_that_nobody_reads_is_told() -> None:
    repo = files()
    repo["roles/anna.yaml"] = doc("RoleBinding", "anna", "role: viewer")
    repo["charts/values.yaml"] = "replicas: 3\n"
    (warning,) = compiled(repo).warnings
    assert str(warning) == (
        "roles/anna.yaml:1:1: this file is not read: roles is not in the Workspace's spec.paths "
        "(add it to spec.paths of edgewise.yaml, or move the file)"
    )


def test_a_selector_that_kubernetes_refuses_is_an_error() -> None:
    text = doc(
        "Fleet", "x", "selector: {matchExpressions: [{key: ring, operator: In, values: []}]}"
    )
    assert "operator In takes at least one value" in only(files(fleets_x=text))


def test_an_artifact_that_is_not_published_says_how_to_publish_it() -> None:
    (problem,) = mistakes(files(), artifacts={})
    assert "artifact 'hello' is not published (`edgewise artifact publish hello 1.0.0`" in problem
    (problem,) = mistakes(files(), artifacts={("hello", "1.0.1"): repo_of.artifact()})
    assert "no published version 1.0.0" in problem
    assert "did you mean '1.0.1'?" in problem


def test_a_node_whose_platform_has_no_tree_is_an_error() -> None:
    joined = JoinedNode("n-2", {}, platform="linux/arm64")
    problem = only(files(), joined)
    assert "no tree for linux/arm64, the platform of node n-2" in problem
    assert "it has linux/amd64" in problem
    assert compiled(files(), JoinedNode("n-2", {}, platform="linux/amd64"))


def test_a_missing_workspace_says_how_to_get_one() -> None:
    repo = files()
    del repo["edgewise.yaml"]
    assert "`edgewise init DIR`" in only(repo)


def test_a_plaintext_secret_is_refused_and_never_repeated() -> None:
    text = doc("Secret", "pw", "encryption: age\nmountPath: /run/pw\ndata: {password: hunter2}")
    problem = only(files(secrets_pw=text))
    assert "password: not an armoured age file" in problem
    assert "hunter2" not in problem


def test_a_patch_that_does_not_fit_points_into_the_overlay() -> None:
    repo = files(
        fleets_pos=doc(
            "Fleet",
            "pos",
            "selector: {matchLabels: {type: pos}}\n"
            "apps: [{ref: {name: hello}}]\n"
            "overlays:\n"
            "  - name: west\n"
            "    selector: {matchLabels: {region: west}}\n"
            "    apps:\n"
            "      - {name: hello, resources: {memory: lots}}\n"
            "      - {name: helo, restart: Never}\n",
        )
    )
    first, second = mistakes(repo)
    assert first.startswith("fleets/pos.yaml:11:45: with this overlay, App hello: ")
    assert "spec.resources.memory is 'lots'" in first
    assert second.endswith("the fleet has no App 'helo' to change (did you mean 'hello'?)")


def test_stages_that_leave_nodes_out_are_an_error() -> None:
    repo = files(
        fleets_pos=doc(
            "Fleet",
            "pos",
            "selector: {matchLabels: {type: pos}}\nrolloutPolicyRef: {name: p}",
        ),
        policies_p=doc(
            "RolloutPolicy", "p", "stages:\n  - {name: a, selector: {matchLabels: {ring: canary}}}"
        ),
    )
    problem = only(repo)
    assert "the stages leave out 2 of 3 nodes of fleet 'pos', such as n-2" in problem
    assert "end with a stage that has neither selector nor limit" in problem


def test_two_fleets_of_equal_priority_that_claim_a_node_are_an_error() -> None:
    repo = files(fleets_too=doc("Fleet", "too", "selector: {matchLabels: {ring: canary}}"))
    problem = only(repo)
    assert "fleets 'pos' and 'too' both select node 'n-1' with priority 0" in problem
    higher = files(
        fleets_too=doc("Fleet", "too", "priority: 1\nselector: {matchLabels: {ring: canary}}")
    )
    assert list(compiled(higher).fleets["too"].members) == ["n-1"]


def test_the_repo_that_the_tests_bend_compiles() -> None:
    assert ARTIFACTS
    assert list(compiled(files()).fleets["pos"].members) == ["n-1", "n-2", "n-3"]
