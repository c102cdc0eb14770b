"""Every row of the rules table in docs/rollouts.md, as a sentence about the fleet."""

from datetime import timedelta

from fleet_of import NEW, OLD, Play, percent, plan, stage

from edgewise.model.quantity import Share
from edgewise.model.rules import Gate, RolloutRules
from edgewise.rollout import waves
from edgewise.rollout.states import (
    GateAnswered,
    HoldChanged,
    Left,
    Online,
    Restarted,
    RulesChanged,
    Supersede,
)

TEN = timedelta(minutes=10)
AT_WORK = {"running": OLD, "target": NEW, "phase": "Applying"}


def test_stages_go_one_after_the_other_and_the_last_one_ends_the_rollout():
    play = Play(plan(2, 3))
    assert play.wave == {0, 1}
    play.good(0)
    assert play.wave == {0, 1}
    play.good(1)
    assert play.wave == {0, 1, 2, 3, 4}
    play.good(2, 3, 4)
    assert play.head == "Succeeded"


def test_no_more_than_max_concurrent_nodes_are_at_work():
    play = Play(plan(10, stages=(stage(max_concurrent=Share(count=3)),)))
    assert play.wave == {0, 1, 2}
    play.good(1)
    assert play.wave == {0, 1, 2, 3}


def test_a_stage_whose_nodes_are_all_offline_waits_and_never_passes():
    play = Play(plan(3, 5), online=False).do()
    assert play.head == "WaitingForTargets"
    assert "0 of 3 nodes are connected" in play.reason
    play.online(3, 4, 5, 6, 7).wait(60)
    assert (play.head, play.wave) == ("WaitingForTargets", set())


def test_an_empty_stage_waits_for_targets():
    play = Play(plan(0, 2))
    assert play.head == "WaitingForTargets"
    assert "no nodes" in play.reason


def test_a_stage_without_nodes_is_passed_over_where_the_policy_says_so():
    stages = (stage(), stage("rest", min_targets=0))
    play = Play(plan(1, 0, stages=stages)).good(0)
    assert play.head == "Succeeded"
    away = Play(plan(1, 1, stages=stages), online=False).online(0).good(0)
    assert away.head == "WaitingForTargets", "nodes that are away are still waited for"


def test_fewer_connected_nodes_than_min_targets_are_not_told():
    play = Play(plan(5, stages=(stage(min_targets=3),)), online=False).online(0, 1)
    assert (play.head, play.wave) == ("WaitingForTargets", set())
    play.online(2)
    assert (play.head, play.wave) == ("Progressing", {0, 1, 2})


def test_a_stage_needs_min_targets_successes_even_when_its_threshold_is_reached():
    rule = stage(min_targets=3, success_threshold=percent(60))
    play = Play(plan(4, 1, stages=(rule, stage("rest"))), online=False).online(0, 1, 2)
    play.good(0, 1).bad(2)
    assert play.head == "WaitingForTargets"
    assert "2 nodes succeeded, minTargets asks for 3" in play.reason
    play.online(3).good(3)
    assert play.head == "WaitingForTargets"  # the rest stage: n4 is offline


def test_a_stage_that_misses_its_success_threshold_is_rolled_back():
    play = Play(plan(5, 5, stages=(stage("canary", success_threshold=percent(80)), stage("rest"))))
    play.good(0, 1, 2).bad(3, 4)
    assert play.head == "RollingBack"
    assert "3 of 5 nodes succeeded, successThreshold is 80%" in play.reason
    assert play.wave == set()
    play.back(0, 1, 2)
    assert play.head == "RolledBack"
    assert {play.node(i) for i in range(5)} == {"RolledBack"}


def test_one_failure_of_five_is_allowed_by_80_percent():
    rule = stage("canary", success_threshold=percent(80))
    play = Play(plan(5, 1, stages=(rule, stage("rest")))).good(0, 1, 2, 3).bad(4)
    assert play.wave == {0, 1, 2, 3, 4, 5}


def test_the_failure_threshold_stops_a_stage_before_its_end():
    play = Play(plan(100, failure_threshold=percent(4), min_failures=3))
    play.bad(0, 1, 2, 3)
    assert play.head == "Progressing"
    play.bad(4)
    assert play.head == "RollingBack"
    assert "5 of 100 attempted nodes failed" in play.reason


def test_a_percentage_never_trips_on_fewer_than_min_failures():
    play = Play(plan(10, failure_threshold=percent(4), min_failures=3)).bad(0, 1)
    assert play.head == "Progressing"
    assert play.bad(2).head == "RollingBack"


def test_the_bake_holds_the_next_stage_back_and_late_failures_count():
    rules = (stage("canary", bake=TEN), stage("rest"))
    play = Play(plan(2, 2, stages=rules, failure_threshold=percent(4))).good(0, 1)
    assert play.head == "Baking"
    play.wait(9.9)
    assert (play.head, play.wave) == ("Baking", {0, 1})
    assert Play(plan(2, 2, stages=rules)).good(0, 1).wait(10).wave == {0, 1, 2, 3}
    play.bad(0)
    assert play.head == "RollingBack"


def test_nodes_that_are_sick_when_the_bake_ends_are_no_successes():
    play = Play(plan(2, 2, stages=(stage("canary", bake=TEN), stage("rest")))).good(0, 1)
    play.heard(0, running=NEW, target=NEW, health="Degraded").wait(10)
    assert play.head == "RollingBack"
    assert "became unhealthy" in play.reason


def gated(**knobs):
    gate = Gate("cpu", "exec", {"command": "true"}, timedelta(minutes=1), **knobs)
    return Play(plan(2, 2, stages=(stage("canary", bake=TEN, gates=(gate,)), stage("rest")))).good(
        0, 1
    )


def test_a_gate_is_asked_while_the_stage_bakes_and_has_to_pass():
    play = gated()
    assert [a.gate for a in play.asked()] == ["cpu"]
    play.do(GateAnswered(0, "cpu", "Pass", "")).wait(1)
    assert len(play.asked()) == 2
    play.do(GateAnswered(0, "cpu", "Fail", "load 90")).wait(9)
    assert play.head == "Baking"
    play.do(GateAnswered(0, "cpu", "Pass", ""))
    assert play.wave == {0, 1, 2, 3}


def test_a_gate_that_has_not_answered_has_not_passed():
    play = gated().wait(15)
    assert (play.head, play.reason) == ("Baking", "gate cpu has not passed yet")
    assert play.wave == {0, 1}


def test_a_gate_that_fails_as_often_as_its_limit_rolls_back():
    play = gated(failure_limit=2).do(GateAnswered(0, "cpu", "Fail", "load 90")).wait(1)
    assert play.head == "Baking"
    play.do(GateAnswered(0, "cpu", "Fail", "load 91"))
    assert play.head == "RollingBack"
    assert "load 91" in play.reason


def test_an_inconclusive_gate_pauses_and_is_asked_again_after_resume():
    play = gated().do(GateAnswered(0, "cpu", "Inconclusive", "no route to host"))
    assert play.head == "Paused"
    assert "no route to host" in play.reason
    play.command("resume")
    assert (play.head, len(play.asked())) == ("Baking", 2)


def test_an_answer_that_nobody_asked_for_changes_nothing():
    play = gated()
    play.do(GateAnswered(1, "cpu", "Fail", ""), GateAnswered(0, "other", "Fail", ""))
    play.do(GateAnswered(0, "cpu", "Pass", ""), GateAnswered(0, "cpu", "Inconclusive", ""))
    assert play.head == "Baking"


def test_a_stage_that_asks_for_approval_waits_for_a_person():
    play = Play(plan(1, 1, stages=(stage("canary"), stage("rest", approval=True)))).good(0)
    assert (play.head, play.wave) == ("WaitingForApproval", {0})
    play.wait(60)
    assert play.wave == {0}
    play.command("approve")
    assert (play.head, play.wave) == ("Progressing", {0, 1})
    assert any(t.actor == "alice" for t in play.log)


def test_the_disruption_budget_holds_per_group():
    groups = {0: "east", 1: "east", 2: "west", 3: "west"}
    play = Play(plan(4, groups=groups, max_unavailable=Share(count=1)))
    assert play.wave == {0, 2}
    play.good(0)
    assert play.wave == {0, 1, 2}


def test_a_node_that_restored_itself_frees_its_group_and_one_that_did_not_blocks_it():
    groups = {0: "east", 1: "east", 2: "west", 3: "west"}
    play = Play(plan(4, groups=groups, max_unavailable=Share(count=1)))
    play.bad(0)
    assert play.wave == {0, 1, 2}
    play.do(play.receipt(2, "Failed", running=NEW))
    assert play.wave == {0, 1, 2}
    assert "while n2 is down" in play.good(1).reason
    play.do(HoldChanged(2, True))
    assert play.wave == {0, 1, 3}


def test_a_sick_node_counts_against_its_group_but_may_itself_be_repaired():
    play = Play(plan(2, groups={0: "s", 1: "s"}, max_unavailable=Share(count=1)), online=False)
    play.heard(1, running=OLD, target=OLD, health="Degraded").online(0, 1)
    assert play.wave == {1}


def test_node_timeout_counts_from_the_first_contact():
    play = Play(plan(2, on_failure="Pause")).wait(29)
    play.heard(0).wait(2)
    assert play.node(0) == "Dispatched"
    assert play.node(1) == "Unknown"
    play.wait(28)
    assert play.node(0) == "Failed"


def test_a_node_that_goes_silent_after_contact_is_unknown_not_failed():
    play = Play(plan(2)).heard(0).offline(0).wait(30)
    assert play.node(0) == "Unknown"


def test_silence_is_a_failure_only_when_too_many_are_silent():
    few = Play(
        plan(100, failure_threshold=percent(4), stages=(stage(success_threshold=percent(95)),))
    )
    few.good(*range(4, 100)).wait(30)
    assert few.head == "Succeeded"
    many = Play(plan(100, failure_threshold=percent(4))).good(*range(5, 100)).wait(30)
    assert many.head == "RollingBack"
    assert "5 of them not heard of" in many.reason


def test_a_late_receipt_turns_unknown_into_success():
    play = Play(plan(2, 1)).good(0).wait(30)
    assert play.node(1) == "Unknown"
    assert play.good(1).node(1) == "Succeeded"


def test_offline_nodes_are_deferred_and_block_nobody():
    play = Play(plan(4, 1), online=False).online(0, 1, 2, 4).good(0, 1, 2)
    assert play.node(3) == "Deferred"
    assert play.wave == {0, 1, 2, 4}


def test_too_many_deferred_nodes_hold_the_stage():
    play = Play(plan(4, 1, deferred_max=percent(20)), online=False).online(0, 1, 2, 4).good(0, 1, 2)
    assert play.head == "WaitingForTargets"
    assert "deferredMax is 20%" in play.reason
    assert play.online(3).good(3).wave == {0, 1, 2, 3, 4}


def test_blocking_waits_for_every_offline_node():
    play = Play(plan(2, 1, offline="Blocking"), online=False).online(0, 2).good(0)
    assert play.head == "WaitingForTargets"
    assert play.online(1).good(1).wave == {0, 1, 2}


def test_offline_nodes_are_failures_after_node_timeout_when_the_policy_says_so():
    play = Play(plan(2, 1, offline="Failed"), online=False).online(0, 2).good(0)
    assert play.head == "Progressing"
    play.wait(30)
    assert (play.node(1), play.head) == ("Failed", "RollingBack")


def test_a_deferred_node_that_is_back_goes_at_once_with_direct():
    play = Play(plan(2, 3), online=False).online(0, 2, 3, 4).good(0)
    assert play.online(1).wave == {0, 2, 3, 4}  # as many are at work as may be
    assert play.good(2).wave == {0, 1, 2, 3, 4}


def test_a_deferred_node_waits_for_the_last_stage_with_staged():
    play = Play(plan(2, 1, 1, catch_up="Staged"), online=False).online(0, 2, 3).good(0)
    assert play.online(1).wave == {0, 2}
    assert play.good(2).wave == {0, 1, 2, 3}


def test_the_end_of_the_rollout_waits_for_those_that_came_back():
    play = Play(plan(2, 1), online=False).online(0, 2).good(0).online(1).good(2)
    assert play.head == "Progressing"
    assert play.good(1).head == "Succeeded"


def test_nodes_that_the_change_does_not_touch_are_skipped_and_never_told():
    play = Play(plan(2, 2, start={0: "Skipped", 1: "Skipped", 2: "Skipped"}))
    assert play.wave == {3}
    assert any("touches no node" in t.reason for t in play.log)


def test_held_nodes_are_no_targets():
    play = Play(plan(2, start={0: "Held"}))
    assert play.wave == {1}
    assert play.good(1).head == "Succeeded"


def test_a_receipt_for_another_release_or_rollout_never_counts():
    play = Play(plan(2))
    play.do(
        play.receipt(0, release=OLD, running=OLD),
        play.receipt(0, rollout="r0"),
        play.receipt(0, running=OLD),
        play.receipt(1, "Failed", rollout="r0"),
    )
    assert (play.node(0), play.node(1)) == ("Dispatched", "Dispatched")


def test_a_receipt_from_a_node_that_was_not_told_never_counts():
    play = Play(plan(1, 1)).good(1)
    assert play.node(1) == "Queued"


def test_repeated_and_late_receipts_change_nothing():
    play = Play(plan(2, 1))
    old, new = play.receipt(0), play.receipt(0, "Failed", reason="died later")
    play.do(new, new, old)
    assert play.node(0) == "Failed"


def test_on_failure_pause_waits_for_a_person_who_may_accept_or_abort():
    rules = {"failure_threshold": percent(4), "on_failure": "Pause"}
    play = Play(plan(10, stages=(stage(max_concurrent=Share(count=5)),), **rules)).bad(0)
    assert (play.head, play.wave) == ("Paused", {0, 1, 2, 3, 4})
    play.good(1)
    assert play.wave == {0, 1, 2, 3, 4}
    play.command("resume").good(2, 3, 4).good(*range(5, 10))
    assert play.head == "Succeeded"
    other = Play(plan(2, 2, **rules)).bad(0).command("abort").back(1)
    assert other.head == "Cancelled"


def test_on_failure_continue_goes_on_and_says_so():
    play = Play(plan(2, 1, failure_threshold=percent(4), on_failure="Continue")).bad(0).good(1)
    assert play.wave == {0, 1, 2}
    assert any("onFailure is Continue" in t.reason for t in play.log)


def test_scope_stage_leaves_the_earlier_stages_on_the_new_release():
    play = Play(plan(2, 2, failure_threshold=percent(30), scope="Stage")).good(0, 1).bad(2, 3)
    assert play.head == "RolledBack"
    assert [play.node(i) for i in range(4)] == ["Succeeded"] * 2 + ["RolledBack"] * 2


def test_the_way_back_keeps_the_disruption_budget():
    groups = {i: "site" for i in range(4)}
    play = Play(plan(4, groups=groups, max_unavailable=Share(count=2))).good(0, 1).good(2)
    play.bad(3)
    assert play.head == "RollingBack"
    assert set(play.table.waiting_back) == {2}
    play.back(0)
    assert set(play.table.waiting_back) == set()
    assert play.back(1, 2).head == "RolledBack"


def test_a_neighbour_that_is_sick_on_its_own_does_not_keep_a_node_on_a_bad_release():
    groups = {0: "site", 1: "elsewhere", 2: "site"}
    play = Play(plan(2, 1, groups=groups, max_unavailable=Share(count=1))).good(0)
    play.heard(2, running=OLD, target=OLD, health="Degraded").command("abort")
    assert set(play.table.waiting_back) == set()
    assert play.back(0, 1).head == "Cancelled"


def test_a_node_that_cannot_return_fails_the_rollout_for_a_person():
    play = Play(plan(2)).good(0).bad(1)
    play.do(play.receipt(0, "Failed", release=OLD, running=NEW, reason="disk full"))
    assert play.head == "Failed"
    assert "n0" in play.reason


def test_silent_nodes_do_not_hold_a_rollback_for_ever():
    play = Play(plan(2)).good(0).bad(1).offline(0).wait(30)
    assert play.head == "RolledBack"
    assert "1 nodes are silent" in play.reason


def test_a_node_that_never_took_the_release_needs_no_receipt_to_be_back():
    play = Play(plan(3, failure_threshold=percent(4)))
    play.good(0).bad(1)
    play.heard(0, 2, running=OLD, target=OLD)
    assert (play.node(0), play.node(2)) == ("Dispatched", "RolledBack")


def test_the_first_release_of_a_fleet_has_nowhere_to_return_to():
    play = Play(plan(2, previous="")).bad(0, 1)
    assert play.head == "Failed"
    assert "no earlier release" in play.reason


def test_max_duration_pauses_a_rollout_that_does_not_end():
    play = Play(plan(2, 1), online=False).do().wait(72 * 60)
    assert play.head == "Paused"
    assert "3d" in play.reason


def test_a_superseded_rollout_never_changes_again():
    play = Play(plan(2)).do(Supersede("c" * 64, "bob", "main@sha1:2"))
    assert play.head == "Superseded"
    assert play.good(0, 1).wait(99).head == "Superseded"


def test_a_policy_edit_applies_from_the_next_stage():
    play = Play(plan(2, 4))
    edited = RolloutRules(
        stages=(stage("stage-0"), stage("slow", max_concurrent=Share(count=1)), stage("tail")),
        failure_threshold=percent(100),
    )
    names = {0: "stage-0", 1: "stage-0", 2: "slow", 3: "slow", 4: "tail", 5: "stage-0"}
    play.do(RulesChanged(edited, names, "bob"))
    assert play.wave == {0, 1}
    assert play.good(0, 1).wave == {0, 1, 2}
    assert play.good(2).wave == {0, 1, 2, 3}
    assert play.good(3).wave == {0, 1, 2, 3, 4, 5}
    assert play.good(4, 5).head == "Succeeded"


def test_a_node_that_leaves_is_not_waited_for():
    play = Play(plan(2)).good(0).do(Left(1))
    assert play.head == "Succeeded"


def test_the_hubs_own_absence_is_no_silence_of_the_nodes():
    play = Play(plan(2, failure_threshold=percent(4)))
    play.now += timedelta(hours=2)
    play.do(Restarted())
    assert play.head == "Progressing"
    play.good(0, 1)
    assert play.head == "Succeeded"


def test_commands_that_make_no_sense_are_refused_with_the_state():
    play = Play(plan(1)).command("approve")
    assert play.last.refused == {"approve": "rollout r1 is Progressing"}
    play.command("pause").command("pause")
    assert play.last.refused == {"pause": "rollout r1 is Paused"}
    assert OLD != NEW


def test_after_a_restart_node_timeout_still_counts_from_the_first_contact():
    play = Play(plan(2, on_failure="Pause")).wait(20)
    play.heard(0, 1)
    rows = dict(play.table.rows)
    play.state = waves.resume_from(play.plan, play.state.head, play.state.course, rows)
    play.do(Restarted(), Online(0), Online(1)).wait(29)
    assert play.node(0) == "Dispatched"
    assert play.wait(1).node(0) == "Failed"


def test_a_stage_whose_nodes_are_all_held_says_so():
    play = Play(plan(1, 2), online=False).do(HoldChanged(0, True)).online(0, 1, 2)
    assert play.head == "WaitingForTargets"
    assert "1 are held" in play.reason


def shut(minutes: float | None, play: Play) -> dict:
    """What a node says that waits for a window which opens in so many minutes."""
    opens = None if minutes is None else play.now + timedelta(minutes=minutes)
    fields = {"running": OLD, "target": NEW, "phase": "Ready", "window": "apply"}
    return fields | ({} if opens is None else {"opens": opens})


def test_the_time_in_front_of_a_window_is_not_the_nodes():
    play = Play(plan(2, on_failure="Pause")).heard(0, 1, **AT_WORK).wait(20)
    play.heard(0, 1, **shut(600, play)).wait(599)
    assert (play.head, play.node(0)) == ("WaitingForWindow", "Ready")
    play.wait(1).heard(0, 1, **AT_WORK)
    assert (play.head, play.node(0)) == ("Progressing", "Applying")
    play.wait(9)
    assert play.node(0) == "Applying", "of 30 minutes it has used 29"
    play.wait(1)
    assert play.node(0) == "Failed"


def test_one_node_at_work_keeps_the_rollout_progressing():
    play = Play(plan(2)).heard(0, 1, **AT_WORK)
    play.heard(0, **shut(600, play))
    assert (play.head, play.reason) == (
        "Progressing",
        "1 of 2 nodes at work wait for their update window",
    )
    play.good(1)
    assert play.head == "WaitingForWindow"
    play.good(0)
    assert play.head == "Succeeded"


def test_a_node_that_vanishes_while_it_waits_has_until_its_window_and_its_time():
    play = Play(plan(2, on_failure="Pause")).heard(0, 1, **AT_WORK)
    play.heard(0, 1, **shut(600, play)).offline(0).wait(629)
    assert play.node(0) == "Ready"
    play.wait(1)
    assert play.node(0) == "Unknown"


def test_a_node_whose_window_should_have_opened_long_ago_is_told_to_look_at_its_clock():
    play = Play(plan(1, 1)).heard(0, **AT_WORK)
    play.heard(0, **shut(60, play)).wait(91)
    assert "see its clock" in play.table.rows[0].reason


def test_a_window_that_never_opens_ends_in_a_pause_that_says_so():
    play = Play(plan(1, max_duration=timedelta(hours=5))).heard(0, **AT_WORK)
    play.heard(0, **shut(None, play))
    assert (play.head, play.reason.endswith("none opens in 4 years")) == ("WaitingForWindow", True)
    play.wait(301)
    assert (play.head, play.node(0)) == ("Paused", "Ready")


def test_max_duration_counts_on_after_the_window():
    play = Play(plan(1, 1, max_duration=timedelta(hours=1))).heard(0, **AT_WORK).wait(20)
    play.heard(0, **shut(600, play)).wait(600).good(0)
    assert play.head == "Progressing"
    play.heard(1, **AT_WORK).wait(20).heard(1, **shut(100, play))
    play.command("pause").wait(90).command("resume")
    assert play.head == "WaitingForWindow"
    play.wait(10).heard(1, **AT_WORK).wait(9).good(1)
    assert play.head == "Succeeded"


def test_the_time_before_a_window_still_counts_after_it():
    rules = {"max_duration": timedelta(hours=1), "node_timeout": timedelta(hours=9)}
    play = Play(plan(1, **rules)).heard(0, **AT_WORK).wait(20)
    play.heard(0, **shut(600, play)).wait(600).heard(0, **AT_WORK).wait(39)
    assert play.head == "Progressing"
    assert play.wait(1).head == "Paused"


def test_a_node_on_its_way_back_may_wait_for_its_window_too():
    play = Play(plan(2)).good(0).command("abort")
    said = {"running": NEW, "target": OLD, "phase": "Ready", "window": "apply"}
    play.heard(0, **said, opens=play.now + timedelta(minutes=600)).heard(1, running=OLD, target=OLD)
    play.wait(599)
    assert (play.head, play.node(0)) == ("RollingBack", "Dispatched")
    play.back(0)
    assert play.head == "Cancelled"
