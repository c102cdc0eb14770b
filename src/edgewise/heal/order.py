"""In which order apps stop and start, and which of them are left alone.

An app whose part has the same digest is not touched. What an app depends on starts before
it and stops after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgewise.protocol.content import ProcessApp
from edgewise.protocol.installed import Installed


@dataclass(frozen=True, slots=True)
class Stop:
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Start:
    name: str
    why: str


def start_order(apps: Iterable[ProcessApp]) -> tuple[str, ...]:
    """Names, dependencies first, else in alphabetical order.

    A dependency that is not there is ignored. A cycle (the compiler refuses one) is broken
    at the alphabetically first app, because running in some order beats not running.
    """
    waits = {app.name: {d.name for d in app.depends_on} for app in apps}
    order: list[str] = []
    while len(order) < len(waits):
        left = sorted(name for name in waits if name not in order)
        free = [n for n in left if all(d in order or d not in waits for d in waits[n])]
        order.append((free or left)[0])
    return tuple(order)


def plan(
    running: Mapping[str, str], wanted: Mapping[str, tuple[str, ProcessApp]]
) -> tuple[Stop | Start, ...]:
    """Steps from what runs (name to part) to what is wanted (name to part and app).

    All stops come first, in reverse start order, so that a port that moves from one app to
    another is free.
    """
    order = start_order(app for _, app in wanted.values())
    gone = sorted(name for name in running if name not in wanted)
    changed = [n for n in order if n in running and running[n] != wanted[n][0]]
    steps: list[Stop | Start] = [Stop(name, "not wanted any more") for name in gone]
    steps += [Stop(name, "its part changed") for name in reversed(changed)]
    for name in order:
        if name not in running:
            steps.append(Start(name, "new"))
        elif name in changed:
            steps.append(Start(name, "its part changed"))
    return tuple(steps)


def changed_apps(new: Installed, old: Installed | None) -> tuple[str, ...]:
    """Apps that a move from ``old`` to ``new`` starts or restarts: those to verify."""
    before = {app.app.name: app.part for app in old.apps} if old else {}
    configs = {c.config.name: c.part for c in old.configs} if old else {}
    touched = {a.app.name for a in new.apps if before.get(a.app.name) != a.part}
    for installed in new.configs:
        if configs.get(installed.config.name) != installed.part:
            rules = installed.config.on_change
            touched |= {rule.app for rule in rules if rule.action == "restart"}
    return tuple(a.app.name for a in new.apps if a.app.name in touched)
