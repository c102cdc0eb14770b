"""Secrets: sealed for the hub's key, never taken from or shown on the command line."""

from pathlib import Path
from typing import Any

import pyrage
import pytest
import yaml


@pytest.fixture
def key() -> pyrage.x25519.Identity:
    return pyrage.x25519.Identity.generate()


def test_a_sealed_secret_is_a_document_that_only_the_key_opens(
    cli: Any, tmp_path: Path, key: pyrage.x25519.Identity
) -> None:
    (tmp_path / "pw").write_bytes(b"hunter2")
    done = cli(
        "secret", "seal", "mqtt", "--value", f"password={tmp_path / 'pw'}", "--value", "user=-",
        "--recipient", str(key.to_public()), stdin="ada",
    )  # fmt: skip
    assert done.code == 0, done.err
    document = yaml.safe_load(done.out)
    assert document["kind"] == "Secret"
    assert document["spec"]["mountPath"] == "/run/secrets/mqtt"
    data = document["spec"]["data"]
    opened = {name: pyrage.decrypt(text.encode(), [key]) for name, text in data.items()}
    assert opened == {"password": b"hunter2", "user": b"ada"}
    assert "hunter2" not in done.out + done.err
    assert "password: |" in done.out


def test_the_hubs_own_key_comes_from_the_context(
    hub: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: pyrage.x25519.Identity
) -> None:
    done = cli("secret", "seal", "mqtt", "--value", "user=-", stdin="ada")
    assert done.code == 2
    assert "--recipient" in done.err
    path = hub.context(age_recipient=str(key.to_public()))
    monkeypatch.setenv("EDGEWISE_CONTEXT", str(path))
    done = cli("secret", "seal", "mqtt", "--value", "user=-", "-o", "json", stdin="ada")
    assert pyrage.decrypt(done.json["spec"]["data"]["user"].encode(), [key]) == b"ada"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("hunter2", "is not like"),
        ("../x=/dev/null", "is not like"),
        ("a=hunter2", "cannot be read"),
    ],
)
def test_a_value_on_the_command_line_is_refused_without_repeating_it(
    cli: Any, value: str, says: str
) -> None:
    done = cli("secret", "seal", "mqtt", "--value", value, "--recipient", "age1x")
    assert done.code == 2
    assert says in done.err
    assert "hunter2" not in done.err


def test_a_wrong_recipient_is_named(cli: Any) -> None:
    done = cli("secret", "seal", "mqtt", "--value", "a=/dev/null", "--recipient", "ssh-rsa")
    assert done.code == 2
    assert "'ssh-rsa' is not an age recipient" in done.err
