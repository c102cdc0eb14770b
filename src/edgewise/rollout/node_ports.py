"""What the node half needs from the outside. Apart from ``ports``: a node loads no hub rules."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import msgspec

from edgewise.protocol.channel import Channel, NodeRecord, Signed
from edgewise.protocol.installed import Installed
from edgewise.protocol.report import AppStatus, Health, Receipt
from edgewise.protocol.sync import SyncReply, SyncRequest
from edgewise.rollout.node import Node


@dataclass(frozen=True, slots=True)
class News:
    """What the hub says, after every check."""

    record: NodeRecord | None
    channel: Channel | None
    bundles: int = 0
    """Sequence of trust bundles that are in use now; 0 for no news of them."""
    offline: bool = False
    """The channel came on removable media: ask the hub for its own at the next contact."""


class Line(Protocol):
    """The long poll. Implementation: net.client.SyncLine."""

    async def exchange(self, request: SyncRequest, hold: timedelta) -> SyncReply | None:
        """None: nothing new. Raises TryLater, Untrusted, or what the server says."""


class Crypto(Protocol):
    """What needs cryptography, and so a process of its own on a real node.

    Implementations: roles.agent.WorkerProcess, roles.worker.InProcessWorker.
    """

    async def verify(self, reply: SyncReply) -> News:
        """Check a reply; what is missing in it is fetched. Raises Untrusted, TryLater."""

    async def fetch(
        self, release: str, record: NodeRecord, progress: Callable[[float], None]
    ) -> Installed:
        """Fetch, verify and stage. Cancelling keeps what came. ``progress``: 0 to 1.

        Raises TryLater, Untrusted, NeedsPerson.
        """

    async def sign(self, receipts: tuple[Receipt, ...]) -> tuple[Signed, ...]:
        """Sign with the enrolment key."""


class Releases(Protocol):
    """What is installed. Implementation: backends.files.node_store, testing.node."""

    def staged(self, release: str) -> Installed | None: ...
    def active(self) -> Installed | None: ...
    def previous(self) -> Installed | None: ...
    def activate(self, release: str) -> Installed: ...
    def put_back(self) -> Installed: ...
    def free_bytes(self) -> int: ...
    def collect(self, keep: Collection[str] = ()) -> int: ...


@dataclass(frozen=True, slots=True)
class Look:
    """How the node is now."""

    health: Health
    apps: tuple[AppStatus, ...]
    drifted: tuple[str, ...] = ()
    problem: str = ""
    """What keeps the installed release from being as it should; empty when nothing does."""


class Body(Protocol):
    """What runs a release. Implementation: host.body.NodeBody, testing.node."""

    async def run(self, installed: Installed | None) -> None:
        """Make the machine be as this release says; None: run nothing. Idempotent.

        Raises NeedsPerson when files, secrets or apps cannot be put in place.
        """

    async def update(self, installed: Installed, was: Installed | None) -> None:
        """``run``, as a change: with the hooks of the apps that change. May be repeated."""

    async def settle(self, installed: Installed, was: Installed | None) -> str:
        """Watch the apps that changed until they are good ("") or not (why)."""

    def confirm(self) -> None:
        """The release stays: drop what was kept for going back."""

    def look(self) -> Look: ...
    def in_use(self) -> frozenset[str]:
        """Releases from whose directories something still runs."""


class Kept(msgspec.Struct, frozen=True):
    """What the node half remembers, in one file."""

    node: Node
    record: NodeRecord | None = None
    channel: Channel | None = None
    bundles: int = 0
    """Sequence of the trust bundles in ``identity/bundles.json``."""
    offline: bool = False
    """The channel came on removable media."""


class NodeMemory(Protocol):
    """Implementations: host.memory.NodeFile, testing.node."""

    def load(self) -> Kept | None:
        """Raises NeedsPerson when it is damaged."""

    def save(self, kept: Kept) -> None:
        """On disk when it returns. Raises NeedsPerson when the disk is full."""
