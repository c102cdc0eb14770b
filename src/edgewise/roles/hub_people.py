"""What a hub needs for people: who is known, the gate, and how they log in."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.backends.git import guard
from edgewise.backends.passwords import Argon2Passwords
from edgewise.backends.pki.authority import Authority
from edgewise.model.errors import EdgewiseError, Forbidden, NeedsPerson
from edgewise.model.roles import Role
from edgewise.net.api.journal import Journal
from edgewise.net.gate import PeopleGate
from edgewise.net.git_http import GitHttp, Pushed, Pusher
from edgewise.net.logins import LoginDesk, Logins
from edgewise.net.oidc import read_settings
from edgewise.net.register import PeopleRegister
from edgewise.net.routes import Peer, missing
from edgewise.net.server import Mount
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock


@dataclass(frozen=True, slots=True)
class HubPeople:
    """The three together."""

    register: PeopleRegister
    gate: PeopleGate
    logins: Logins


def open_people(
    oidc: Path | None,
    register: PeopleRegister,
    authority: Authority,
    journal: Journal,
    outside: tuple[Clock, Chance],
    age_recipient: Callable[[], str],
) -> HubPeople:
    """Put them together. Raises BadUsage for an OIDC file that does not fit."""
    clock, chance = outside
    provider = read_settings(oidc, clock, chance) if oidc is not None else None
    desk = LoginDesk(
        authority.organisation,
        register,
        Argon2Passwords(),
        authority,
        journal,
        clock,
        age_recipient,
    )
    gate = PeopleGate(register, authority.organisation, clock)
    return HubPeople(register, gate, Logins(desk, provider))


def git_mount(repository: Path, journal: Journal, pushed: Pushed) -> Mount:
    """git for people, behind its door."""
    hook = guard.path_of(repository)
    door = GitDoor(journal, lambda: os.access(hook, os.X_OK))
    return Mount("/git/", GitHttp(repository, door, pushed).answer)


class GitDoor:
    """Who may fetch from and push to the fleet repo."""

    def __init__(self, journal: Journal, guarded: Callable[[], bool]) -> None:
        """``guarded``: whether git will run the hook that keeps RoleBindings."""
        self._journal = journal
        self._guarded = guarded

    async def __call__(self, request: Any, writes: bool) -> Pusher:
        """Raises Forbidden. The repo is read and pushed as a whole, so the role is needed over
        everything; see backends/git/guard.py for what only an administrator may change."""
        peer: Peer = request.peer
        try:
            return self._judge(peer, writes=writes)
        except EdgewiseError as error:
            verb = "push to" if writes else "fetch from"
            await self._journal.refused(peer, f"git {verb} the fleet repo", str(error))
            raise

    def _judge(self, peer: Peer, *, writes: bool) -> Pusher:
        if peer.role != "user":
            raise Forbidden(
                f"{peer} may not use the fleet repo", hint="log in with `edgewise login`"
            )
        if peer.ended:
            raise Forbidden(peer.ended, hint="`edgewise login` makes it anew")
        needed: Role = "operator" if writes else "viewer"
        if not peer.rights.everywhere(needed):
            raise missing(needed, peer, "the fleet repo concerns the whole organisation")
        governs = peer.rights.everywhere("admin")
        if writes and not governs and not self._guarded():
            raise NeedsPerson(
                "the hook that keeps RoleBindings cannot run in the hub's repository",
                hint="put the hub's data directory on a file system without noexec",
            )
        return Pusher(str(peer), governs, peer.address)
