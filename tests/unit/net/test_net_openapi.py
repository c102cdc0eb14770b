"""The committed description is that of the routes that are served."""

from __future__ import annotations

import json
from pathlib import Path

from openapi_spec_validator import OpenAPIV31SpecValidator

from edgewise.net.api.everything import description
from edgewise.net.openapi import describe
from edgewise.testing.clock import ManualClock
from edgewise.testing.loopback_hub import LoopbackHub

COMMITTED = Path(__file__).parents[3] / "docs" / "openapi.json"


async def test_docs_openapi_json_is_current_and_valid(tmp_path: Path) -> None:
    hub = await LoopbackHub.start(tmp_path, ManualClock())
    await hub.close()
    document = json.loads(json.dumps(description()))
    assert json.loads(json.dumps(describe(hub.server.routes))) == document
    assert json.loads(COMMITTED.read_text()) == document, "run `make schemas`"
    OpenAPIV31SpecValidator(document).validate()
    identifiers = [op["operationId"] for path in document["paths"].values() for op in path.values()]
    assert len(identifiers) == len(set(identifiers))


def test_a_misspelt_field_in_what_a_person_sends_is_refused_and_not_ignored() -> None:
    # A token request with "selectr" would otherwise give a token for everything.
    found = description()
    checked = set()
    for operations in found["paths"].values():
        for operation in operations.values():
            if "user" not in operation["x-callers"]:
                continue
            for content in operation.get("requestBody", {}).get("content", {}).values():
                if name := content.get("schema", {}).get("$ref", "").rpartition("/")[2]:
                    checked.add(name)
                    assert found["components"]["schemas"][name].get("additionalProperties") is False
    assert {"ApiTokenRequest", "RolloutCommand", "UserRequest"} <= checked
