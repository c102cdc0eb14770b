"""Envoy's secret discovery service, for the identities of the Envoy that calls.

Source: "xDS REST and gRPC protocol" (envoyproxy.io), state of the world. A request with the nonce
of the last answer accepts it or says why not; one with other names wants another answer. The
header of the Workload API is not asked for: Envoy does not send it by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

from edgewise.identity import sds_messages as sds
from edgewise.identity.protobuf import Malformed
from edgewise.identity.sds_messages import Discovery
from edgewise.model.errors import BadUsage, Forbidden, TryLater
from edgewise.net.workload.grpc import Call, Method
from edgewise.net.workload.serving import Serving, domain_of

_SERVICE = "/envoy.service.secret.v3.SecretDiscoveryService"


def sds_methods(serving: Serving) -> Mapping[str, Method]:
    """Path to method. Envoy's ``DeltaSecrets`` is not served: secrets are few and small."""
    return {
        f"{_SERVICE}/StreamSecrets": partial(_stream, serving),
        f"{_SERVICE}/FetchSecrets": partial(_fetch, serving),
    }


async def _fetch(serving: Serving, call: Call) -> None:
    wanted = _read(await call.message())
    secrets = await _secrets(serving, call, wanted.names)
    if secrets is None:
        raise TryLater("the identity is not there yet")
    await call.send(sds.response(secrets, str(serving.supply.version), ""))


async def _stream(serving: Serving, call: Call) -> None:
    """Two things move it: what Envoy asks, and what becomes new here."""
    asking = aiter(call.messages())
    waiting: asyncio.Future[bytes] = asyncio.ensure_future(_next(asking))
    version, count = -1, 0
    wanted: Discovery | None = None
    sent: tuple[bytes, ...] | None = None
    changed: asyncio.Future[int] | None = None
    try:
        while True:
            parties: set[asyncio.Future[Any]] = {waiting} | ({changed} if changed else set())
            await asyncio.wait(parties, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                data = waiting.result()
                if not data:
                    return
                waiting = asyncio.ensure_future(_next(asking))
                request = _read(data)
                if request.refused:
                    serving.log.event("Envoy refused", "warning", problem=request.refused)
                if wanted is not None and request.names == wanted.names:
                    continue  # it has taken the last answer, or not: another comes with a change
                wanted, sent = request, None
            if changed is not None and changed.done():
                version, changed = changed.result(), None
            if changed is None:
                version = max(version, serving.supply.version)
                changed = asyncio.ensure_future(serving.supply.newer_than(version))
            secrets = await _secrets(serving, call, wanted.names) if wanted else None
            if secrets is not None and secrets != sent:
                count += 1
                await call.send(sds.response(secrets, str(version), str(count)))
                sent = secrets
    finally:
        waiting.cancel()
        if changed is not None:
            changed.cancel()


async def _next(asking: AsyncIterator[bytes]) -> bytes:
    """The next message; empty at the end (an empty request asks for nothing, and ends too)."""
    return await anext(asking, b"")


def _read(data: bytes) -> Discovery:
    try:
        return sds.read_discovery(data)
    except Malformed as error:
        raise BadUsage(f"the request is malformed: {error}") from error


async def _secrets(
    serving: Serving, call: Call, names: tuple[str, ...]
) -> tuple[bytes, ...] | None:
    """The Secrets of these names; None while one of them is not there yet."""
    _, ids = await serving.entitled(call.stream, "Secrets")
    try:
        domains = serving.trusted(ids)
    except TryLater:
        return None
    svids = {svid.spiffe_id: svid for svid in await serving.svids(ids)}
    own = domain_of(ids[0])
    found = []
    for name in names or (*ids, *(f"spiffe://{domain}" for domain in sorted(domains))):
        spiffe_id = ids[0] if name == sds.DEFAULT else name
        domain = own if name == sds.ROOTS else name.removeprefix("spiffe://")
        if spiffe_id in ids:
            if spiffe_id not in svids:
                return None
            found.append(sds.certificate(name, svids[spiffe_id]))
        elif name == sds.ALL:
            found.append(sds.all_roots(name, {d: b.x509 for d, b in domains.items()}))
        elif domain in domains:
            found.append(sds.roots(name, domains[domain].x509))
        else:
            raise Forbidden(
                f"there is no secret {name[:200]!r} for this caller",
                hint=f"there is {sds.DEFAULT}, {sds.ROOTS}, {sds.ALL} and {', '.join(ids)}",
            )
    return tuple(found)
