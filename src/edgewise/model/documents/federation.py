"""Other organisations' trust domains that workloads may be told to trust."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from edgewise.model.documents.inventory import ApiVersion
from edgewise.model.documents.words import Metadata, Misfit, Strict, TrustDomain
from edgewise.model.names import SpiffeId

HttpsUrl = Annotated[
    str,
    Meta(
        pattern="^https://[A-Za-z0-9.\\[\\]:-]{1,260}(/[!-~]{0,1000})?$(?!\n)",
        extra={"like": "https://spire.partner.example:8443/bundle"},
    ),
]


class BundleEndpoint(Strict, frozen=True, kw_only=True):
    """Where the other organisation publishes its bundle (SPIFFE Federation, section 5)."""

    url: HttpsUrl
    """What to get; looked at as often as the bundle asks for, once a minute to once a day."""
    profile: Literal["https_spiffe", "https_web"] = "https_spiffe"
    """How the server proves itself: with a SPIFFE ID of its own trust domain, or with a
    certificate that the system's roots vouch for."""
    endpoint_spiffe_id: str = field(default="", name="endpointSPIFFEID")
    """With https_spiffe: the server's ID, for example ``spiffe://partner.example/spire/server``."""


class FederatedTrustDomainSpec(Strict, frozen=True, kw_only=True):
    """One foreign trust domain."""

    trust_domain: TrustDomain
    """Its name; workloads name it in ``federatesWith``."""
    bundle_endpoint: BundleEndpoint
    """Where its keys come from."""
    bundle: Annotated[str, Meta(max_length=1 << 20)] = ""
    """Its first bundle, as JWKS text: https_spiffe believes the server by it. It came to you by
    a way that you trust. Newer ones are fetched."""

    def __post_init__(self) -> None:
        endpoint = self.bundle_endpoint
        if endpoint.profile == "https_web":
            return
        try:
            found = SpiffeId.parse(endpoint.endpoint_spiffe_id)
        except ValueError as error:
            raise Misfit(
                "bundleEndpoint", f"https_spiffe needs endpointSPIFFEID: {error}"
            ) from error
        if found.trust_domain != self.trust_domain:
            raise Misfit("bundleEndpoint", f"{found} is not of trust domain {self.trust_domain}")
        if not self.bundle:
            raise Misfit("bundle", "https_spiffe needs the first bundle: how else to believe it")


class FederatedTrustDomain(
    Strict, frozen=True, kw_only=True, tag_field="kind", tag="FederatedTrustDomain"
):
    """Another organisation's trust domain. The hub fetches its keys and tells every node."""

    api_version: ApiVersion
    metadata: Metadata
    spec: FederatedTrustDomainSpec
