"""People on a real hub: logins, thieves, mistakes and a clock that is wrong."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import aiohttp
import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from people_hub import PASSWORD, PeopleHub, people_hub

from edgewise.cli.renewal import due
from edgewise.identity.people_ports import Account
from edgewise.model.errors import Forbidden, TryLater, Unauthenticated
from edgewise.net.gate import PeopleGate
from edgewise.net.logins import CERTIFICATE, SESSION, LoginDesk, Logins
from edgewise.net.register import MOST_LOGINS, PeopleRegister
from edgewise.net.routes import Peer
from edgewise.net.tls import pinned_context
from edgewise.protocol.api import HubStatus
from edgewise.protocol.operator import OperatorContext
from edgewise.runtime.credentials import certificates_in
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.hub import MemoryHub
from edgewise.testing.loopback_hub import PlainIssuer
from edgewise.testing.people import MemoryPeople, PlainPasswords

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def acme(tmp_path: Path) -> AsyncIterator[PeopleHub]:
    async with people_hub(tmp_path) as running:
        yield running


async def test_a_person_logs_in_with_a_password_works_and_logs_out(acme: PeopleHub) -> None:
    await acme.add("anna", "shops")
    assert (await acme.login("anna")).code == 0
    files = {path.name for path in (acme.folder / "anna").iterdir()}
    assert {"context.json", "svid.pem", "svid.key", "roots.pem"} <= files
    me = (await acme.cli("anna", "whoami", "-o", "json")).json
    assert (me["user"], me["origin"], me["groups"]) == ("anna", "local", ["shops"])
    assert me["grants"] == []
    refused = await acme.cli("anna", "status")
    assert refused.code == 4
    assert "this takes the role viewer; anna has no role" in refused.err
    await acme.bind("shops viewer Group/shops")
    assert (await acme.cli("anna", "status")).code == 0
    assert "this takes the role operator" in (await acme.cli("anna", "node", "token")).err
    out = await acme.cli("anna", "logout")
    assert out.code == 0, out.err
    assert not (acme.folder / "anna" / "svid.key").exists()
    log = (await acme.cli("admin", "audit", "-o", "json")).json["items"]
    did = [line["action"] for line in log if line["actor"].endswith("/user/anna")]
    assert did[0] == "login"
    assert did[-1] == "logout"
    assert {line["address"] for line in log if line["action"] == "login"} == {"127.0.0.1"}


async def test_a_command_renews_a_certificate_that_is_half_used_up(acme: PeopleHub) -> None:
    await acme.add("anna")
    await acme.login("anna")
    file, svid = acme.folder / "anna" / "context.json", acme.folder / "anna" / "svid.pem"
    first = svid.read_bytes()
    assert (await acme.cli("anna", "whoami")).code == 0
    assert svid.read_bytes() == first, "not yet"
    told = msgspec.json.decode(file.read_bytes(), type=OperatorContext)
    assert told.issued is not None
    old = msgspec.structs.replace(told, issued=told.issued - CERTIFICATE * 2)
    file.write_bytes(msgspec.json.encode(old))
    assert (await acme.cli("anna", "whoami")).code == 0
    assert svid.read_bytes() != first
    renewed = msgspec.json.decode(file.read_bytes(), type=OperatorContext)
    assert renewed.issued is not None
    assert renewed.issued >= told.issued
    over = msgspec.structs.replace(renewed, expires=told.issued)
    file.write_bytes(msgspec.json.encode(over))
    refused = await acme.cli("anna", "whoami")
    assert refused.code == 4
    assert f"edgewise login --hub {acme.hub.url}" in refused.err


async def test_a_login_that_was_copied_is_worth_nothing_after_logout(acme: PeopleHub) -> None:
    await acme.add("anna")
    await acme.login("anna")
    thief = acme.client("anna")
    thief._context()  # its files are read now
    assert (await acme.cli("anna", "logout")).code == 0
    with pytest.raises(Forbidden, match="this login of anna has ended"):
        await asyncio.to_thread(thief.get, "/v1/whoami", dict)


async def test_who_is_disabled_is_out_at_once_and_with_every_token(acme: PeopleHub) -> None:
    await acme.add("anna")
    await acme.bind("all viewer User/anna")
    await acme.login("anna")
    made = await acme.cli("anna", "api-token", "create", "--expires", "1h")
    token = made.out.strip()
    assert (await acme.cli("admin", "status", token=token)).code == 0
    assert (await acme.cli("admin", "user", "disable", "anna", "--reason", "left")).code == 0
    assert "has ended" in (await acme.cli("anna", "status")).err
    assert (await acme.cli("admin", "status", token=token)).code == 4
    again = await acme.login("anna")
    assert again.code == 4
    assert "user anna is disabled: left" in again.err
    assert (await acme.cli("admin", "user", "enable", "anna")).code == 0
    assert (await acme.login("anna")).code == 0


async def test_a_stolen_api_token_is_refused_after_revoke(acme: PeopleHub) -> None:
    made = (await acme.cli("admin", "api-token", "create", "--role", "operator", "-o", "json")).json
    token, roots = made["token"], certificates_in(acme.admin / "roots.pem")
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(acme.hub.url) as thief:
        # One connection that lives through it all.
        for expected, step in ((200, "api-token"), (401, "")):
            async with thief.get(
                "/v1/status", headers=headers, ssl=pinned_context(roots)
            ) as answer:
                assert answer.status == expected
            if step:
                revoked = await acme.cli("admin", step, "revoke", made["id"])
                assert revoked.code == 0
    listed = (await acme.cli("admin", "api-token", "ls", "-o", "json")).json
    assert listed["items"] == []


async def test_an_api_token_does_what_its_role_allows_and_is_no_person(acme: PeopleHub) -> None:
    await acme.bind()
    viewer = (await acme.cli("admin", "api-token", "create")).out.strip()
    assert (await acme.cli("admin", "status", token=viewer)).code == 0
    refused = await acme.cli("admin", "node", "token", token=viewer)
    assert "this takes the role operator; admin has viewer" in refused.err
    admin = (await acme.cli("admin", "api-token", "create", "--role", "admin")).out.strip()
    for line in (("user", "add", "eve", "--password-stdin"), ("api-token", "create")):
        refused = await acme.cli("admin", *line, token=admin, stdin=PASSWORD + "\n")
        assert "takes a person, not an API token" in refused.err, (
            "a token makes no more of its kind"
        )
    acme.work.commit({"apps/x.txt": "x"})
    assert (await acme.push("admin", token=viewer)).code == 4
    assert (await acme.push("admin", token=admin)).code == 0


async def test_an_operator_pushes_apps_but_not_roles_on_a_real_hub(acme: PeopleHub) -> None:
    await acme.add("olga")
    await acme.add("vera")
    await acme.add("paul")
    await acme.bind(
        "ops operator User/olga", "eyes viewer User/vera", "berlin operator User/paul site=berlin"
    )
    for name in ("olga", "vera", "paul"):
        assert (await acme.login(name)).code == 0
    acme.work.commit({"apps/readme.txt": "x"})
    assert (await acme.push("vera")).code == 4
    assert (await acme.push("paul")).code == 4, "part of the nodes is not the whole repo"
    assert (await acme.push("olga")).code == 0
    acme.work.commit(
        {"policies/ops.yaml": acme.work.path.joinpath("policies/ops.yaml").read_text()
         .replace("role: operator", "role: admin")}
    )  # fmt: skip
    assert (await acme.push("olga")).code == 4
    assert "this takes the role admin" in (await acme.cli("olga", "user", "ls")).err
    assert (await acme.push("admin")).code == 0
    assert (await acme.cli("olga", "user", "ls")).code == 0


async def test_no_secret_is_ever_logged(acme: PeopleHub) -> None:
    await acme.add("anna")
    await acme.login("anna")
    await acme.login("anna", "a wrong password")
    token = (await acme.cli("admin", "api-token", "create")).out.strip()
    await acme.cli("admin", "status", token=token)
    await acme.cli("admin", "node", "token", token=token)
    await acme.cli("admin", "status", token=token[:-1] + ("A" if token[-1] != "A" else "B"))
    log = (await acme.cli("admin", "audit", "-o", "json")).out
    everything = log + repr(acme.log.lines)
    assert "login.failed" in log, "or this test shows nothing"
    for secret in (
        PASSWORD,
        "a wrong password",
        token[-20:],
    ):  # a token may have underscores anywhere
        assert secret not in everything


async def test_the_administrator_of_up_gets_in_whatever_git_says(acme: PeopleHub) -> None:
    await acme.add("anna")
    await acme.bind("only admin User/anna")
    await acme.bind()
    acme.work.git("rm", "-rq", "policies")
    acme.work.commit()
    assert (await acme.push("admin")).code == 0
    await acme.login("anna")
    assert (await acme.cli("anna", "status")).code == 4, "every binding is gone"
    assert (await acme.cli("admin", "user", "ls")).code == 0


async def test_bindings_sessions_and_tokens_outlive_the_hub(tmp_path: Path) -> None:
    async with people_hub(tmp_path) as first:
        await first.add("anna")
        await first.bind("all viewer User/anna")
        await first.login("anna")
        token = (await first.cli("anna", "api-token", "create")).out.strip()
        port = first.hub.url.rpartition(":")[2]
    async with people_hub(tmp_path, listen=f"127.0.0.1:{port}") as second:
        assert (await second.cli("anna", "status")).code == 0
        assert (await second.cli("admin", "status", token=token)).code == 0


async def test_an_audit_log_that_was_changed_or_cut_is_noticed(
    acme: PeopleHub, tmp_path: Path
) -> None:
    await acme.add("anna")
    await acme.login("anna")
    exported = tmp_path / "audit.jsonl"
    done = await acme.cli("admin", "audit", "export", str(exported))
    assert done.code == 0, done.err
    lines = exported.read_text().splitlines(keepends=True)
    assert len(lines) >= 2
    kept = (await acme.cli("admin", "audit", "verify", "-o", "json")).json["head"]
    verify = ("audit", "verify", "--file")
    assert (await acme.cli("admin", *verify, str(exported), "--head", kept)).code == 0
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(lines[:-1]))
    assert (await acme.cli("admin", *verify, str(cut))).code == 0, "a chain cannot say this alone"
    found = await acme.cli("admin", *verify, str(cut), "--head", kept)
    assert found.code == 5
    assert "before line" in found.err
    for forged in (
        lines[0].replace("user.add", "user.xxx"),
        lines[0].replace("127.0.0.1", "127.0.0.2"),
    ):
        assert forged != lines[0]
        cut.write_text("".join([forged, *lines[1:]]))
        found = await acme.cli("admin", *verify, str(cut))
        assert "broken at line 1" in found.err
    other = f"{kept.partition(':')[0]}:{'0' * 64}"
    found = await acme.cli("admin", "audit", "verify", "--head", other)
    assert found.code == 5
    assert "another than the one" in found.err
    assert (await acme.cli("admin", "audit", "export", str(exported))).code == 2


async def test_a_hub_with_another_root_gets_no_password(acme: PeopleHub, tmp_path: Path) -> None:
    await acme.add("anna")
    async with people_hub(tmp_path / "evil") as evil:
        said = await acme.cli(
            "anna", "login", "--hub", evil.hub.url, "--root", acme.root, "--user", "anna",
            "--password-stdin", stdin=PASSWORD + "\n",
        )  # fmt: skip
        assert said.code == 5
        unknown = await acme.cli(
            "anna", "login", "--hub", evil.hub.url, "--user", "anna", "--password-stdin",
            stdin=PASSWORD + "\n",
        )  # fmt: skip
        assert unknown.code == 2
        assert f"--root {evil.root}" in unknown.err
        assert evil.hub.journal.last is None, "it never heard the name"


# With a clock that the test moves.


class Office:
    """Logins without sockets: everything but TLS is the hub's own."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryPeople()
        self.passwords = PlainPasswords()

    @classmethod
    async def open(cls) -> Office:
        office = cls()
        await office.restart()
        account = Account("ada", "local", office.clock.now(), password="1:" + PASSWORD)
        await office.register.add(account)
        return office

    async def restart(self) -> None:
        from edgewise.identity.names import Organisation
        from edgewise.net.api.journal import Journal

        acme, chance = Organisation("acme"), SeededChance()
        self.register = await PeopleRegister.open(self.store, self.clock, chance)
        self.journal_store = MemoryHub()
        journal = await Journal.open(self.journal_store, self.clock)
        issuer = PlainIssuer(self.clock)
        self.logins = Logins(
            LoginDesk(acme, self.register, self.passwords, issuer, journal, self.clock)
        )
        self.gate = PeopleGate(self.register, acme, self.clock)

    def stranger(self, address: str = "10.0.0.1") -> Peer:
        return Peer(None, None, address)

    async def login(self, password: str = PASSWORD, address: str = "10.0.0.1") -> Peer:
        from edgewise.model.names import SpiffeId

        reply = await self.logins.by_password(self.stranger(address), "ada", password, b"csr")
        serial = f"{self.logins.desk.issuer.made:x}"  # type: ignore[attr-defined]
        return Peer(SpiffeId.parse(reply.spiffe_id), reply.expires, address, serial)


async def test_a_login_that_has_ended_is_not_revived_by_a_clock_set_back() -> None:
    office = await Office.open()
    peer = await office.login()
    assert office.gate.admit(peer, {}).ended == ""
    start = office.clock.now()
    office.clock.advance(SESSION)
    await office.register.tidy()
    assert "has ended" in office.gate.admit(peer, {}).ended
    office.clock.set_wall(start)
    assert "has ended" in office.gate.admit(peer, {}).ended
    await office.restart()
    assert "has ended" in office.gate.admit(peer, {}).ended


async def test_an_expired_api_token_is_not_revived_by_a_clock_set_back() -> None:
    from edgewise.identity import api_tokens
    from edgewise.identity.people_ports import ApiToken

    office = await Office.open()
    identifier, text, digest = api_tokens.written(b"1" * 8, b"2" * 32)
    now = office.clock.now()
    await office.register.add_token(
        ApiToken(identifier, "ada", "viewer", digest, now, now + timedelta(hours=1))
    )
    headers = {"Authorization": f"Bearer {text}"}
    assert office.gate.admit(office.stranger(), headers).token == identifier
    office.clock.advance(timedelta(hours=1))
    with pytest.raises(Unauthenticated, match="expired"):
        office.gate.admit(office.stranger(), headers)
    await office.register.tidy()
    office.clock.set_wall(now)
    with pytest.raises(Unauthenticated, match="unknown"):
        office.gate.admit(office.stranger(), headers)


async def test_an_unknown_name_costs_as_much_as_a_wrong_password_and_says_the_same() -> None:
    office = await Office.open()
    said = []
    for user in ("ada", "nobody", "Not A Name"):
        before = office.passwords.worked
        with pytest.raises(Unauthenticated) as caught:
            await office.logins.by_password(office.stranger(), user, "wrong", b"csr")
        said.append((str(caught.value), caught.value.hint, office.passwords.worked - before))
    assert said[0] == said[1] == said[2]


async def test_an_attacker_cannot_lock_a_person_out_of_its_own_desk() -> None:
    office = await Office.open()
    await office.login(address="192.0.2.7")
    for number in range(200):
        with pytest.raises((Unauthenticated, TryLater)):
            await office.logins.by_password(
                office.stranger(f"10.0.{number}.1"), "ada", "guess", b"csr"
            )
    with pytest.raises(TryLater):
        await office.login(address="10.200.0.1")
    assert (await office.login(address="192.0.2.7")).id is not None


async def test_failed_logins_fill_no_disk() -> None:
    office = await Office.open()
    for number in range(2000):
        with pytest.raises((Unauthenticated, TryLater)):
            await office.logins.by_password(
                office.stranger(f"10.0.{number % 250}.{number // 250}"), f"u{number}", "x", b"csr"
            )
    assert len(await office.journal_store.audit(0, 10_000)) <= 200
    office.clock.advance(timedelta(hours=1))
    with pytest.raises((Unauthenticated, TryLater)):
        await office.logins.by_password(office.stranger(), "u", "x", b"csr")
    lines = await office.journal_store.audit(0, 10_000)
    assert any(line.action == "audit.left-out" for line in lines)


async def test_a_hash_with_old_parameters_is_made_anew_at_the_next_login() -> None:
    office = await Office.open()
    office.passwords.rounds = 2
    await office.login()
    account = office.register.account("ada")
    assert account is not None
    assert account.password == "2:" + PASSWORD
    await office.login()


async def test_a_renewed_certificate_counts_and_the_one_before_for_a_while() -> None:
    office = await Office.open()
    first = await office.login()
    newest = first
    for number in range(6):
        office.clock.advance(CERTIFICATE / 2)
        peer = office.gate.admit(newest, {})
        reply = await office.logins.renew(peer, b"csr")
        newest = Peer(first.id, reply.expires, "10.0.0.1", f"{number + 2:x}")
        assert office.gate.admit(newest, {}).ended == ""
        assert reply.expires <= reply.login_until
    assert "has ended" in office.gate.admit(first, {}).ended, "only the newest four count"


async def test_no_renewal_goes_beyond_the_session() -> None:
    office = await Office.open()
    peer = await office.login()
    office.clock.advance(SESSION - timedelta(hours=1))
    reply = await office.logins.renew(office.gate.admit(peer, {}), b"csr")
    assert reply.expires == reply.login_until


async def test_a_person_has_a_bounded_number_of_logins_and_the_oldest_goes() -> None:
    office = await Office.open()
    peers = []
    for _ in range(MOST_LOGINS + 3):
        peers.append(await office.login())
        office.clock.advance(timedelta(seconds=1))
    ended = [bool(office.gate.admit(peer, {}).ended) for peer in peers]
    assert ended == [True] * 3 + [False] * MOST_LOGINS


def test_a_command_renews_in_the_second_half_of_a_certificates_life() -> None:
    now = ManualClock().now()
    told = OperatorContext(
        "https://h", "acme", "ada", issued=now, expires=now + CERTIFICATE,
        login_until=now + SESSION,
    )  # fmt: skip
    assert not due(told, now + CERTIFICATE * 0.4)
    assert due(told, now + CERTIFICATE * 0.6)
    last = msgspec.structs.replace(told, login_until=now + CERTIFICATE)
    assert not due(last, now + CERTIFICATE * 0.6), "another would live no longer"


async def test_the_hub_says_nothing_of_itself_to_who_has_no_role(acme: PeopleHub) -> None:
    await acme.add("anna")
    await acme.login("anna")
    client = acme.client("anna")
    with pytest.raises(Forbidden, match="viewer"):
        await asyncio.to_thread(client.get, "/v1/status", HubStatus)
