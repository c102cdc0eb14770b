"""Bring a bundle onto a node: check it, stage its release, hand the order to the agent.

In a process of its own, beside a running agent or without one: the trust directory and the
store have locks. The agent finds the order in its state directory, at once when it is told by
SIGHUP, else when it starts, and decides as it does about every other word of the hub: windows,
probation and the way back stay as they are.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgewise.backends.files import recompress
from edgewise.backends.files.bundle import Bundle
from edgewise.backends.files.node_store import NodeStore
from edgewise.backends.tuf.client import NodeTrust
from edgewise.delivery import on_agent as delivery
from edgewise.delivery.on_agent import Terms
from edgewise.delivery.ports import Verified
from edgewise.delivery.ways import Prices
from edgewise.host.tpm import open_tpm
from edgewise.identity.on_agent import MachineIdentity
from edgewise.model.errors import NeedsPerson, TryLater
from edgewise.protocol.codec import encode
from edgewise.protocol.media import ORDER
from edgewise.protocol.sync import SyncReply
from edgewise.roles.worker import this_platform
from edgewise.runtime.clock import Clock
from edgewise.runtime.durable import disk_error, write_durably


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of a bundle."""

    verified: Verified
    staged: bool
    """False after a dry run."""
    told: int
    """Process id of the agent that was told; 0: none runs."""


async def import_on_node(
    state: Path,
    bundle: Bundle,
    clock: Clock,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    dry_run: bool = False,
) -> Imported:
    """Verify and stage; repeating it is harmless.

    Raises NeedsPerson when this is no node, the disk is too small or the node is not in the
    bundle; Untrusted for what does not verify or is older than what the node has seen; TryLater
    for a bundle that has expired or is not whole. What runs is not touched by any of it.
    """
    identity = MachineIdentity(state / "identity", open_tpm)
    if not identity.credentials.exist:
        raise NeedsPerson(
            f"{state} holds no joined node", hint="join it first, or name its directory: --state"
        )
    if os.stat(state).st_uid != os.geteuid():
        raise NeedsPerson(
            f"{state} belongs to user {os.stat(state).st_uid}, whose agent could not read what you"
            " write",
            hint="run this as that user",
        )
    node = identity.card().name
    checks = NodeTrust(state / "trust", identity.tuf_root, node=node, clock=clock)
    order = SyncReply(bundle.record(node), bundle.metadata())
    order.metadata.pop("timestamp.json", None)  # of the export; the order stands for it
    verified = await checks.look_at(order.metadata, order.record)
    if dry_run or verified.channel is None or verified.record is None:
        return Imported(verified, False, 0)
    await checks.take(order.metadata, order.record)
    release = verified.channel.stable
    await delivery.fetch(
        release,
        verified.record,
        _terms(bundle, progress),
        trust=checks,
        store=NodeStore(state),
        source=bundle,
    )
    try:
        write_durably(state / ORDER, encode(order), mode=0o600)
    except OSError as error:
        raise disk_error(error, state) from error
    return Imported(verified, True, _tell(state))


def _terms(bundle: Bundle, progress: Callable[[int, int], None]) -> Terms:
    """A stick has no round trips, and nobody else to ask for what is not on it."""
    there = {digest for digest, _ in bundle.objects()}
    return Terms(
        this_platform(),
        progress,
        prices=Prices(request=0),
        absent=lambda sha256: sha256 not in there,
        recompression=recompress,
    )


def _tell(state: Path) -> int:
    """Ask the agent to look; its process id, or 0 when none runs."""
    try:
        said = msgspec.json.decode((state / "ready.json").read_bytes())
        pid = int(said["pid"])
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError, KeyError, TypeError, msgspec.DecodeError):
        return 0
    if b"edgewise.roles.agent" not in command:
        return 0  # a left-over file: the number is another process's now
    try:
        os.kill(pid, signal.SIGHUP)
    except ProcessLookupError:
        return 0
    except PermissionError as error:
        raise TryLater(
            f"the agent with process id {pid} cannot be told", hint="restart it"
        ) from error
    return pid
