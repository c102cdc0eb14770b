"""What a release means on one node: the file that the agent runs from.

``delivery`` writes it as ``release.json`` beside the deployed trees after everything was
verified; the supervisor reads it at every start, so that it needs neither network nor
cryptography to run what is installed.
"""

from __future__ import annotations

import msgspec

from edgewise.protocol.content import (
    FilesConfig,
    NodeSettings,
    NotActedOn,
    ProcessApp,
    SealedSecret,
    WorkloadRegistration,
)
from edgewise.protocol.egress import EgressRules
from edgewise.protocol.report import Traffic


class InstalledApp(msgspec.Struct, frozen=True):
    """An app with the tree that was chosen for this node's platform."""

    part: str
    """Digest of the part: when it is unchanged, the app is not restarted."""
    app: ProcessApp
    tree: str
    """Digest of the tree manifest."""
    directory: str
    """Where the tree is deployed, relative to the release's directory: ``apps/<name>``."""


class InstalledConfig(msgspec.Struct, frozen=True):
    """A config as compiled for this node."""

    part: str
    config: FilesConfig


class InstalledSecret(msgspec.Struct, frozen=True):
    """A secret; ``sealed`` is the digest of the object in the store that this node can open."""

    part: str
    secret: SealedSecret
    sealed: str


class InstalledEgress(msgspec.Struct, frozen=True):
    """Where the node's apps may connect to."""

    part: str
    rules: EgressRules


class InstalledIdentity(msgspec.Struct, frozen=True):
    """A WorkloadIdentity; an app's own identity is in the app."""

    part: str
    registration: WorkloadRegistration


class Installed(msgspec.Struct, frozen=True):
    """Everything one node runs under one release."""

    release: str
    node: str
    platform: str
    apps: tuple[InstalledApp, ...] = ()
    configs: tuple[InstalledConfig, ...] = ()
    secrets: tuple[InstalledSecret, ...] = ()
    egress: InstalledEgress | None = None
    identities: tuple[InstalledIdentity, ...] = ()
    not_acted_on: tuple[NotActedOn, ...] = ()
    settings: NodeSettings = NodeSettings()
    bytes_fetched: int = 0
    """Bytes that travelled to install it."""
    bytes_full: int = 0
    """Bytes a full fetch would have taken."""
    traffic: Traffic = Traffic()
    """How the bytes came."""
    schema: int = 1

    def parts(self) -> frozenset[tuple[str, str, str]]:
        """(kind, name, digest) of everything it runs: equal sets mean nothing to do."""
        return frozenset(
            [("app", a.app.name, a.part) for a in self.apps]
            + [("config", c.config.name, c.part) for c in self.configs]
            + [("secret", s.secret.name, f"{s.part} {s.sealed}") for s in self.secrets]
            + [("identity", i.registration.name, i.part) for i in self.identities]
            + ([("egress", self.egress.rules.name, self.egress.part)] if self.egress else [])
        )

    def registrations(self) -> tuple[WorkloadRegistration, ...]:
        """Every workload identity: those of apps first."""
        own = (a.app.identity for a in self.apps)
        return (
            *(i for i in own if isinstance(i, WorkloadRegistration)),
            *(i.registration for i in self.identities),
        )

    def changed_since(self, old: Installed | None) -> tuple[str, ...]:
        """Parts that differ, came or went, as ``app/hello``; for receipts and people."""
        differing = self.parts() ^ (old.parts() if old else frozenset())
        return tuple(sorted({f"{kind}/{name}" for kind, name, _ in differing}))


def without_traffic(installed: Installed) -> Installed:
    """What was installed, without what it took: to compare."""
    return msgspec.structs.replace(installed, bytes_fetched=0, bytes_full=0, traffic=Traffic())
