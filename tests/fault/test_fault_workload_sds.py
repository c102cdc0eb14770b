"""Envoy's secret discovery on the workload socket: what it is sent, and when."""

import sys
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

sys.path.insert(0, str(Path(__file__).parent))

from test_fault_workload_socket import SDS, TILL_ID, Client, Node, node

from edgewise.identity import protobuf
from edgewise.identity.protobuf import Message, field, messages, read, repeated, text
from edgewise.identity.sds_messages import SECRET, VALIDATOR

__all__ = ["node"]


def asked(*names: str, nonce: str = "", refused: str = "") -> bytes:
    error = field(6, field(2, refused)) if refused else b""
    return repeated(3, names) + field(4, SECRET) + protobuf.plain(5, nonce) + error


def secrets(data: bytes) -> dict[str, Message]:
    """Name to Secret, of a DiscoveryResponse."""
    message = read(data)
    assert text(message, 4) == SECRET
    found = {}
    for resource in messages(message, 2):
        assert text(resource, 1) == SECRET
        (secret,) = messages(resource, 2)
        found[text(secret, 1)] = secret
    return found


def inline(message: Message, number: int) -> bytes:
    (source,) = messages(message, number)
    return text(source, 2).encode()


async def say(client: Client, number: int, request: bytes) -> None:
    client.h2.send_data(number, b"\0" + len(request).to_bytes(4, "big") + request)
    await client.flush()


async def test_envoy_gets_certificate_key_and_roots(node: Node) -> None:
    async with Client(node.socket) as client:
        await node.svids.newer_than(3)
        status, answer = await client.call(
            SDS + "FetchSecrets", asked("default", "ROOTCA", "ALL"), **{"workload.spiffe.io": ""}
        )
    assert status == "0"
    found = secrets(answer[5:])
    (certificate,) = messages(found["default"], 2)
    chain = x509.load_pem_x509_certificates(inline(certificate, 1))
    key = serialization.load_pem_private_key(inline(certificate, 2), None)
    assert key.public_key() == chain[0].public_key()
    (roots,) = messages(found["ROOTCA"], 4)
    (root,) = x509.load_pem_x509_certificates(inline(roots, 1))
    chain[-1].verify_directly_issued_by(root)
    (validation,) = messages(found["ALL"], 4)
    (extension,) = messages(validation, 12)
    (typed,) = messages(extension, 2)
    assert text(typed, 1) == VALIDATOR
    (config,) = messages(typed, 2)
    assert [text(domain, 1) for domain in messages(config, 1)] == ["eu.acme", "us.acme"]


async def test_a_stream_follows_rotations_acknowledgements_and_other_names(node: Node) -> None:
    async with Client(node.socket) as client:
        number = await client.ask(SDS + "StreamSecrets", asked("default"), end=False)
        await client.until(lambda: client.message(number))
        first = client.message(number) or b""
        assert set(secrets(first)) == {"default"}
        await say(client, number, asked("default", nonce=text(read(first), 5)))
        await node.clock.run_for(timedelta(minutes=37))
        await client.until(lambda: client.message(number) != first)
        second = client.message(number) or b""
        await say(client, number, asked("default", nonce="x", refused="no"))
        await say(client, number, asked(TILL_ID, "spiffe://us.acme", nonce=text(read(second), 5)))
        await client.until(lambda: client.message(number) != second)
        assert set(secrets(client.message(number) or b"")) == {TILL_ID, "spiffe://us.acme"}
        assert any("Envoy refused" in str(line) for line in node.log.lines)


async def test_a_secret_of_somebody_else_is_denied(node: Node) -> None:
    async with Client(node.socket) as client:
        await node.svids.newer_than(3)
        for name in ("spiffe://eu.acme/app/web", "spiffe://partner.example", "nothing"):
            number = await client.ask(SDS + "StreamSecrets", asked(name))
            await client.until(lambda n=number: n in client.ended)  # type: ignore[misc]
            assert client.headers[number]["grpc-status"] == "7"
        node.app = None
        number = await client.ask(SDS + "StreamSecrets", asked("default"))
        await client.until(lambda: number in client.ended)
        assert client.headers[number]["grpc-status"] == "7"
