"""Backoff, probes and order, as plain functions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgewise.heal import order, probes, restarts
from edgewise.heal.restarts import Exit, History, RestartRules
from edgewise.protocol.content import (
    Dependency,
    FilesConfig,
    OnChange,
    Probe,
    Probes,
    ProcessApp,
    TcpProbe,
)
from edgewise.protocol.installed import Installed, InstalledApp, InstalledConfig

RULES = RestartRules()
CHECK = TcpProbe(port=1)


def test_waits_double_up_to_the_cap_and_start_again_after_a_stable_run() -> None:
    history, waits = History(), []
    for second in range(12):
        history = restarts.after(history, Exit(1), now=second, ran_s=1, rules=RULES)
        waits.append(restarts.wait_before(history, RULES, 1.0))
    assert waits[:4] == [0.25, 0.5, 1.0, 2.0]
    assert waits[-1] == RULES.cap_s
    history = restarts.after(history, Exit(1), now=100, ran_s=RULES.stable_s, rules=RULES)
    assert restarts.wait_before(history, RULES, 1.0) == 0.25


@given(st.integers(0, 200), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_never_nothing_and_never_over_the_cap(in_a_row: int, fraction: float) -> None:
    wait = restarts.wait_before(History(in_a_row=in_a_row), RULES, fraction)
    assert 0 <= wait <= RULES.cap_s
    assert (wait > 0) == (in_a_row > 0)


def test_a_crash_loop_is_three_failures_within_the_window_even_after_the_clock_went_back() -> None:
    history = History()
    for now in (1000.0, 1010.0, 1020.0):
        history = restarts.after(history, Exit(1), now=now, ran_s=1, rules=RULES)
    assert restarts.crash_looping(history, 1020, RULES)
    assert not restarts.crash_looping(history, 1020 + RULES.window_s, RULES)
    back = restarts.after(history, Exit(1), now=50.0, ran_s=1, rules=RULES)
    assert not restarts.crash_looping(back, 50.0, RULES)


def test_an_exit_code_of_zero_is_no_failure_but_still_backs_off() -> None:
    history = restarts.after(History(), Exit(0), now=1, ran_s=0, rules=RULES)
    assert history.failures == ()
    assert restarts.wait_before(history, RULES, 0.5) > 0


def test_restart_policies() -> None:
    assert restarts.restarts_after(Exit(0), "Always")
    assert not restarts.restarts_after(Exit(0), "OnFailure")
    assert restarts.restarts_after(Exit(None), "OnFailure")
    assert not restarts.restarts_after(Exit(1), "Never")
    assert restarts.restarts_after(Exit(None, "liveness probe failed"), "Never")


def test_startup_holds_the_other_probes_back() -> None:
    rules = Probes(startup=Probe(CHECK, failure_threshold=2), liveness=Probe(CHECK))
    watch = probes.begin(rules)
    assert probes.active(rules, watch) == ("startup",)
    same, verdict = probes.answered(rules, watch, "liveness", good=False)
    assert (same, verdict) == (watch, "go on")
    watch, _ = probes.answered(rules, watch, "startup", good=True)
    assert probes.active(rules, watch) == ("liveness",)
    assert watch.ready


def test_only_consecutive_answers_reach_a_threshold() -> None:
    rules = Probes(liveness=Probe(CHECK, failure_threshold=3))
    watch = probes.begin(rules)
    for good in (False, False, True, False, False):
        watch, verdict = probes.answered(rules, watch, "liveness", good=good, said="refused")
        assert verdict == "go on"
    _, verdict = probes.answered(rules, watch, "liveness", good=False, said="refused")
    assert verdict == "restart"


@given(st.lists(st.tuples(st.sampled_from(["startup", "liveness", "readiness"]), st.booleans())))
def test_readiness_never_restarts_and_nothing_is_ready_before_startup(
    answers: list[tuple[probes.Which, bool]],
) -> None:
    rules = Probes(Probe(CHECK), Probe(CHECK), Probe(CHECK))
    watch = probes.begin(rules)
    for which, good in answers:
        watch, verdict = probes.answered(rules, watch, which, good=good)
        assert watch.started or not watch.ready
        assert verdict == "go on" or which != "readiness"


def test_the_random_answers_above_can_reach_ready() -> None:
    rules = Probes(Probe(CHECK), Probe(CHECK), Probe(CHECK))
    watch = probes.begin(rules)
    for which in ("startup", "readiness"):
        watch, _ = probes.answered(rules, watch, which, good=True)  # type: ignore[arg-type]
    assert watch.ready


def app(name: str, *needs: str) -> ProcessApp:
    return ProcessApp(
        name=name, trees={}, command=("run",), depends_on=tuple(Dependency(n) for n in needs)
    )


@given(st.permutations(["a", "b", "c", "d"]))
def test_dependencies_start_first_and_stop_last(names: list[str]) -> None:
    apps = {"a": app("a", "b"), "b": app("b", "d"), "c": app("c", "a"), "d": app("d")}
    assert order.start_order(apps[n] for n in names) == ("d", "b", "a", "c")
    steps = order.plan(dict.fromkeys(names, "p1"), {n: ("p2", apps[n]) for n in names})
    assert [s.name for s in steps] == ["c", "a", "b", "d", "d", "b", "a", "c"]


def test_a_cycle_still_starts_everything() -> None:
    assert set(order.start_order([app("a", "b"), app("b", "a")])) == {"a", "b"}


def test_an_unchanged_part_is_left_alone() -> None:
    steps = order.plan({"a": "p", "old": "p"}, {"a": ("p", app("a")), "new": ("p", app("new"))})
    assert [(type(s).__name__, s.name) for s in steps] == [("Stop", "old"), ("Start", "new")]


def test_an_app_that_a_changed_config_restarts_is_verified_with_it() -> None:
    def installed(part: str) -> Installed:
        apps = tuple(InstalledApp("p", app(n), "t", f"apps/{n}") for n in ("a", "b"))
        rule = OnChange(paths=("/etc",), action="restart", app="b")
        config = InstalledConfig(part, FilesConfig("c", (), (rule,)))
        return Installed("r", "n", "linux/amd64", apps, (config,))

    assert order.changed_apps(installed("c2"), installed("c1")) == ("b",)
    assert order.changed_apps(installed("c1"), installed("c1")) == ()
    assert order.changed_apps(installed("c1"), None) == ("a", "b")
