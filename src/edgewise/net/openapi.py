"""The API's description, OpenAPI 3.1, made from the routes that are served.

Source: OpenAPI Specification 3.1.1; schemas are JSON Schema 2020-12, as msgspec makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from edgewise.net.problems import CONTENT_TYPE, statuses_of
from edgewise.net.routes import NoQuery, Route
from edgewise.protocol.api import Problem

_REF = "#/components/schemas/{name}"
_ALWAYS = {400: "BadUsage", 500: "Internal"}


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """The whole document."""
    kinds: list[Any] = [Problem]
    for route in routes:
        kinds += [kind for kind in (route.request, _json_response(route)) if kind is not None]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    by_kind = list(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in sorted(routes, key=lambda r: (r.path, r.method)):
        shown = route.path.replace("*}", "}")
        paths.setdefault(shown, {})[route.method.lower()] = _operation(route, by_kind)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Edgewise hub",
            "version": "v1",
            "description": "Errors are RFC 9457 problem documents (docs/errors.md). Callers "
            "prove themselves with a client certificate, people also with an API token. x-role is "
            "what a person needs, over the whole organisation or (x-reach: nodes) over the nodes "
            "that the call is about (docs/people.md).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {
                "certificate": {"type": "mutualTLS"},
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API token (docs/people.md): `ewt_...`",
                },
            },
        },
    }


def _json_response(route: Route) -> Any:
    return None if route.response is bytes else route.response


def _schema(kind: Any, by_kind: list[tuple[Any, Any]]) -> Any:
    return next(schema for known, schema in by_kind if known is kind or known == kind)


def _operation(route: Route, by_kind: list[tuple[Any, Any]]) -> dict[str, Any]:
    words = [part for part in route.path.strip("/").split("/")[1:] if part]
    name = "_".join(word.strip("{}*").replace(".", "_") for word in words)
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}_{name}",
        "summary": route.summary,
        "x-callers": sorted(route.allow),
        "security": _security(route),
        "responses": _responses(route, by_kind),
    }
    if route.needs is not None:
        operation["x-role"] = route.needs
        operation["x-reach"] = route.reach
    if route.description:
        operation["description"] = route.description
    if parameters := [*_path_parameters(route), *_query_parameters(route)]:
        operation["parameters"] = parameters
    if route.request is not None:
        schema = _schema(route.request, by_kind)
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    elif route.streams:
        operation["requestBody"] = {"required": True, "content": {route.accepts: {}}}
    return operation


def _security(route: Route) -> list[dict[str, list[str]]]:
    if "anyone" in route.allow:
        return []
    ways: list[dict[str, list[str]]] = [{"certificate": []}]
    return [*ways, {"token": []}] if route.needs is not None and route.tokens else ways


def _responses(route: Route, by_kind: list[tuple[Any, Any]]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    if route.response is None:
        responses["204"] = {"description": "Done"}
    elif route.content_type == "application/json":
        schema = _schema(route.response, by_kind)
        content = {"application/json": {"schema": schema}}
        responses[str(route.status)] = {"description": "The answer", "content": content}
    elif route.response is bytes:
        responses["200"] = {"description": "The bytes", "content": {"*/*": {}}}
        responses["206"] = {"description": "A range of them", "content": {"*/*": {}}}
        responses["304"] = {"description": "Not changed"}
        responses["416"] = {"description": "There is no such range"}
    else:
        content = {route.content_type: {"schema": {"type": "string"}}}
        responses["200"] = {"description": "A stream", "content": content}
    for status in route.also:
        same = responses[str(route.status)] if status != 204 else {"description": "No news"}
        responses[str(status)] = same
    problem = {"$ref": _REF.format(name="Problem")}
    for status, names in sorted(_problems(route).items()):
        content = {CONTENT_TYPE: {"schema": problem}}
        responses[str(status)] = {"description": names, "content": content}
    return responses


def _problems(route: Route) -> dict[int, str]:
    found = dict(_ALWAYS) | statuses_of(route.errors)
    found[503] = "TryLater"
    if "anyone" not in route.allow:
        found[401] = "Unauthenticated"
        found.setdefault(403, "Forbidden")
    if route.request is not None or route.streams:
        found[413] = "TooLarge"
    return found


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1},
        }
        for name in route.parameters
    ]


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    if route.query is NoQuery:
        return []
    _, components = msgspec.json.schema_components([route.query], ref_template=_REF)
    fields = components[route.query.__name__]["properties"]
    return [
        {"name": name, "in": "query", "required": False, "schema": _bounded(name, schema)}
        for name, schema in fields.items()
    ]


def _bounded(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    if name == "limit":
        return {**schema, "minimum": 1, "maximum": 1000}
    return schema
