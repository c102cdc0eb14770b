"""Attacks on the commit signature: none of them moves the fleet."""

from pathlib import Path

import pytest

from edgewise.backends.git.repository import GitRepository, Origin
from edgewise.backends.git.signatures import CommitSignatures, Rules, read_rules
from edgewise.model.errors import NeedsPerson, Untrusted
from edgewise.testing.git import WorkTree, signing_key

SIGNERS = ".edgewise/allowed_signers"


def workspace(mode: str) -> str:
    return (
        "apiVersion: edgewise.dev/v1\nkind: Workspace\nmetadata: {name: acme}\n"
        f"spec:\n  verification: {{mode: {mode}, allowedSigners: {SIGNERS}}}\n"
    )


class Scene:
    """A repo whose good revision allows Ada's key; Eve has another one."""

    def __init__(self, tmp_path: Path, mode: str = "HEAD") -> None:
        self.ada, self.eve = tmp_path / "ada", tmp_path / "eve"
        self.ada_line = f"ada@example.org {signing_key(self.ada)}\n"
        self.eve_line = f"eve@example.org {signing_key(self.eve)}\n"
        self.work = WorkTree(tmp_path / "work")
        self.good = self.work.commit(
            {"edgewise.yaml": workspace(mode), SIGNERS: self.ada_line}, "first", sign=self.ada
        )
        self.repository = GitRepository(tmp_path / "hub.git", Origin(url=str(self.work.path)))
        self.signatures = CommitSignatures(self.repository)

    async def check(self, commit: str, previous: str | None = "") -> str:
        await self.repository.ensure()
        await self.repository.refresh()
        return await self.signatures.check(commit, self.good if previous == "" else previous)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


async def test_a_commit_signed_by_an_allowed_key_names_who_signed_it(scene: Scene) -> None:
    commit = scene.work.commit({"a.yaml": "a: 1\n"}, sign=scene.ada)
    assert await scene.check(commit) == "ada@example.org"


async def test_an_unsigned_commit_is_untrusted(scene: Scene) -> None:
    commit = scene.work.commit({"a.yaml": "a: 1\n"})
    with pytest.raises(Untrusted, match=f"commit {commit[:12]} is not signed") as caught:
        await scene.check(commit)
    assert "git commit" in caught.value.hint


async def test_a_commit_signed_by_an_unknown_key_is_untrusted(scene: Scene) -> None:
    commit = scene.work.commit({"a.yaml": "a: 1\n"}, sign=scene.eve)
    with pytest.raises(Untrusted, match=r"is signed by SHA256:.*which .* does not list"):
        await scene.check(commit)


async def test_a_commit_cannot_add_the_key_that_signs_it(scene: Scene) -> None:
    commit = scene.work.commit({SIGNERS: scene.ada_line + scene.eve_line}, sign=scene.eve)
    with pytest.raises(Untrusted, match="does not list"):
        await scene.check(commit)


async def test_a_key_that_an_allowed_person_added_counts_from_the_next_revision_on(
    scene: Scene,
) -> None:
    added = scene.work.commit({SIGNERS: scene.ada_line + scene.eve_line}, sign=scene.ada)
    assert await scene.check(added) == "ada@example.org"
    commit = scene.work.commit({"a.yaml": "a: 1\n"}, sign=scene.eve)
    assert await scene.check(commit, added) == "eve@example.org"


async def test_a_commit_cannot_switch_the_check_off_for_itself(scene: Scene) -> None:
    commit = scene.work.commit({"edgewise.yaml": workspace("off")})
    with pytest.raises(Untrusted, match="is not signed"):
        await scene.check(commit)


async def test_an_old_signed_commit_pushed_again_is_a_rollback_and_refused(scene: Scene) -> None:
    newer = scene.work.commit({"a.yaml": "a: 2\n"}, sign=scene.ada)
    with pytest.raises(Untrusted, match="main was rewritten"):
        await scene.check(scene.good, newer)


async def test_mode_head_lets_an_unsigned_commit_below_a_signed_one_pass(scene: Scene) -> None:
    scene.work.commit({"a.yaml": "a: 1\n"})
    head = scene.work.commit({"a.yaml": "a: 2\n"}, sign=scene.ada)
    assert await scene.check(head) == "ada@example.org"


async def test_mode_all_names_the_unsigned_commit_below_a_signed_one(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "all")
    bad = scene.work.commit({"a.yaml": "a: 1\n"})
    head = scene.work.commit({"a.yaml": "a: 2\n"}, sign=scene.ada)
    with pytest.raises(Untrusted, match=f"commit {bad[:12]} is not signed"):
        await scene.check(head)


async def test_the_first_revision_is_judged_by_its_own_rules(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    assert await scene.check(scene.good, None) == "ada@example.org"
    scene.work.git("commit", "--amend", "--quiet", "--no-gpg-sign", "-m", "unsigned")
    unsigned = scene.work.git("rev-parse", "HEAD").stdout.strip()
    with pytest.raises(Untrusted, match="is not signed"):
        await scene.check(unsigned, None)


async def test_pinned_signers_decide_who_may_connect_a_repository(
    scene: Scene, tmp_path: Path
) -> None:
    pinned = tmp_path / "pinned"
    pinned.write_text(scene.eve_line)
    scene.signatures = CommitSignatures(scene.repository, pinned=pinned)
    with pytest.raises(Untrusted, match="does not list"):
        await scene.check(scene.good, None)


async def test_rules_without_the_signers_file_trust_nobody(scene: Scene) -> None:
    (scene.work.path / SIGNERS).unlink()
    good = scene.work.commit({}, sign=scene.ada)
    head = scene.work.commit({"a.yaml": "a: 1\n"}, sign=scene.ada)
    with pytest.raises(Untrusted, match="is not in that revision"):
        await scene.check(head, good)


async def test_a_pgp_signature_never_counts_whatever_keyring_the_hub_has(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The hub's user trusts everything that gpg says; the commit claims a PGP signature.
    gpg = tmp_path / "gpg"
    gpg.write_text(
        "#!/bin/sh\ncat >/dev/null\n"
        "echo '[GNUPG:] GOODSIG 1 x'\necho '[GNUPG:] TRUST_ULTIMATE 0 pgp'\n"
    )
    gpg.chmod(0o755)
    config = tmp_path / "gitconfig"
    config.write_text(f"[gpg]\n\tprogram = {gpg}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    plain = scene.work.commit({"a.yaml": "a: 1\n"})
    fake = b"gpgsig -----BEGIN PGP SIGNATURE-----\n \n AAAA\n -----END PGP SIGNATURE-----"
    forged = scene.work.forge(plain, fake)
    with pytest.raises(Untrusted, match="not with an SSH key"):
        await scene.check(forged)


async def test_without_ssh_keygen_the_check_says_what_to_install(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = scene.work.commit({"a.yaml": "a: 1\n"}, sign=scene.ada)
    monkeypatch.setattr("edgewise.backends.git.signatures.shutil.which", lambda _: None)
    with pytest.raises(NeedsPerson, match="ssh-keygen is not installed") as caught:
        await scene.check(commit)
    assert "openssh-client" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("", Rules()),
        ("kind: Workspace\nspec: {verification: {mode: off}}\n", Rules()),
        ("kind: Workspace\nspec: {verification: {mode: all}}\n", Rules("all")),
        ("kind: Other\n---\nkind: Workspace\nspec:\n", Rules()),
    ],
)
def test_rules_are_read_from_the_workspace(text: str, rules: Rules) -> None:
    assert read_rules(text.encode(), "f" * 40) == rules


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "kind: Workspace\nspec: 1\n",
        "kind: Workspace\nspec: {verification: {mode: sometimes}}\n",
        "kind: Workspace\nspec: {verification: {mode: HEAD, allowedSigners: 7}}\n",
    ],
)
def test_a_rule_that_cannot_be_read_is_never_no_rule(text: str) -> None:
    with pytest.raises(Untrusted):
        read_rules(text.encode(), "f" * 40)
