"""How the CLI finds its hub: the context file that ``edgewise up`` writes.

``operator/context.json`` in the hub's data directory, also reached by ``--context FILE``,
the variable EDGEWISE_CONTEXT, or ``~/.edgewise/context.json`` (which may be a link to it).
"""

from __future__ import annotations

from datetime import datetime

import msgspec


class OperatorContext(msgspec.Struct, frozen=True, omit_defaults=True):
    """One hub and one person. File names are relative to the context file's folder."""

    url: str
    """``https://host:port`` of the hub."""
    organisation: str
    user: str
    certificate: str = "user.pem"
    """PEM chain of the person's SVID, leaf first."""
    key: str = "user.key"
    roots: str = "roots.pem"
    hub_id: str = ""
    """The hub's SPIFFE ID; empty: ``spiffe://hub.<organisation>/hub``."""
    age_recipient: str = ""
    """``age1...``: secrets in the fleet repo are encrypted to it (`edgewise secret seal`)."""
    data: str = ""
    """The hub's data directory when it is on this machine; for `edgewise doctor`."""
    issued: datetime | None = None
    """When the certificate was made; None for the administrator's, which the hub keeps."""
    expires: datetime | None = None
    """When it ends. It is renewed at half of its life, by whatever command runs then."""
    login_until: datetime | None = None
    """When a person has to log in again."""

    @property
    def hub(self) -> str:
        """The SPIFFE ID that the hub must prove."""
        return self.hub_id or f"spiffe://hub.{self.organisation}/hub"
