"""RoleBinding: who may do what, on which nodes."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from edgewise.model.documents.inventory import ApiVersion
from edgewise.model.documents.words import Metadata, Name, Strict, Subject
from edgewise.model.labels import Selector


class RoleBindingSpec(Strict, frozen=True, kw_only=True):
    """A role, and who has it where."""

    role: Literal["viewer", "operator", "approver", "admin"]
    """``operator`` and ``approver`` include ``viewer``; ``admin`` includes all."""
    subjects: Annotated[tuple[Subject, ...], Meta(min_length=1, max_length=1000)]
    """Who: users by the name they log in with, groups of local users or of the OIDC claim."""
    selector: Selector = Selector()
    """On which nodes; all when left out. What concerns the whole organisation (pushing,
    artifacts, tokens, the audit log) takes a binding without selector and fleets."""
    fleets: Annotated[tuple[Name, ...], Meta(max_length=1000)] = ()
    """Only on nodes of these fleets."""


class RoleBinding(Strict, frozen=True, kw_only=True, tag_field="kind", tag="RoleBinding"):
    """Who may do what, on which nodes. Changing one takes an administrator."""

    api_version: ApiVersion
    metadata: Metadata
    spec: RoleBindingSpec
