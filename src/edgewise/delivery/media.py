"""Orders on removable media: what the hub signs, and what a node checks. Pure.

Laws: nothing is believed but signatures that lead to a root which the node trusts already; the
newest targets that are known say whose signatures count, so that a key which was taken away
stays away; the order's own life is what counts, not that of the metadata beside it; a release
is named by the hub and signed by a builder, as everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tuf.api.metadata import Root, Targets

from edgewise.delivery import trust
from edgewise.model.errors import BadUsage, TryLater, Untrusted
from edgewise.model.names import Digest
from edgewise.protocol import limits
from edgewise.protocol.channel import Channel, Signed
from edgewise.protocol.codec import decode
from edgewise.protocol.content import release_target
from edgewise.protocol.media import MEDIA, Media

LONGEST: Final = timedelta(days=3 * 365)
"""A key that was stolen can speak through old media for so long where nobody hears of it."""
SHORTEST: Final = timedelta(hours=1)
_TARGETS: Final = re.compile(r"([1-9][0-9]{0,8})\.targets\.json")


@dataclass(frozen=True, slots=True)
class Offer:
    """An order whose signatures hold. Whether it is news is for whoever knows what was seen."""

    media: Media
    builds: Targets
    keys: Mapping[str, Ed25519PublicKey]
    """Those that sign channels and records, by our identifier."""
    length: int
    """Bytes of the release document."""

    @property
    def channel(self) -> Channel:
        """What the node shall run."""
        return self.media.channel


def validity(seconds: float) -> timedelta:
    """How long an order shall be good. Raises BadUsage for too short and too long a time."""
    if not SHORTEST.total_seconds() <= seconds <= LONGEST.total_seconds():
        raise BadUsage(
            f"a bundle cannot be good for {seconds:.0f} s",
            hint=f"from {SHORTEST.total_seconds():.0f} s to {LONGEST.days} days",
        )
    return timedelta(seconds=seconds)


def open_offer(files: Mapping[str, bytes], root: bytes, own_targets: bytes | None) -> Offer:
    """Check an order and the metadata beside it, starting from a ``root`` that is trusted.

    ``own_targets`` are those that the node knows, if any. Raises Untrusted for whatever does
    not verify.
    """
    trusted = trust.parse(root, Root, what="root.json")
    for _ in range(256):
        following = files.get(f"{trusted.signed.version + 1}.root.json")
        if following is None:
            break
        trusted = trust.follow_root(trusted, following)
    targets = _newest_targets(files, trusted.signed, own_targets)
    if MEDIA not in files:
        raise Untrusted(f"there is no {MEDIA}")
    signed = decode(files[MEDIA], Signed, what=MEDIA)
    keys = trust.delegated_keys(targets, "channels")
    trust.check_signed(signed, keys, purpose="media/1")
    media = decode(signed.payload, Media, what=MEDIA)
    data = files.get(f"{media.builds}.builds.json", b"")
    if Digest.of(data).sha256 != media.builds_sha256:
        raise Untrusted(f"{media.builds}.builds.json is not the one that was exported")
    builds = trust.parse(data, Targets, what="builds.json")
    trust.verify(targets, "builds", builds)
    release = media.channel.stable
    target = builds.signed.targets.get(release_target(release))
    if target is None or trust.target_digest(target) != release:
        raise Untrusted(f"no builder signed release {release[:12]}")
    if release in media.channel.quarantined:
        raise Untrusted(f"release {release[:12]} is in quarantine")
    return Offer(media, builds.signed, keys, target.length)


def check_time(media: Media, now: datetime) -> None:
    """Raises TryLater for an order that is no longer good."""
    if now >= media.expires:
        raise TryLater(
            f"this bundle was good until {media.expires:%Y-%m-%d %H:%M}Z, it is"
            f" {now:%Y-%m-%d %H:%M}Z now",
            hint="export a new one, or set this machine's clock",
        )


def check_forward(offer: Offer, stable: str) -> None:
    """Raises Untrusted when it leads back behind ``stable``, which the node was told before.

    Builders number what they sign: a release that came to the list earlier is the older one.
    """
    targets = offer.builds.targets
    before, after = (targets.get(release_target(r)) for r in (stable, offer.channel.stable))
    if before is None or after is None or stable in offer.channel.quarantined:
        return
    if trust.added_in(after) < trust.added_in(before):
        raise Untrusted(
            f"release {offer.channel.stable[:12]} is older than {stable[:12]}, which this node"
            " was given before",
            hint="export the fleet's present release",
        )


def _newest_targets(files: Mapping[str, bytes], root: Root, own: bytes | None) -> Targets:
    found = [(int(m[1]), data) for name, data in files.items() if (m := _TARGETS.fullmatch(name))]
    newest: Targets | None = None
    if own is not None:
        try:
            known = trust.parse(own, Targets, what="targets.json")
            trust.verify(root, "targets", known)
            newest = known.signed
        except Untrusted:
            newest = None  # torn by a power cut, or signed by a key that is gone
    for version, data in found:
        if len(data) > limits.TUF_METADATA:
            raise Untrusted(f"targets.json has {len(data)} bytes")
        offered = trust.parse(data, Targets, what="targets.json")
        if offered.signed.version != version:
            raise Untrusted(f"{version}.targets.json holds version {offered.signed.version}")
        trust.verify(root, "targets", offered)
        if newest is None or version > newest.version:
            newest = offered.signed
    if newest is None:
        raise Untrusted("there is no targets.json")
    return newest
