"""Undoing the commits of a failed rollout, on real git repositories."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgewise.backends.git.repository import GitRepository, Origin
from edgewise.backends.git.reverts import TRAILER, GitReverts
from edgewise.backends.git.signatures import CommitSignatures
from edgewise.model.errors import TryLater
from edgewise.rollout.ports import Revert, Reverted, Reverts
from edgewise.testing.git import WorkTree, signing_key
from edgewise.testing.rollouts import Noticeboard

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
GOOD = {"edgewise.yaml": "a: 1\n", "apps/web.yaml": "one\ntwo\nthree\n"}
BAD = {"apps/web.yaml": "one\nbroken\nthree\n"}


class Shop:
    """A hub's repository (its own, or one that it follows) and a person's clone."""

    def __init__(self, folder: Path, *, followed: bool = False) -> None:
        self.work = WorkTree(folder / "work")
        self.server = folder / "server.git"
        url = str(self.server) if followed else ""
        self.repository = GitRepository(folder / "hub" / "fleet.git", Origin(url=url))
        self.reverts = GitReverts(self.repository, CommitSignatures(self.repository))
        self.followed = followed

    async def open(self) -> "Shop":
        await self.repository.ensure()
        if self.followed:
            self.work.git("init", "--quiet", "--bare", str(self.server))
        return self

    async def commit(self, files: dict[str, str], message: str = "change", **more: Path) -> str:
        made = self.work.commit(files, message, **more)
        await self.deliver()
        return made

    async def deliver(self) -> None:
        url = self.server if self.followed else self.repository.directory
        await asyncio.to_thread(self.work.push, str(url))
        await self.repository.refresh()

    async def failed(self, bad: str, good: str, **more: object) -> Reverted:
        fields = {"request": False, "state": "RolledBack", "reason": "1 of 2 nodes failed", **more}
        wanted = Revert(
            f"shop-{bad[:6]}", T0, "shop", f"main@sha1:{bad}",
            f"main@sha1:{good}" if good else "", **fields,  # type: ignore[arg-type]
        )  # fmt: skip
        return await self.reverts.revert(wanted)

    async def head(self) -> str:
        return await self.repository.head() or ""

    async def file(self, path: str = "apps/web.yaml", revision: str = "") -> str:
        data = await self.repository.file(revision or await self.head(), path)
        return (data or b"").decode()


@pytest.fixture
async def shop(tmp_path: Path) -> Shop:
    return await Shop(tmp_path).open()


@pytest.fixture
async def followed(tmp_path: Path) -> Shop:
    return await Shop(tmp_path, followed=True).open()


@pytest.mark.parametrize("kind", ["git", "memory"])
async def test_a_repeated_revert_says_the_same_and_changes_nothing_more(
    shop: Shop, kind: str
) -> None:
    good = await shop.commit(GOOD)
    bad = await shop.commit(BAD, "Make it faster")
    board = Noticeboard()
    reverts: Reverts = shop.reverts if kind == "git" else board
    wanted = Revert(
        "shop-1", T0, "shop", f"main@sha1:{bad}", f"main@sha1:{good}", False, "RolledBack", "why"
    )
    first = await reverts.revert(wanted)
    head = await shop.head()
    assert first.done
    assert await reverts.revert(wanted) == first
    assert await shop.head() == head
    assert len(board.reverts) == (kind == "memory")


async def test_the_failed_commit_is_reverted_on_the_hubs_own_branch(shop: Shop) -> None:
    good = await shop.commit(GOOD)
    bad = await shop.commit(BAD, "Make it faster")
    said = await shop.failed(bad, good)
    assert said.done
    assert await shop.file() == GOOD["apps/web.yaml"]
    raw = (await shop.repository.git.run("cat-file", "commit", await shop.head())).decode()
    assert "\nauthor edgewise <edgewise@localhost> " in raw
    assert 'Revert "Make it faster"' in raw
    assert f"This reverts commit {bad}." in raw
    assert "1 of 2 nodes failed" in raw
    assert f"{TRAILER}: shop-{bad[:6]}" in raw
    assert await shop.repository.descends(await shop.head(), bad), "history is never rewritten"


async def test_what_came_after_the_failed_commit_stays(shop: Shop) -> None:
    good = await shop.commit(GOOD)
    bad = await shop.commit(BAD)
    await shop.commit({"apps/till.yaml": "till\n"})
    assert (await shop.failed(bad, good)).done
    assert await shop.file() == GOOD["apps/web.yaml"]
    assert await shop.file("apps/till.yaml") == "till\n"


async def test_all_commits_since_the_good_one_go_back_together(shop: Shop) -> None:
    good = await shop.commit(GOOD)
    shop.work.git("checkout", "--quiet", "-b", "side")
    shop.work.commit({"apps/side.yaml": "side\n"})
    shop.work.git("checkout", "--quiet", "main")
    shop.work.commit(BAD)
    shop.work.git("merge", "--quiet", "--no-ff", "--no-edit", "side")
    bad = await shop.commit({"apps/new.yaml": "new\n"})
    assert (await shop.failed(bad, good)).done
    tree = await shop.repository.git.run("ls-tree", "-r", "--name-only", await shop.head())
    assert tree.decode().split() == sorted(GOOD)


async def test_a_conflict_leaves_the_branch_alone_and_names_the_file(shop: Shop) -> None:
    good = await shop.commit(GOOD)
    bad = await shop.commit(BAD)
    newer = await shop.commit({"apps/web.yaml": "one\nbroken differently\nthree\n"})
    said = await shop.failed(bad, good)
    assert not said.done
    assert "apps/web.yaml" in said.text
    assert f"git revert {good[:12]}..{bad[:12]}" in said.text
    assert await shop.head() == newer
    assert not list(shop.repository.directory.glob("revert-*")), "nothing is left behind"


async def test_a_revert_is_never_reverted(shop: Shop) -> None:
    good = await shop.commit(GOOD)
    bad = await shop.commit(BAD)
    await shop.failed(bad, good)
    revert = await shop.head()
    said = await shop.failed(revert, bad)
    assert not said.done
    assert "not reverted again" in said.text
    assert await shop.head() == revert


async def test_what_a_person_has_undone_already_needs_no_revert(shop: Shop) -> None:
    good = await shop.commit(GOOD)
    bad = await shop.commit(BAD)
    fixed = await shop.commit(GOOD)
    assert "nothing left of it" in (await shop.failed(bad, good)).text
    assert await shop.head() == fixed


async def test_without_an_earlier_revision_nothing_is_reverted(shop: Shop) -> None:
    bad = await shop.commit(BAD)
    assert "no earlier revision" in (await shop.failed(bad, "")).text
    assert await shop.head() == bad


async def test_a_request_is_a_branch_that_a_person_takes_over(shop: Shop, tmp_path: Path) -> None:
    good = await shop.commit(GOOD)
    bad = await shop.commit(BAD)
    said = await shop.failed(bad, good, request=True)
    assert (said.done, await shop.head()) == (False, bad)
    branch = f"edgewise/revert-{bad[:12]}"
    assert f"git cherry-pick edgewise/{branch}" in said.text
    assert await shop.file(revision=branch) == GOOD["apps/web.yaml"]
    hub = str(shop.repository.directory)
    shop.work.git("fetch", "--quiet", hub, f"{branch}:refs/remotes/edgewise/{branch}")
    shop.work.git("cherry-pick", f"edgewise/{branch}")
    await shop.deliver()
    assert await shop.file() == GOOD["apps/web.yaml"]


async def test_where_people_must_sign_a_revert_is_only_proposed(shop: Shop, tmp_path: Path) -> None:
    key = signing_key(tmp_path / "ann")
    rules = "kind: Workspace\nspec:\n  verification:\n    mode: HEAD\n"
    signers = {".edgewise/allowed_signers": f"ann@example.org {key}\n"}
    good = await shop.commit({**GOOD, "edgewise.yaml": rules, **signers}, sign=tmp_path / "ann")
    bad = await shop.commit(BAD, sign=tmp_path / "ann")
    await shop.repository.accept(bad)
    said = await shop.failed(bad, good)
    assert (said.done, await shop.head()) == (False, bad)
    assert "signed by a person" in said.text
    assert "cherry-pick -S" in said.text


async def test_a_followed_repository_gets_a_branch(followed: Shop) -> None:
    good = await followed.commit(GOOD)
    bad = await followed.commit(BAD)
    for _ in range(2):
        said = await followed.failed(bad, good)
        assert not said.done
        assert f"edgewise/revert-{bad[:12]}" in said.text
    listed = followed.work.git("ls-remote", str(followed.server)).stdout
    assert f"refs/heads/edgewise/revert-{bad[:12]}" in listed
    assert f"{bad}\trefs/heads/main" in listed


async def test_a_followed_repository_that_refuses_is_left_to_a_person(followed: Shop) -> None:
    good = await followed.commit(GOOD)
    bad = await followed.commit(BAD)
    hook = followed.server / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho only through review >&2\nexit 1\n")
    hook.chmod(0o755)
    said = await followed.failed(bad, good)
    assert not said.done
    assert "only through review" in said.text
    assert f"git revert {good[:12]}..{bad[:12]}" in said.text


async def test_a_branch_that_moves_meanwhile_is_tried_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = await shop.commit(GOOD)
    bad = await shop.commit(BAD)
    made = shop.reverts._make

    async def somebody_pushes(case):
        commit = await made(case)
        await shop.commit({"apps/till.yaml": "till\n"})
        return commit

    monkeypatch.setattr(shop.reverts, "_make", somebody_pushes)
    with pytest.raises(TryLater):
        await shop.failed(bad, good)
    monkeypatch.undo()
    assert (await shop.failed(bad, good)).done
    assert await shop.file("apps/till.yaml") == "till\n"
