"""The documents that say who may do what, and whether a push changes them. Pure.

Who may push can change everything that runs, so what decides about pushing itself is apart:
RoleBindings, FederatedTrustDomains, and the Workspace but for its variables. Only documents
with the right shape count, because a revision with any other is never acted on: what a broken
file takes away or brings is seen by the push that does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from edgewise.model.documents import Document, FederatedTrustDomain, RoleBinding, Workspace
from edgewise.model.roles import Binding
from edgewise.protocol.codec import encode
from edgewise.sync.parse import Sourced, parse_file

YAML: Final = (".yaml", ".yml")


def bindings(documents: Mapping[str, Sourced]) -> tuple[Binding, ...]:
    """RoleBindings as the hub asks them, by name."""
    return tuple(
        _binding(where.parsed.value)
        for _, where in sorted(documents.items())
        if isinstance(where.parsed.value, RoleBinding)
    )


def governing(files: Iterable[bytes]) -> dict[tuple[str, str], tuple[bytes, ...]]:
    """(kind, name) to what the documents of these files say, in canonical form."""
    found: dict[tuple[str, str], list[bytes]] = {}
    for data in files:
        for document in parse_file(data).documents:
            if (said := _governs(document.value)) is not None:
                found.setdefault((document.kind, document.name), []).append(said)
    return {key: tuple(sorted(said)) for key, said in found.items()}


def signers_of(files: Iterable[bytes]) -> frozenset[str]:
    """Files that say whose commits are trusted, as the Workspaces in ``files`` name them."""
    return frozenset(
        document.value.spec.verification.allowed_signers
        for data in files
        for document in parse_file(data).documents
        if isinstance(document.value, Workspace)
    )


def changed(before: Iterable[bytes], after: Iterable[bytes]) -> tuple[str, ...]:
    """``RoleBinding/berlin``: what governs and differs between two sets of YAML files."""
    old, new = governing(before), governing(after)
    return tuple(
        f"{kind}/{name}"
        for kind, name in sorted(old.keys() | new.keys())
        if old.get((kind, name)) != new.get((kind, name))
    )


def _governs(document: Document) -> bytes | None:
    match document:
        case RoleBinding() | FederatedTrustDomain():
            return encode(document.spec)
        case Workspace():
            return encode(msgspec.structs.replace(document.spec, vars={}))
        case _:
            return None


def _binding(document: RoleBinding) -> Binding:
    spec = document.spec
    return Binding(
        document.metadata.name,
        spec.role,
        tuple(s.name for s in spec.subjects if s.kind == "User"),
        tuple(s.name for s in spec.subjects if s.kind == "Group"),
        spec.selector,
        spec.fleets,
    )
