"""``identity.json``: what a node knows about its own identity without parsing certificates.

The resident agent reads it, so nothing here needs more than msgspec.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

import msgspec

from edgewise.identity.names import upstream_of
from edgewise.identity.rotation import Validity
from edgewise.model.names import SpiffeId

FILE: Final = "identity.json"
TPM_FILE: Final = "tpm.json"
"""Where it stands that the enrolment key is in a TPM (identity.tpm_node)."""
AT_MOST: Final = 64 << 10


class Card(msgspec.Struct, frozen=True):
    """One machine's identity."""

    spiffe_id: str
    hub_id: str
    role: Literal["node", "relay"]
    name: str
    region: str
    urls: tuple[str, ...]
    """Where to sync."""
    serial: str
    """Of the present certificate, lower-case hex."""
    not_before: datetime
    not_after: datetime
    root: str = ""
    """Hex SHA-256 of the root above the present certificate; empty: not known."""

    @property
    def id(self) -> SpiffeId:
        """The SPIFFE ID as a value."""
        return SpiffeId.parse(self.spiffe_id)

    @property
    def validity(self) -> Validity:
        """Of the present certificate."""
        return Validity(self.not_before, self.not_after)

    def outdated(self, roots: tuple[str, ...]) -> bool:
        """Whether another root signs now than the one above our certificate.

        ``roots``: fingerprints of those that we trust, the one that signs now first.
        """
        known = self.root != "" or len(roots) > 1  # cards from before do not say
        return known and self.root != roots[0]

    def expects(self, peer: SpiffeId) -> bool:
        """Whether this machine may talk to ``peer``: for ``net.client.Endpoint.expect``."""
        return upstream_of(self.id, self.hub_id, peer)
