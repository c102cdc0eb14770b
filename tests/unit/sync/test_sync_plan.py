"""`edgewise plan`: exactly what changes, on which node, in which stage, and how many bytes."""

import repo_of
from repo_of import app, compiled, doc, files

from edgewise.delivery import deltas
from edgewise.protocol.api import FileChange, Plan
from edgewise.protocol.content import Artifact, TreeRef
from edgewise.protocol.delta import DeltaRef
from edgewise.protocol.travel import TreeBytes, TreeChange
from edgewise.sync.plan import CHANGES, DIFF, Planning, plan_change
from edgewise.sync.ports import Compiled, JoinedNode
from edgewise.sync.validate import check_files

OLD = compiled(files())


def config(content: str) -> str:
    return doc("Config", "site", f"files:\n  - path: /etc/site.conf\n    content: |\n{content}")


def artifact_of(name: str, tree: int) -> Artifact:
    return Artifact(name, "1.0.0", {"linux/amd64": TreeRef(f"{tree:064x}", 1000, 3)})


def changes(plan: Plan) -> tuple[FileChange, ...]:
    (fleet,) = plan.fleets
    return fleet.changes


def test_the_same_content_changes_nothing() -> None:
    (fleet,) = plan_change(OLD, compiled(files())).fleets
    assert (fleet.changed_nodes, fleet.changes, fleet.bytes) == (0, (), 0)


def test_the_first_commit_adds_everything_and_pays_for_trees() -> None:
    plan = plan_change(None, OLD)
    (fleet,) = plan.fleets
    assert (plan.base, fleet.before, fleet.changed_nodes) == ("", "", 3)
    assert fleet.joining == ("n-1", "n-2", "n-3")
    assert {(c.part, c.kind, c.nodes) for c in fleet.changes} == {
        ("app/hello", "added", 3),
        ("config/site", "added", 2),
        ("config/site", "added", 1),
    }
    app_change = next(c for c in fleet.changes if c.part == "app/hello")
    assert 1000 < app_change.bytes < 2000
    assert fleet.bytes >= 3 * app_change.bytes


def test_a_changed_file_is_shown_as_a_unified_diff() -> None:
    first = "      region={{ node.labels.region }}\n" + "      same\n" * 4
    before = compiled(files(configs_site=config(first)))
    after = compiled(files(configs_site=config(first + "      x=1\n")))
    (change,) = changes(plan_change(before, after))
    assert (change.part, change.kind, change.nodes, change.example) == (
        "config/site",
        "changed",
        3,
        "n-1",
    ), "variants with the same diff are counted together"
    assert "+x=1" in change.diff
    assert "a/etc/site.conf" in change.diff


def test_variants_that_differ_differently_are_shown_apart() -> None:
    after = compiled(files(configs_site=config("      r={{ node.labels.region }}")))
    assert sorted(c.nodes for c in changes(plan_change(OLD, after))) == [1, 2]


def test_a_change_that_touches_some_nodes_counts_only_those() -> None:
    indented = (
        "      region={{ node.labels.region }}\n"
        "      {% if node.labels.region == 'west' %}\n      y\n      {% endif %}\n"
    )
    (fleet,) = plan_change(OLD, compiled(files(configs_site=config(indented)))).fleets
    assert (fleet.nodes, fleet.changed_nodes) == (3, 1)
    assert fleet.changes[0].example == "n-3"


def test_fields_of_an_app_are_compared_and_shared_trees_cost_nothing() -> None:
    after = compiled(files(apps_hello=app(more="resources: {memory: 64Mi}")))
    (change,) = changes(plan_change(OLD, after))
    assert "-memory_bytes: 0" in change.diff
    assert "+memory_bytes: 67108864" in change.diff
    assert change.bytes < 1000


def test_a_new_version_of_an_artifact_costs_the_new_tree() -> None:
    new = {("hello", "1.0.0"): repo_of.artifact("hello", "1.0.0", "linux/arm64", "linux/amd64")}
    (change,) = changes(plan_change(OLD, compiled(files(), artifacts=new)))
    assert change.bytes > 1000
    assert "trees:" in change.diff


def test_files_that_a_node_has_already_do_not_travel_again() -> None:
    new = {("hello", "1.0.0"): artifact_of("hello", 7)}
    planning = Planning(OLD, compiled(files(), artifacts=new))
    old_tree, new_tree = f"{0:064x}", f"{7:064x}"
    assert planning.changes == (TreeChange((old_tree,), (new_tree,)),)
    shared, fresh = "5" * 64, "6" * 64
    contents = {
        old_tree: {old_tree: 100, shared: 900},
        new_tree: {new_tree: 120, shared: 900, fresh: 30},
    }
    plan = planning.plan(weighed(planning, contents))
    (change,) = changes(plan)
    (fleet,) = plan.fleets
    document = change.bytes - 150
    assert 0 < document < 1000
    assert change.bytes_full == document + 1050
    assert (fleet.bytes, fleet.bytes_full) == (3 * change.bytes, 3 * change.bytes_full)
    assert (plan.bytes, plan.bytes_full) == (fleet.bytes, fleet.bytes_full)
    unknown = planning.plan({})
    assert changes(unknown)[0].bytes == document + 1000, "unknown trees count whole"
    assert unknown.assumed_whole


def test_a_plan_says_what_travels_in_each_stage_with_the_deltas_that_are_ready() -> None:
    new = {("hello", "1.0.0"): artifact_of("hello", 7)}
    planning = Planning(OLD, compiled(files(), artifacts=new))
    old_tree, new_tree = f"{0:064x}", f"{7:064x}"
    contents = {old_tree: {"a": 90_000}, new_tree: {"b": 80_000, "c": 20_000}}
    delta = DeltaRef("d" * 64, 10, 20, 5000, new_tree, old_tree)
    without = planning.plan(weighed(planning, contents))
    plan = planning.plan(weighed(planning, contents, delta))
    (fleet,) = plan.fleets
    assert without.fleets[0].bytes - fleet.bytes == 3 * 95_000
    assert (without.assumed_whole, plan.assumed_whole) == (True, False)
    assert sum(stage.bytes for stage in fleet.stages) == fleet.bytes
    assert sum(stage.bytes_full for stage in fleet.stages) == fleet.bytes_full
    assert all(stage.bytes_full - stage.bytes == 95_000 * stage.nodes for stage in fleet.stages)


def weighed(
    planning: Planning, contents: dict[str, dict[str, int]], *refs: DeltaRef
) -> dict[TreeChange, TreeBytes]:
    """What a hub with these trees and deltas says."""
    return {one: deltas.weigh(one, contents, refs) for one in planning.changes}


def test_a_file_of_two_apps_travels_once() -> None:
    two = files(
        apps_two=app("two"),
        fleets_pos=doc(
            "Fleet",
            "pos",
            "selector: {matchLabels: {type: pos}}\n"
            "apps: [{ref: {name: hello}}, {ref: {name: two}}]\n"
            "configs: [{ref: {name: site}}]\n",
        ),
    )
    artifacts = {
        ("hello", "1.0.0"): artifact_of("hello", 1),
        ("two", "1.0.0"): artifact_of("two", 2),
    }
    trees = {f"{n:064x}": {f"{n:064x}": 50, "5" * 64: 4000} for n in (1, 2)}
    planning = Planning(None, compiled(two, artifacts=artifacts))
    (fleet,) = planning.plan(weighed(planning, trees)).fleets
    apps = [c.bytes for c in fleet.changes if c.part.startswith("app/")]
    assert min(apps) > 4000
    assert 3 * 4100 < fleet.bytes < 3 * 7000


def test_removed_parts_and_leaving_nodes_are_named() -> None:
    repo = files(
        fleets_pos=doc("Fleet", "pos", "selector: {matchLabels: {ring: stable}}\napps: []"),
    )
    (fleet,) = plan_change(OLD, compiled(repo)).fleets
    assert fleet.leaving == ("n-1",)
    assert {(c.part, c.kind) for c in fleet.changes} == {
        ("app/hello", "removed"),
        ("config/site", "removed"),
    }
    assert fleet.bytes == 0


def test_a_node_that_moves_to_another_fleet_is_compared_with_what_it_ran() -> None:
    repo = files(
        fleets_two=doc(
            "Fleet",
            "two",
            "priority: 9\nselector: {matchLabels: {ring: canary}}\napps: [{ref: {name: hello}}]",
        )
    )
    one, two = plan_change(OLD, compiled(repo)).fleets
    assert (one.leaving, two.joining) == (("n-1",), ("n-1",))
    assert [(c.part, c.kind) for c in two.changes] == [("config/site", "removed")]


def test_stages_say_who_is_in_them_and_what_they_wait_for() -> None:
    checked = check_files(repo_of.example("retail"))
    assert checked.compiled is not None
    (fleet,) = plan_change(None, checked.compiled).fleets
    canary, early, rest = fleet.stages
    assert canary.members == ("pos-0001", "pos-0004", "pos-0005")
    assert canary.waits_for == "3 connected nodes; 80% succeed; 10m of health; gates cpu"
    assert early.nodes == 1
    assert rest.waits_for == "at most 20% at once; 95% succeed; 1 held"


def test_what_is_accepted_only_and_what_is_held_is_in_the_plan() -> None:
    checked = check_files(repo_of.example("retail"))
    assert checked.compiled is not None
    assert any("OSImage/pos-os" in line for line in plan_change(OLD, checked.compiled).not_acted_on)


def test_long_diffs_and_many_variants_stay_bounded() -> None:
    nodes = tuple(
        JoinedNode(f"j-{i}", {"type": "pos", "region": f"r{i}"}) for i in range(CHANGES + 10)
    )
    before = compiled(files(), *nodes)
    lines = "".join(f"      line {i} {{{{ node.labels.region }}}}\n" for i in range(1500))
    after = compiled(files(configs_site=config(lines)), *nodes)
    found = changes(plan_change(before, after))
    assert len(found) == CHANGES + 1
    assert sum(change.nodes for change in found) == CHANGES + 13
    assert all(len(change.diff) <= DIFF for change in found)


def test_a_secret_shows_its_digest_and_never_its_ciphertext() -> None:
    result: Compiled | None = check_files(repo_of.example("retail")).compiled
    assert result is not None
    diffs = "".join(c.diff for f in plan_change(None, result).fleets for c in f.changes)
    assert "source:" in diffs
    assert "BEGIN AGE" not in diffs
