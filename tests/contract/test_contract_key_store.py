"""Where the root's key lives: plain files, sealed files and a PKCS#11 token keep the same
promises. The token is SoftHSM2 (Debian package softhsm2), with a token of the test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgewise.backends.pki.authority import Authority
from edgewise.backends.pki.certificates import Hosts, der, make_root
from edgewise.backends.pki.keys import FileKeys, KeyStore
from edgewise.backends.pki.pkcs11 import TokenKeys, TokenUri
from edgewise.identity.signatures import holds, sign_bytes, spki_of
from edgewise.model.errors import BadUsage, NeedsPerson
from edgewise.runtime.clock import SystemClock
from edgewise.runtime.credentials import CredentialFiles, pem_of

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PASSPHRASE = b"correct horse battery staple"


@pytest.fixture(scope="session")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> TokenUri:
    if shutil.which("softhsm2-util") is None:
        pytest.fail("softhsm2 is not installed: `make tools` installs what tests start")
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "conf").write_text(f"directories.tokendir = {folder}/tokens\n")
    (folder / "pin").write_text("1234\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "conf")
    command = ["softhsm2-util", "--init-token", "--free", "--label", "edgewise"]
    subprocess.run([*command, "--pin", "1234", "--so-pin", "5678"], check=True, capture_output=True)
    return TokenUri("edgewise", MODULE, folder / "pin")


@pytest.fixture(params=["files", "sealed files", "pkcs11"])
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> KeyStore:
    if request.param == "files":
        return FileKeys(tmp_path)
    if request.param == "sealed files":
        return FileKeys(tmp_path, lambda: PASSPHRASE)
    store = TokenKeys(request.getfixturevalue("softhsm"))
    for name in ("root", "root-next", "root-old"):
        store.destroy(name)
    return store


def test_a_key_is_there_from_its_creation_until_it_is_destroyed(keys: KeyStore) -> None:
    assert not keys.has("root")
    assert keys.load("root") is None
    made = keys.create("root")
    assert keys.has("root")
    again = keys.load("root")
    assert again is not None
    assert again.public_key() == made.public_key()
    assert holds(spki_of(made), sign_bytes(again, b"words"), b"words")
    replaced = keys.create("root")
    assert replaced.public_key() != made.public_key()
    keys.destroy("root")
    keys.destroy("root")
    assert not keys.has("root")


def test_a_key_moves_to_another_name_and_takes_its_place(keys: KeyStore) -> None:
    keys.move("root", "root-old")
    first, second = keys.create("root").public_key(), keys.create("root-next").public_key()
    keys.move("root", "root-old")
    keys.move("root-next", "root")
    now = {name: keys.load(name) for name in ("root", "root-next", "root-old")}
    assert now["root-next"] is None
    assert now["root"] is not None
    assert now["root"].public_key() == second
    assert now["root-old"] is not None
    assert now["root-old"].public_key() == first
    keys.move("root", "root-old")
    kept = keys.load("root-old")
    assert kept is not None
    assert kept.public_key() == second


def test_a_root_that_it_signs_is_one_for_openssl(keys: KeyStore, tmp_path: Path) -> None:
    signer = make_root("acme", datetime.now(UTC), keys.create("root"))
    file = tmp_path / "root.pem"
    file.write_text(pem_of([der(signer.certificate)]))
    command = ["openssl", "verify", "-x509_strict", "-check_ss_sig", "-CAfile", str(file)]
    subprocess.run([*command, str(file)], check=True, capture_output=True)


def test_a_whole_authority_stands_on_it(keys: KeyStore, tmp_path: Path) -> None:
    authority = Authority.open_or_create(tmp_path / "pki", "acme", SystemClock(), keys)
    files = CredentialFiles(tmp_path / "hub")
    authority.issue_hub(files, Hosts.of(["127.0.0.1"]))
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(files.roots)]
    command += ["-untrusted", str(files.chain), str(files.chain)]
    subprocess.run(command, check=True, capture_output=True)
    again = Authority.open_or_create(tmp_path / "pki", "acme", SystemClock(), keys)
    assert again.roots == authority.roots


def test_a_sealed_key_is_nothing_without_its_passphrase_and_openssl_opens_it(
    tmp_path: Path,
) -> None:
    sealed = FileKeys(tmp_path, lambda: PASSPHRASE)
    public = sealed.create("root").public_key()
    assert sealed.is_sealed("root")
    with pytest.raises(NeedsPerson, match="is sealed, and nobody gave its passphrase"):
        FileKeys(tmp_path).load("root")
    with pytest.raises(NeedsPerson, match="cannot be used"):
        FileKeys(tmp_path, lambda: b"wrong passphrase").load("root")
    command = ["openssl", "pkey", "-in", str(sealed.path("root")), "-pubout", "-outform", "DER"]
    command += ["-passin", f"pass:{PASSPHRASE.decode()}"]
    found = subprocess.run(command, check=True, capture_output=True)
    assert found.stdout == spki_of(sealed._present("root"))
    assert sealed.path("root").stat().st_mode & 0o777 == 0o600
    sealed.unseal("root")
    plain = FileKeys(tmp_path).load("root")
    assert plain is not None
    assert plain.public_key() == public
    with pytest.raises(BadUsage, match="at least 8"):
        FileKeys(tmp_path).seal("root", b"short")
    assert FileKeys(tmp_path).load("root") is not None


def test_a_token_that_is_not_there_or_a_wrong_pin_needs_a_person(
    softhsm: TokenUri, tmp_path: Path
) -> None:
    (tmp_path / "pin").write_text("9999")
    for uri in (
        TokenUri("no such token", MODULE, softhsm.pin_source),
        TokenUri("edgewise", MODULE, tmp_path / "pin"),
        TokenUri("edgewise", MODULE, tmp_path / "none"),
        TokenUri("edgewise", str(tmp_path / "none.so"), softhsm.pin_source),
    ):
        with pytest.raises(NeedsPerson):
            TokenKeys(uri).load("root")


def test_a_key_in_a_token_cannot_be_copied_out(softhsm: TokenUri) -> None:
    key = TokenKeys(softhsm).create("root")
    with pytest.raises(NeedsPerson, match="does not leave its token"):
        key.private_numbers()


def test_a_uri_says_what_it_lacks() -> None:
    good = "pkcs11:token=my%20token;x=y?module-path=/m.so&pin-source=file:/pin"
    assert TokenUri.parse(good) == TokenUri("my token", "/m.so", Path("/pin"))
    for bad in ("file:/x", "pkcs11:", "pkcs11:token=a?module-path=/m.so", "pkcs11:?pin-source=/p"):
        with pytest.raises(BadUsage, match="module-path"):
            TokenUri.parse(bad)
