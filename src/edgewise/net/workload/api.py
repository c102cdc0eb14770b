"""The SPIFFE Workload API: five methods, each for the identities of whoever calls.

Source: SPIFFE Workload Endpoint and Workload API specifications. Streams stay open and get every
change; while an SVID cannot be had they wait for the next one instead of ending, and they end
with PermissionDenied when the caller has no identity any more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

from edgewise.identity import workload_messages as messages
from edgewise.identity.jwt_check import check
from edgewise.identity.protobuf import Malformed
from edgewise.model.errors import BadUsage, Forbidden, TryLater
from edgewise.net.workload.grpc import Call, Method
from edgewise.net.workload.http2 import Stream
from edgewise.net.workload.serving import Serving, domain_of

HEADER: Final = "workload.spiffe.io"
"""Every call must say ``true`` here: no request that a browser or proxy was talked into does."""


def workload_methods(serving: Serving) -> Mapping[str, Method]:
    """Path to method."""
    methods: dict[str, Callable[[Serving, Call], Awaitable[None]]] = {
        "FetchX509SVID": _x509_svids,
        "FetchX509Bundles": _x509_bundles,
        "FetchJWTSVID": _jwt_svids,
        "FetchJWTBundles": _jwt_bundles,
        "ValidateJWTSVID": _validate,
    }
    return {
        f"/SpiffeWorkloadAPI/{name}": partial(_checked, method, serving)
        for name, method in methods.items()
    }


async def _checked(
    method: Callable[[Serving, Call], Awaitable[None]], serving: Serving, call: Call
) -> None:
    if call.stream.headers.get(HEADER) != "true":
        raise BadUsage(
            "security header missing from request",
            hint=f"every call of the Workload API carries the metadata {HEADER}: true",
        )
    try:
        await method(serving, call)
    except Malformed as error:
        raise BadUsage(f"the request is malformed: {error}") from error


async def _watch(
    serving: Serving, call: Call, make: Callable[[tuple[str, ...]], Awaitable[bytes | None]]
) -> None:
    """Send what ``make`` makes for the caller's IDs, now and whenever it is another."""
    stream = call.stream
    await call.message()
    version, last = -1, b""
    while True:
        version = await serving.supply.newer_than(version)
        _, ids = await serving.entitled(stream, _name(stream))
        message = await make(ids)
        if message is not None and message != last:
            await call.send(message)
            last = message


async def _x509_svids(serving: Serving, call: Call) -> None:
    async def make(ids: tuple[str, ...]) -> bytes | None:
        svids = await serving.svids(ids)
        bundles = _roots(serving, ids)
        if not svids or bundles is None:
            return None
        own = {domain_of(svid.spiffe_id) for svid in svids}
        others = {domain: data for domain, data in bundles.items() if domain not in own}
        return messages.x509_svids(svids, bundles, others)

    await _watch(serving, call, make)


async def _x509_bundles(serving: Serving, call: Call) -> None:
    async def make(ids: tuple[str, ...]) -> bytes | None:
        bundles = _roots(serving, ids)
        return messages.x509_bundles(bundles) if bundles is not None else None

    await _watch(serving, call, make)


async def _jwt_bundles(serving: Serving, call: Call) -> None:
    async def make(ids: tuple[str, ...]) -> bytes | None:
        try:
            found = serving.trusted(ids)
        except TryLater:
            return None
        return messages.jwt_bundles({domain: messages.jwks(b) for domain, b in found.items()})

    await _watch(serving, call, make)


def _roots(serving: Serving, ids: tuple[str, ...]) -> dict[str, bytes] | None:
    try:
        found = serving.trusted(ids)
    except TryLater:
        return None
    return {domain: messages.roots(bundle) for domain, bundle in found.items()}


async def _jwt_svids(serving: Serving, call: Call) -> None:
    wanted = messages.read_wanted_jwt(await call.message())
    _, ids = await serving.entitled(call.stream, _name(call.stream))
    if wanted.spiffe_id:
        if wanted.spiffe_id not in ids:
            raise Forbidden(
                f"the caller is not {wanted.spiffe_id[:200]!r}", hint=f"it is {', '.join(ids)}"
            )
        ids = (wanted.spiffe_id,)
    found = []
    for spiffe_id in ids:
        svid = await serving.supply.jwt(spiffe_id, wanted.audience)
        found.append((svid, serving.supply.hint(spiffe_id)))
    await call.send(messages.jwt_svids(found))


async def _validate(serving: Serving, call: Call) -> None:
    audience, token = messages.read_validation(await call.message())
    _, ids = await serving.entitled(call.stream, _name(call.stream))
    spiffe_id, claims = check(token, audience, serving.trusted(ids), serving.clock.now())
    await call.send(messages.validated(spiffe_id, claims))


def _name(stream: Stream) -> str:
    return stream.headers.get(":path", "").rpartition("/")[2]
