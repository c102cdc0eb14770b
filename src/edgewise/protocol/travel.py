"""What travels when a node goes from some trees to others, as the hub knows it."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

AT_ONCE: Final = 2000
"""Changes that are weighed in one request: 100 apps' variants on some platforms."""
TREES: Final = 200
"""Trees in one change: what a node with 100 apps has and gets."""


class TreeChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Trees that a node has, and those that it shall have, by digest and sorted."""

    had: tuple[str, ...]
    new: tuple[str, ...]


class TreeBytes(msgspec.Struct, frozen=True):
    """Packed bytes for one ``TreeChange``; what several trees share counts once."""

    full: int
    """Everything in the new trees."""
    whole: int
    """What the node lacks, object by object."""
    travels: int
    """The same with the deltas and packs that the hub has: what a node will fetch."""
    assumed_whole: bool = False
    """No delta or pack leads to one of the trees (yet): it was counted object by object."""
    unknown: tuple[str, ...] = ()
    """Trees that the hub does not have; they count nothing here."""


class WeighRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/trees/weigh."""

    changes: tuple[TreeChange, ...]
    """At most 2000."""


class Weighed(msgspec.Struct, frozen=True):
    """Answer of POST /v1/trees/weigh, in the order of the request."""

    bytes: tuple[TreeBytes, ...]


class DeltaLine(msgspec.Struct, frozen=True):
    """One delta or pack that the hub made, makes, or will not make."""

    artifact: str
    version: str
    platforms: tuple[str, ...]
    base_version: str
    """Version that it starts from; empty for a pack."""
    state: Literal["Waiting", "Making", "Ready", "NotWorth", "Failed"]
    """``Ready``: channels name it from their next publication on."""
    tree: str
    base: str
    size: int = 0
    """Bytes of the file."""
    plain: int = 0
    """Packed bytes of the objects that it saves fetching."""
    objects: int = 0
    """How many those are."""
    percent: int = 0
    """How far it is while it is being made."""
    why: str = ""
    sha256: str = ""
    """The file's name, once there is one (``protocol.delta.delta_path``)."""


class DeltaStatus(msgspec.Struct, frozen=True):
    """`edgewise delta ls`: the hub's deltas, the most useful first."""

    deltas: tuple[DeltaLine, ...]
    """At most 2048."""
    disk_bytes: int
    """Of all files."""
    versions: int
    """Deltas come from this many versions before; 0: the hub makes none."""
