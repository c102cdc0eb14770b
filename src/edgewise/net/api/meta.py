"""About the API itself: is the hub alive, and what can be called."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from edgewise import __version__
from edgewise.net.openapi import describe
from edgewise.net.routes import ANYONE, Bytes, Call, Route


class Health(msgspec.Struct, frozen=True):
    """For load balancers; says nothing about the fleet."""

    status: Literal["ok"]
    version: str


def meta_routes(others: Sequence[Route]) -> list[Route]:
    """GET /v1/health and GET /v1/openapi.json, which describes ``others`` and itself."""

    async def health(call: Call[None]) -> Health:
        return Health("ok", __version__)

    async def openapi(call: Call[None]) -> Bytes:
        return Bytes(document)

    routes = [
        Route("GET", "/v1/health", "The hub answers", health, ANYONE, response=Health),
        Route(
            "GET",
            "/v1/openapi.json",
            "This description",
            openapi,
            ANYONE,
            response=dict[str, Any],
        ),
    ]
    document = json.dumps(describe([*others, *routes])).encode()
    return routes
