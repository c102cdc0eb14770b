"""Real git clients push and fetch over mutual TLS."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgewise.backends.git.repository import GitRepository
from edgewise.model.errors import Forbidden, TryLater
from edgewise.net.git_http import GitHttp, GitLimits, Push, Pusher
from edgewise.testing.git import WorkTree

Issued = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def issue(folder: Path, name: str, signer: Issued | None) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer[0].subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
    )
    certificate = builder.sign(signer[1] if signer else key, hashes.SHA256())
    (folder / f"{name}.pem").write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, key


class Hub:
    """A test server; ``pushes`` are what it was told, ``lines`` what it answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = GitRepository(folder / "git" / "fleet.git")
        self.pushes: list[Push] = []
        self.lines: tuple[str, ...] = ("accepted main@sha1:abc, 1 fleet, 2 nodes",)
        self.failure: Exception | None = None
        self.url = ""
        self.governs = True
        """Whether whoever pushes is an administrator."""

    async def authorise(self, request: web.BaseRequest, writes: bool) -> Pusher:
        tls = request.transport.get_extra_info("ssl_object") if request.transport else None
        peer = tls.getpeercert() if tls else None
        if not peer:
            raise Forbidden("no client certificate", hint="run `edgewise push`")
        name = str(peer["subject"][0][0][1])
        if writes and name != "ada":
            raise Forbidden(f"{name} may not push", hint="ask an admin")
        return Pusher(name, governs=self.governs)

    async def pushed(self, push: Push) -> tuple[str, ...]:
        self.pushes.append(push)
        if self.failure:
            raise self.failure
        return self.lines

    def tls(self, name: str = "") -> dict[str, str]:
        pem = str(self.folder / f"{name}.pem")
        client = {"GIT_SSL_CERT": pem, "GIT_SSL_KEY": pem} if name else {}
        return {"GIT_SSL_CAINFO": str(self.folder / "ca.pem"), **client}


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    found = Hub(tmp_path)
    root = issue(tmp_path, "ca", None)
    for name in ("server", "ada", "bob"):
        issue(tmp_path, name, root)
    await found.repository.ensure()
    limits = GitLimits(push=2 << 20, remarks=timedelta(seconds=1))
    git = GitHttp(found.repository.directory, found.authorise, found.pushed, limits=limits)
    app = web.Application()
    app.add_routes(git.routes())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tmp_path / "ca.pem"))
    context.load_cert_chain(tmp_path / "server.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    found.url = f"https://127.0.0.1:{port}/git/fleet.git/"
    yield found
    await runner.cleanup()


@pytest.fixture
def work(tmp_path: Path) -> WorkTree:
    return WorkTree(tmp_path / "work")


async def git(hub: Hub, work: WorkTree, who: str, *arguments: str) -> tuple[int, str]:
    done = await asyncio.to_thread(work.git, *arguments, check=False, env=hub.tls(who))
    return done.returncode, done.stderr


async def test_a_push_is_stored_told_and_answered_in_the_pushers_terminal(
    hub: Hub, work: WorkTree
) -> None:
    commit = work.commit({"edgewise.yaml": "a: 1\n"})
    status, said = await git(hub, work, "ada", "push", hub.url, "main")
    assert status == 0, said
    assert "remote: edgewise: accepted main@sha1:abc, 1 fleet, 2 nodes" in said
    assert hub.pushes == [Push("ada", {"refs/heads/main": ("", commit)})]
    assert await hub.repository.head() == commit
    status, said = await git(hub, work, "ada", "push", hub.url, "main")
    assert status == 0
    assert len(hub.pushes) == 1  # nothing moved, nobody was told


async def test_problems_are_shown_line_by_line_and_the_push_is_kept(
    hub: Hub, work: WorkTree
) -> None:
    hub.lines = ("main has 1 mistake:", "  fleets/pos.yaml:7:3: no app 'helo'")
    commit = work.commit({"edgewise.yaml": "a: 1\n"})
    status, said = await git(hub, work, "ada", "push", hub.url, "main")
    assert status == 0
    assert "remote: edgewise:   fleets/pos.yaml:7:3: no app 'helo'" in said
    assert await hub.repository.head() == commit


async def test_a_push_that_cannot_be_judged_now_says_so_and_is_kept(
    hub: Hub, work: WorkTree
) -> None:
    hub.failure = TryLater("the compiler is busy", hint="look later")
    work.commit({"edgewise.yaml": "a: 1\n"})
    status, said = await git(hub, work, "ada", "push", hub.url, "main")
    assert status == 0
    assert "stored, but: the compiler is busy" in said
    assert await hub.repository.head()


async def test_a_large_push_streams_and_a_too_large_one_is_refused_with_the_reason(
    hub: Hub, work: WorkTree
) -> None:
    import random

    noise = random.Random(1).randbytes(1_500_000)  # beyond http.postBuffer: chunked
    commit = work.commit({"a.bin": noise})
    status, said = await git(hub, work, "ada", "push", hub.url, "main")
    assert status == 0, said
    assert await hub.repository.head() == commit
    work.commit({"b.bin": random.Random(2).randbytes(3_000_000)})
    status, said = await git(hub, work, "ada", "push", hub.url, "main")
    assert status != 0
    assert await hub.repository.head() == commit


async def test_a_clone_and_a_gzipped_fetch_of_many_commits_work(
    hub: Hub, work: WorkTree, tmp_path: Path
) -> None:
    for n in range(60):
        work.commit({"a.yaml": f"a: {n}\n"})
    await git(hub, work, "ada", "push", hub.url, "main")
    other = WorkTree(tmp_path / "other")
    for n in range(60):
        other.commit({"b.yaml": f"b: {n}\n"})  # haves: a request body that git compresses
    status, said = await git(hub, other, "bob", "fetch", hub.url, "main")
    assert status == 0, said


async def test_who_may_only_read_cannot_push_and_is_told_why(hub: Hub, work: WorkTree) -> None:
    work.commit({"a.yaml": "a: 1\n"})
    status, said = await git(hub, work, "bob", "push", hub.url, "main")
    assert status != 0
    assert "bob may not push" in said
    assert "ask an admin" in said
    assert hub.pushes == []


async def test_nobody_without_a_certificate_reads_or_writes(hub: Hub, work: WorkTree) -> None:
    work.commit({"a.yaml": "a: 1\n"})
    for verb in (("push", hub.url, "main"), ("ls-remote", hub.url)):
        status, said = await git(hub, work, "", *verb)
        assert status != 0
        assert "no client certificate" in said


async def test_git_is_asked_for_the_service_that_was_authorised_and_no_other(
    hub: Hub, work: WorkTree, tmp_path: Path
) -> None:
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    context.load_cert_chain(tmp_path / "bob.pem")
    query = "?service=git-upload-pack&service=git-receive-pack"
    async with ClientSession() as session:
        async with session.get(f"{hub.url}info/refs{query}", ssl=context) as answer:
            assert answer.content_type == "application/x-git-upload-pack-advertisement"


async def test_only_the_smart_protocol_is_served(hub: Hub, tmp_path: Path) -> None:
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    context.load_cert_chain(tmp_path / "ada.pem")
    async with ClientSession() as session:
        for tail in ("HEAD", "config", "info/refs", "objects/info/packs", "../hub.db", "%2e%2e/x"):
            async with session.get(hub.url + tail, ssl=context) as answer:
                assert answer.status == 404, tail


async def test_a_push_that_rewrites_the_branch_is_refused(hub: Hub, work: WorkTree) -> None:
    commit = work.commit({"a.yaml": "a: 1\n"})
    await git(hub, work, "ada", "push", hub.url, "main")
    work.git("commit", "--amend", "--quiet", "-m", "rewritten")
    status, said = await git(hub, work, "ada", "push", "--force", hub.url, "main")
    assert status != 0
    assert "non-fast-forward" in said
    assert await hub.repository.head() == commit


WORKSPACE = "apiVersion: edgewise.dev/v1\nkind: Workspace\nmetadata: {name: w}\n"
BINDING = """apiVersion: edgewise.dev/v1
kind: RoleBinding
metadata: {name: berlin}
spec:
  role: operator
  subjects: [{kind: User, name: bob}]
"""
FLEET_ONLY = {"edgewise.yaml": WORKSPACE, "policies/berlin.yaml": BINDING}


async def refused(hub: Hub, work: WorkTree, changes: dict[str, str], word: str) -> None:
    before = await hub.repository.head()
    work.commit(changes)
    status, said = await git(hub, work, "ada", "push", hub.url, "main")
    assert status != 0
    assert f"edgewise: this push changes {word}" in said
    assert "that takes the role admin" in said
    assert await hub.repository.head() == before
    work.git("reset", "--hard", "--quiet", "HEAD~1")


async def test_who_may_push_may_not_change_who_may_push(hub: Hub, work: WorkTree) -> None:
    work.commit(FLEET_ONLY)
    assert (await git(hub, work, "ada", "push", hub.url, "main"))[0] == 0
    hub.governs = False
    eve = BINDING.replace("role: operator", "role: admin")
    weak = WORKSPACE + "spec: {pruneProtection: {maxDeleted: 100%}}\n"
    await refused(hub, work, {"policies/berlin.yaml": eve}, "RoleBinding/berlin")
    await refused(hub, work, {"policies/berlin.yaml": "broken: ["}, "RoleBinding/berlin")
    await refused(hub, work, {"a/eve.yaml": eve.replace("berlin", "eve")}, "RoleBinding/eve")
    await refused(hub, work, {"a.yaml": "a: 1\n---\n" + eve}, "RoleBinding/berlin")
    await refused(hub, work, {"edgewise.yaml": weak}, "Workspace/w")
    await refused(hub, work, {".edgewise/allowed_signers": "eve ssh-ed25519 AA"}, ".edgewise/")
    (work.path / "policies" / "berlin.yaml").unlink()
    await refused(hub, work, {}, "RoleBinding/berlin")


async def test_the_first_push_takes_an_administrator(hub: Hub, work: WorkTree) -> None:
    hub.governs = False
    work.commit(FLEET_ONLY)
    status, said = await git(hub, work, "ada", "push", hub.url, "main")
    assert status != 0
    assert "RoleBinding/berlin, Workspace/w" in said


async def test_who_may_push_changes_everything_else(hub: Hub, work: WorkTree) -> None:
    work.commit(FLEET_ONLY)
    assert (await git(hub, work, "ada", "push", hub.url, "main"))[0] == 0
    hub.governs = False
    (work.path / "policies" / "berlin.yaml").unlink()
    work.commit(
        {
            "edgewise.yaml": WORKSPACE + "spec: {vars: {greeting: hello}}\n",
            "apps/x.yaml": "not: [even, yaml",
            "policies/moved.yaml": "# moved\n" + BINDING,
        }
    )
    assert (await git(hub, work, "ada", "push", hub.url, "main"))[0] == 0
    (work.path / "policies" / "moved.yaml").unlink()
    work.commit()
    status, _ = await git(hub, work, "ada", "push", hub.url, "main:refs/heads/proposal")
    assert status == 0, "a branch that nobody follows"
    status, _ = await git(hub, work, "ada", "push", hub.url, "main")
    assert status != 0, "the same commit, where it would count"
