"""Logging in through an OpenID provider: the good way, and a provider or a thief that lies."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

sys.path.insert(0, str(Path(__file__).parent))

from people_hub import PeopleHub, people_hub

from edgewise.model.errors import BadUsage, EdgewiseError, Forbidden, TryLater, Untrusted
from edgewise.net.logins import Person
from edgewise.net.oidc import MOST_FLOWS_EACH, OidcProvider, OidcSettings, read_settings
from edgewise.runtime.chance import SystemChance
from edgewise.runtime.clock import SystemClock
from edgewise.testing.clock import ManualClock
from edgewise.testing.oidc import CLIENT, OidcProviderFake

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def provider() -> AsyncIterator[OidcProviderFake]:
    running = await OidcProviderFake.start()
    yield running
    await running.close()


class Line:
    """A relying party whose monotonic clock the test moves."""

    def __init__(self, provider: OidcProviderFake) -> None:
        self.clock = ManualClock(SystemClock().now())
        settings = OidcSettings(provider.issuer, CLIENT)
        self.party = OidcProvider(settings, self.clock, SystemChance(), "hush")

    async def login(self) -> Person | float:
        start = await self.party.begin("10.0.0.1")
        return await self.poll(start.handle)

    async def poll(self, handle: str) -> Person | float:
        self.clock.advance(timedelta(seconds=1))
        return await self.party.poll(handle)


@pytest.fixture
def line(provider: OidcProviderFake) -> Line:
    return Line(provider)


def settings_file(folder: Path, provider: OidcProviderFake) -> Path:
    (folder / "secret").write_text("hush\n")
    file = folder / "oidc.yaml"
    file.write_text(
        f"issuer: {provider.issuer}\nclientId: {CLIENT}\nclientSecretFile: secret\n"
        "emailDomain: acme.example\n"
    )
    return file


async def login(hub: PeopleHub, who: str) -> Any:
    return await hub.cli(who, "login", "--hub", hub.hub.url, "--root", hub.root)


async def test_a_person_logs_in_at_the_provider_and_its_groups_give_it_roles(
    provider: OidcProviderFake, tmp_path: Path
) -> None:
    provider.answers = [{"error": "authorization_pending"}]
    async with people_hub(tmp_path, oidc=settings_file(tmp_path, provider)) as acme:
        await acme.bind("shops viewer Group/shops")
        done = await login(acme, "anna")
        assert done.code == 0, done.err
        assert "enter the code WDJB-MJHT" in done.err
        me = (await acme.cli("anna", "whoami", "-o", "json")).json
        assert (me["user"], me["origin"], me["groups"]) == ("anna-schmidt", "oidc", ["shops"])
        assert (await acme.cli("anna", "status")).code == 0
        # Another group at the next login is another role.
        provider.claims = {"groups": []}
        assert (await login(acme, "anna")).code == 0
        assert (await acme.cli("anna", "status")).code == 4
        form = provider.requests[-1]
        assert form["client_secret"] == "hush"
        secrets = (form["device_code"], form["code_verifier"], "hush", provider.last)
        log = repr(acme.log.lines) + (await acme.cli("admin", "audit", "-o", "json")).out
        assert [one for one in secrets if one in log] == []


async def test_with_the_provider_down_open_logins_go_on_and_the_administrator_gets_in(
    provider: OidcProviderFake, tmp_path: Path
) -> None:
    async with people_hub(tmp_path, oidc=settings_file(tmp_path, provider)) as acme:
        await acme.bind("shops viewer Group/shops")
        assert (await login(acme, "anna")).code == 0
        await provider.close()
        assert (await acme.cli("anna", "status")).code == 0
        assert (await acme.cli("admin", "user", "ls")).code == 0
        refused = await login(acme, "other")
        assert refused.code == 3
        assert "the administrator's certificate always works" in refused.err
        await acme.add("bob")
        assert (await acme.login("bob")).code == 0


async def test_a_name_that_somebody_has_is_not_given_to_another(
    provider: OidcProviderFake, tmp_path: Path
) -> None:
    async with people_hub(tmp_path, oidc=settings_file(tmp_path, provider)) as acme:
        await acme.add("bob")
        provider.claims = {"email": "bob@acme.example"}
        refused = await login(acme, "eve")
        assert refused.code == 4
        assert "the name bob belongs to somebody else" in refused.err
        provider.claims = {"email": "admin@acme.example"}
        assert "cannot be a user's name" in (await login(acme, "eve")).err
        provider.claims = {}
        assert (await login(acme, "anna")).code == 0
        provider.claims = {"sub": "another"}
        assert "belongs to somebody else" in (await login(acme, "eve")).err
        provider.claims = {"email": "anna.meier@acme.example"}
        assert (await login(acme, "anna")).code == 0, "who marries keeps its account"
        assert (await acme.cli("anna", "whoami", "-o", "json")).json["user"] == "anna-schmidt"


async def test_slow_down_is_obeyed_and_a_hasty_command_never_reaches_the_provider(
    provider: OidcProviderFake, line: Line
) -> None:
    provider.answers = [{"error": "slow_down"}]
    start = await line.party.begin("10.0.0.1")
    assert await line.poll(start.handle) == 6.0
    asked = len(provider.requests)
    for _ in range(5):
        wait = await line.poll(start.handle)
        assert isinstance(wait, float)
    assert len(provider.requests) == asked
    line.clock.advance(timedelta(seconds=6))
    assert isinstance(await line.poll(start.handle), Person)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        ("access_denied", "refused at the provider"),
        ("expired_token", "nobody agreed"),
        ("invalid_grant", "invalid_grant"),
    ],
)
async def test_a_login_that_the_provider_ends_is_over(
    provider: OidcProviderFake, line: Line, error: str, why: str
) -> None:
    provider.answers = [{"error": error}]
    start = await line.party.begin("10.0.0.1")
    with pytest.raises(Forbidden, match=why):
        await line.poll(start.handle)
    with pytest.raises(Forbidden, match="not under way"):
        await line.poll(start.handle)


async def test_a_code_is_used_once(provider: OidcProviderFake, line: Line) -> None:
    start = await line.party.begin("10.0.0.1")
    assert isinstance(await line.poll(start.handle), Person)
    with pytest.raises(Forbidden, match="not under way"):
        await line.poll(start.handle)


async def test_a_token_that_is_replayed_by_the_provider_is_refused(
    provider: OidcProviderFake, line: Line
) -> None:
    provider.claims = {"nonce": None}
    assert isinstance(await line.login(), Person)
    kept = provider.last
    provider.forge = lambda token: kept
    with pytest.raises(Untrusted, match="used before"):
        await line.login()


@pytest.mark.parametrize(
    ("claims", "header"),
    [
        ({"aud": "another"}, {}),
        ({"iss": "http://127.0.0.1:1"}, {}),
        ({"exp": 1}, {}),
        ({"nonce": "of another login"}, {}),
        ({}, {"alg": "none"}),
        ({}, {"alg": "HS256"}),
    ],
    ids=["audience", "issuer", "expired", "nonce", "none", "key confusion"],
)
async def test_a_bad_token_lets_nobody_in(
    provider: OidcProviderFake, line: Line, claims: dict[str, Any], header: dict[str, Any]
) -> None:
    provider.claims, provider.header = claims, header
    with pytest.raises(Untrusted):
        await line.login()


async def test_a_new_key_of_the_provider_is_fetched_when_a_token_names_it(
    provider: OidcProviderFake, line: Line
) -> None:
    assert isinstance(await line.login(), Person)
    provider.rsa, provider.kid = rsa.generate_private_key(65537, 2048), "k2"
    line.clock.advance(timedelta(seconds=30))
    assert isinstance(await line.login(), Person)
    provider.header = {"kid": "made-up"}
    line.clock.advance(timedelta(seconds=30))
    with pytest.raises(Untrusted, match="not published"):
        await line.login()


async def test_a_provider_that_speaks_for_another_or_breaks_lets_nobody_in(
    provider: OidcProviderFake, line: Line
) -> None:
    provider.said_issuer = "https://id.example"
    with pytest.raises(Untrusted, match="speaks for issuer"):
        await line.login()
    provider.said_issuer = ""
    for status in (302, 500):
        provider.status = status
        with pytest.raises(TryLater, match=str(status)):
            await line.login()


async def test_one_address_cannot_take_all_logins(provider: OidcProviderFake, line: Line) -> None:
    for _ in range(MOST_FLOWS_EACH):
        await line.party.begin("10.0.0.1")
    with pytest.raises(TryLater, match="too many"):
        await line.party.begin("10.0.0.1")
    await line.party.begin("10.0.0.2")
    line.clock.advance(timedelta(minutes=11))
    await line.party.begin("10.0.0.1")


@pytest.mark.parametrize(
    "text",
    [
        "issuer: http://id.example\nclientId: x\n",
        "issuer: https://id.example\n",
        "issuer: https://id.example\nclientId: x\nscopes: [email]\n",
        "issuer: https://id.example\nclientId: x\nclient_secret: oops\n",
        "issuer: https://id.example\nclientId: x\nclientSecretFile: gone\n",
        "[",
    ],
)
def test_a_mistake_in_the_settings_names_itself(tmp_path: Path, text: str) -> None:
    file = tmp_path / "oidc.yaml"
    file.write_text(text)
    with pytest.raises(BadUsage) as caught:
        read_settings(file, SystemClock(), SystemChance())
    assert isinstance(caught.value, EdgewiseError)
