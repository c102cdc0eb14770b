"""Every kind of document of a fleet repo (docs/fleet-repo.md), as strict structs.

The structs check shape and single values; what needs other documents (references,
cycles, selectors) is checked by ``edgewise.sync``.
"""

from __future__ import annotations

from typing import Final

from edgewise.model.documents.app import App
from edgewise.model.documents.content import Config, OSImage, Secret
from edgewise.model.documents.egress import EgressPolicy
from edgewise.model.documents.federation import FederatedTrustDomain
from edgewise.model.documents.fleet import Fleet
from edgewise.model.documents.identity import WorkloadIdentity
from edgewise.model.documents.inventory import Node, NodeSet, Workspace
from edgewise.model.documents.joining import DeviceList
from edgewise.model.documents.people import RoleBinding
from edgewise.model.documents.policies import (
    AccessPolicy,
    HealPolicy,
    NotificationPolicy,
    RolloutPolicy,
)

Document = (
    Workspace
    | NodeSet
    | Node
    | DeviceList
    | Fleet
    | App
    | Config
    | OSImage
    | Secret
    | WorkloadIdentity
    | FederatedTrustDomain
    | RolloutPolicy
    | AccessPolicy
    | HealPolicy
    | EgressPolicy
    | NotificationPolicy
    | RoleBinding
)

KINDS: Final[dict[str, type[Document]]] = {
    "Workspace": Workspace,
    "NodeSet": NodeSet,
    "Node": Node,
    "DeviceList": DeviceList,
    "Fleet": Fleet,
    "App": App,
    "Config": Config,
    "OSImage": OSImage,
    "Secret": Secret,
    "WorkloadIdentity": WorkloadIdentity,
    "FederatedTrustDomain": FederatedTrustDomain,
    "RolloutPolicy": RolloutPolicy,
    "AccessPolicy": AccessPolicy,
    "HealPolicy": HealPolicy,
    "EgressPolicy": EgressPolicy,
    "NotificationPolicy": NotificationPolicy,
    "RoleBinding": RoleBinding,
}

ACTED_ON: Final = frozenset(
    {
        "Workspace",
        "NodeSet",
        "Node",
        "DeviceList",
        "Fleet",
        "App",
        "Config",
        "Secret",
        "WorkloadIdentity",
        "FederatedTrustDomain",
        "RolloutPolicy",
        "EgressPolicy",
        "RoleBinding",
    }
)
"""Kinds that change what runs; the others are checked, listed and kept for later."""

__all__ = [
    "ACTED_ON",
    "KINDS",
    "AccessPolicy",
    "App",
    "Config",
    "DeviceList",
    "Document",
    "EgressPolicy",
    "FederatedTrustDomain",
    "Fleet",
    "HealPolicy",
    "Node",
    "NodeSet",
    "NotificationPolicy",
    "OSImage",
    "RoleBinding",
    "RolloutPolicy",
    "Secret",
    "WorkloadIdentity",
    "Workspace",
]
