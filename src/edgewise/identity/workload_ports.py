"""What the Workload API and the egress gateway of a node share.

Who a local caller is by the kernel's word, what it may be, and the SVID for that. Standard
library only: both run in the resident agent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from edgewise.protocol.bundles import TrustBundles


@dataclass(frozen=True, slots=True)
class Caller:
    """A process on this node, by facts that it cannot choose itself."""

    pid: int
    uid: int
    gid: int
    started: int = 0
    """Clock ticks since boot (proc_pid_stat(5), field 22): tells a reused pid apart."""
    executable: str = ""
    """Its program, if that very file lies at this path on the node; else empty."""
    sha256: str = ""
    """Digest of that file; empty unless a selector asks for it."""
    app: str = ""
    """The App of this node whose supervisor started it; empty for none."""
    unit: str = ""
    """Its systemd unit; empty for none."""
    container: str = ""
    """Its container's ID; empty for none."""
    user: str = ""
    """Name of ``uid``; empty unless a selector asks for it."""
    group: str = ""
    """Name of ``gid``; empty unless a selector asks for it."""


@dataclass(frozen=True, slots=True)
class LocalSvid:
    """An X509-SVID with its key, held in memory only."""

    spiffe_id: str
    chain: tuple[bytes, ...]
    """DER, leaf first, without the root."""
    key: bytes = field(repr=False)
    """DER PKCS#8."""
    not_before: datetime
    not_after: datetime
    hint: str = ""
    """Which of several identities this is, for the workload (Workload API, ``hint``)."""


class LocalSvids(Protocol):
    """The identities of this node's workloads, kept fresh."""

    @property
    def version(self) -> int:
        """Grows whenever an SVID, a bundle or a registration is replaced."""

    async def newer_than(self, version: int) -> int:
        """Wait until ``version`` is larger than this; returns it. None is ever missed."""

    def entitled(self, caller: Caller) -> tuple[str, ...]:
        """SPIFFE IDs that this caller may have, the default one first; empty for none."""

    async def x509(self, spiffe_id: str) -> LocalSvid:
        """The present SVID. Raises TryLater while there is none yet."""

    def bundles(self) -> TrustBundles | None:
        """What to trust; None before the hub has said."""
