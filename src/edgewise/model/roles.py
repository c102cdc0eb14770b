"""What people may do: four roles, and who has which of them where.

``operator`` and ``approver`` do not include each other, so that an organisation can ask for
two people: one who changes what runs, and one who agrees.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from edgewise.model.labels import Selector

Role = Literal["viewer", "operator", "approver", "admin"]

INCLUDED: Final[dict[Role, frozenset[Role]]] = {
    "viewer": frozenset({"viewer"}),
    "operator": frozenset({"operator", "viewer"}),
    "approver": frozenset({"approver", "viewer"}),
    "admin": frozenset({"admin", "operator", "approver", "viewer"}),
}
"""What each role may do besides its own."""

ADMIN_NAME: Final = "admin"
"""The operator that ``edgewise up`` makes: an administrator whatever the bindings say, so
that no mistake in git can lock everybody out. Nobody else can have the name."""


class Binding(msgspec.Struct, frozen=True, omit_defaults=True):
    """These people have this role on these nodes."""

    name: str
    role: Role
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    selector: Selector = Selector()
    """Which nodes, by label; empty: all."""
    fleets: tuple[str, ...] = ()
    """Only nodes of these fleets; empty: of any or none."""
