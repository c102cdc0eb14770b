"""A builder at the command line: its key, whom it trusts, and the next list it signs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.model.errors import Conflict, NeedsPerson, Untrusted
from edgewise.protocol.api import Builds, BuildsUpload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from securesystemslib.signer import Key
    from tuf.api.metadata import TargetFile

    from edgewise.cli.client import Client

Also = Annotated[
    list[Path] | None,
    typer.Option(help="FILE.pub of another builder whose list may be taken over. Repeatable."),
]
Adopt = Annotated[
    bool,
    typer.Option(
        "--adopt", help="Once: take over what the hub lists, although no known builder signed it."
    ),
]
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Builder:
    """Who signs, and whose lists it takes over."""

    key: Path
    also: tuple[Path, ...] = ()
    adopt: bool = False

    def targets(self, current: Builds) -> Mapping[str, TargetFile]:
        """What is listed now, once it is known that a builder signed it.

        Raises Untrusted for a list that none of our keys signed.
        """
        from tuf.api.metadata import Targets

        from edgewise.delivery import trust
        from edgewise.delivery.builder import own_targets

        if self.adopt and current.metadata:
            return dict(trust.parse(current.metadata, Targets, what="builds.json").signed.targets)
        try:
            return own_targets(current, self.keys())
        except Untrusted as error:
            raise Untrusted(
                str(error),
                hint=f"{error.hint}; after a hub signed for itself: read `edgewise artifact ls`, "
                "then --adopt once",
            ) from error

    def keys(self) -> list[Key]:
        """Our own public key and those of ``--also``."""
        from edgewise.backends.tuf.repository import load_key, load_public

        return [load_key(self.key).public_key, *(load_public(file) for file in self.also)]

    def successor(
        self,
        current: Builds,
        documents: tuple[bytes, ...],
        *,
        keep: frozenset[str],
        beside: tuple[bytes, ...] = (),
    ) -> BuildsUpload:
        """``current`` and these documents, signed. Raises NeedsPerson for an unknown key."""
        from edgewise.backends.tuf.repository import load_key
        from edgewise.delivery import trust
        from edgewise.delivery.builder import sign_builds
        from edgewise.runtime.clock import SystemClock

        signer = load_key(self.key)
        if trust.key_id(signer.public_key) not in current.keys:
            raise NeedsPerson(
                f"the hub does not know the key in {self.key} as a builder's",
                hint=f"on its machine: `edgewise up --builder-key {self.key.name}.pub`, "
                "or `edgewise key add` while it is stopped",
            )
        self.targets(current)
        now = SystemClock().now()
        return sign_builds(current, signer, documents, now, keep=keep, beside=beside)


def listed_by(current: Builds, builder: Builder | None) -> Mapping[str, TargetFile]:
    """What is listed now, believed as it is when no builder asks."""
    from tuf.api.metadata import Targets

    from edgewise.delivery import trust

    if builder is not None:
        return builder.targets(current)
    if not current.metadata:
        return {}
    return dict(trust.parse(current.metadata, Targets, what="builds.json").signed.targets)


def in_use(client: Client) -> frozenset[str]:
    """Releases that fleets run or move to: these stay in the list however old they are."""
    from edgewise.protocol.api import HubStatus

    fleets = client.get("/v1/status", HubStatus).fleets
    return frozenset({one for fleet in fleets for one in (fleet.stable, fleet.candidate) if one})


def upload(client: Client, make: Callable[[Builds], BuildsUpload | None]) -> bool:
    """Send what ``make`` signs; again on top of what another builder sent meanwhile.

    Returns whether there was something to send. Raises Conflict when it goes on for long.
    """
    for attempt in range(1, _TRIES + 1):
        made = make(client.get("/v1/builds", Builds))
        if made is None:
            return False
        try:
            client.command("/v1/builds", made)
        except Conflict as error:
            if attempt == _TRIES or "does not follow" not in str(error):
                raise
        else:
            return True
    return False
