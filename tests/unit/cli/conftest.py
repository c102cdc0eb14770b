"""A fake hub that speaks the API's types over mutual TLS, and the command run against it."""

import asyncio
import json
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from edgewise.cli.main import app
from edgewise.model.errors import NotFound
from edgewise.net.git_http import GitHttp
from edgewise.net.routes import ANYONE, Bytes, Call, Events, Route
from edgewise.net.server import Listen, Mount, Server
from edgewise.protocol.codec import encode
from edgewise.protocol.operator import OperatorContext
from edgewise.runtime.chance import SystemChance
from edgewise.runtime.clock import SystemClock
from edgewise.testing.log import ListLog

Issued = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def issue(folder: Path, name: str, uri: str, signer: Issued | None) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    names = [x509.IPAddress(ip_address("127.0.0.1")), x509.UniformResourceIdentifier(uri)]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer[0].subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(signer[1] if signer else key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, key


@dataclass
class FakeHub:
    """``answers``: "METHOD /path" (without the query) to a value, an error, or a list of events."""

    folder: Path
    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    """("METHOD /path?query", decoded body)"""
    port: int = 0
    git: GitHttp | None = None

    async def push_or_fetch(self, request: Any) -> Any:
        assert self.git is not None
        return await self.git.answer(request)

    async def answer(self, call: Call[Any], method: str) -> Any:
        path = "/" + call.path["rest"]
        body = (call.raw if method == "PUT" else json.loads(call.raw)) if call.raw else None
        query = "&".join(f"{k}={v}" for k, v in sorted(_plain(call.query).items()))
        self.calls.append((f"{method} {path}{'?' if query else ''}{query}", body))
        found = self.answers.get(
            f"{method} {path}", NotFound(f"there is no {path}", hint="look at `ls`")
        )
        if isinstance(found, Exception):
            raise found
        if isinstance(found, list):
            return Events(_events(found))
        if isinstance(found, bytes):
            return Bytes(found)
        return Bytes(encode(found)) if found is not None else None

    def context(self, **changes: str) -> Path:
        told = {
            "url": f"https://127.0.0.1:{self.port}", "organisation": "acme", "user": "ada",
            "certificate": "ada.pem", "key": "ada.key", "roots": "ca.pem", **changes,
        }  # fmt: skip
        path = self.folder / "context.json"
        path.write_bytes(encode(OperatorContext(**told)))
        return path


class AnyQuery(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Every query parameter of the API that the command may send."""

    limit: int = 0
    after: str = ""
    selector: str = ""
    failing: bool = False
    fleet: str = ""
    health: str = ""


def _plain(query: AnyQuery) -> dict[str, str]:
    return {k: str(v) for k, v in msgspec.to_builtins(query).items()}


async def _events(items: list[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    root = issue(folder, "ca", "spiffe://acme/ca", None)
    issue(folder, "hub", "spiffe://hub.acme/hub", root)
    issue(folder, "ada", "spiffe://hub.acme/user/ada", root)
    return folder


@pytest.fixture(scope="session")
def _server(certificates: Path) -> Iterator[FakeHub]:
    hub = FakeHub(certificates)
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    def route(method: Any) -> Route:
        async def answer(call: Call[Any]) -> Any:
            return await hub.answer(call, method)

        return Route(method, "/{rest*}", "anything", answer, ANYONE, query=AnyQuery)

    async def serve() -> None:
        tls = ssl.create_default_context(
            ssl.Purpose.CLIENT_AUTH, cafile=str(certificates / "ca.pem")
        )
        tls.verify_mode = ssl.CERT_REQUIRED
        tls.load_cert_chain(certificates / "hub.pem", certificates / "hub.key")
        server = Server(
            [route(method) for method in ("GET", "POST", "PUT", "DELETE")],
            SystemClock(),
            SystemChance(),
            ListLog(),
            [Mount("/git/", hub.push_or_fetch)],
        )
        await server.start(Listen(tls=tls))
        hub.port = server.port
        started.set()
        await stop.wait()
        await server.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    yield hub
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)


@pytest.fixture
def hub(_server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    _server.answers.clear()
    _server.calls.clear()
    monkeypatch.setenv("EDGEWISE_CONTEXT", str(_server.context()))
    return _server


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def edgewise(*arguments: str, stdin: str = "") -> Result:
    done = CliRunner().invoke(app, list(arguments), input=stdin)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Result(done.exit_code, done.stdout, done.stderr)


@pytest.fixture
def cli() -> Any:
    return edgewise
