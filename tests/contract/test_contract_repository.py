"""The contract of sync.ports.Repository, on real git repositories."""

import asyncio
from pathlib import Path

import pytest

from edgewise.backends.git.repository import Bounds, GitRepository, Origin
from edgewise.model.errors import BadUsage, NeedsPerson, NotFound, TryLater
from edgewise.testing.git import WorkTree


@pytest.fixture
def work(tmp_path: Path) -> WorkTree:
    return WorkTree(tmp_path / "work")


@pytest.fixture(params=["own", "mirror"])
async def repository(
    request: pytest.FixtureRequest, tmp_path: Path, work: WorkTree
) -> GitRepository:
    url = str(work.path) if request.param == "mirror" else ""
    found = GitRepository(tmp_path / "hub" / "fleet.git", Origin(url=url))
    await found.ensure()
    return found


async def deliver(repository: GitRepository, work: WorkTree) -> None:
    if repository.origin.url:
        await repository.refresh()
    else:
        await asyncio.to_thread(work.push, str(repository.directory))


async def test_a_repository_without_commits_has_no_head(repository: GitRepository) -> None:
    await repository.refresh()
    assert await repository.head() is None


async def test_the_head_is_the_newest_commit_of_the_followed_branch(
    repository: GitRepository, work: WorkTree
) -> None:
    for content in ("a: 1\n", "a: 2\n"):
        commit = work.commit({"edgewise.yaml": content})
        await deliver(repository, work)
        assert await repository.head() == commit


async def test_a_snapshot_has_the_yaml_files_and_who_wrote_the_commit(
    repository: GitRepository, work: WorkTree
) -> None:
    (work.path / "link.yaml").symlink_to("/etc/passwd")
    commit = work.commit(
        {"edgewise.yaml": "a: 1\n", "fleets/ü ber.yml": b"b: 2\n", "README.md": "no", "x.sh": "no"},
        "Give the shops\n\nmore",
    )
    await deliver(repository, work)
    taken = await repository.snapshot("main")
    assert {path: blob.data for path, blob in taken.files.items()} == {
        "edgewise.yaml": b"a: 1\n",
        "fleets/ü ber.yml": b"b: 2\n",
    }
    assert taken.revision == f"main@sha1:{commit}"
    assert (taken.author, taken.subject) == ("Ada <ada@example.org>", "Give the shops")


async def test_equal_files_have_equal_ids_across_commits(
    repository: GitRepository, work: WorkTree
) -> None:
    work.commit({"a.yaml": "a: 1\n", "b.yaml": "b: 1\n"})
    await deliver(repository, work)
    first = await repository.snapshot("main")
    work.commit({"b.yaml": "b: 2\n"})
    await deliver(repository, work)
    second = await repository.snapshot("main")
    assert first.files["a.yaml"] == second.files["a.yaml"]
    assert first.files["b.yaml"].id != second.files["b.yaml"].id
    assert await repository.snapshot(first.commit) == first


async def test_an_unknown_revision_is_not_found_and_an_option_is_no_revision(
    repository: GitRepository,
) -> None:
    with pytest.raises(NotFound, match="no revision"):
        await repository.snapshot("f" * 40)
    for bad in ("--output=/tmp/x", "a b", ""):
        with pytest.raises(BadUsage, match="not a revision"):
            await repository.snapshot(bad)


async def test_revisions_read_as_edgewise_prints_them(
    repository: GitRepository, work: WorkTree
) -> None:
    commit = work.commit({"a.yaml": "a: 1\n"})
    await deliver(repository, work)
    for written in (commit, commit[:10], f"main@sha1:{commit}", f"main@sha1:{commit[:12]}", "main"):
        assert await repository.resolve(written) == commit


async def bounded(tmp_path: Path, work: WorkTree, bounds: Bounds) -> GitRepository:
    repository = GitRepository(tmp_path / "b.git", Origin(url=str(work.path)), bounds=bounds)
    await repository.ensure()
    await repository.refresh()
    return repository


async def test_a_file_beyond_the_bound_is_refused_and_the_others_are_read(
    tmp_path: Path, work: WorkTree
) -> None:
    work.commit({"big.yaml": "a" * 101, "small.yaml": "a: 1\n"})
    taken = await (await bounded(tmp_path, work, Bounds(file=100))).snapshot("main")
    assert taken.files["big.yaml"].refused == "the file has 101 bytes, at most 100 are read"
    assert taken.files["big.yaml"].data.startswith(b"\0")
    assert taken.files["small.yaml"].data == b"a: 1\n"


@pytest.mark.parametrize(
    ("bounds", "says"),
    [(Bounds(files=2), "3 YAML files, at most 2"), (Bounds(total=20), "at most 20 are read")],
)
async def test_too_many_files_or_bytes_need_a_person(
    tmp_path: Path, work: WorkTree, bounds: Bounds, says: str
) -> None:
    work.commit({f"{n}.yaml": f"a: {n}000000\n" for n in range(3)})
    repository = await bounded(tmp_path, work, bounds)
    with pytest.raises(NeedsPerson, match=says):
        await repository.snapshot("main")


async def test_the_last_good_revision_outlives_a_restart(
    repository: GitRepository, work: WorkTree
) -> None:
    commit = work.commit({"a.yaml": "a: 1\n"})
    await deliver(repository, work)
    assert await repository.accepted() is None
    await repository.accept(commit)
    again = GitRepository(repository.directory, repository.origin)
    await again.ensure()
    assert await again.accepted() == commit


async def test_a_mirror_says_what_a_person_must_do_or_that_later_may_help(tmp_path: Path) -> None:
    gone = GitRepository(tmp_path / "m.git", Origin(url=str(tmp_path / "nowhere")))
    await gone.ensure()
    with pytest.raises(NeedsPerson, match=r"git fetch: .*nowhere") as caught:
        await gone.refresh()
    assert "URL" in caught.value.hint
    away = GitRepository(tmp_path / "m.git", Origin(url="http://127.0.0.1:9/fleet.git"))
    with pytest.raises(TryLater, match="git fetch"):
        await away.refresh()


@pytest.mark.parametrize("branch", ["-x", "a..b", "a.lock", "", "a//b", "a\nb", "x/"])
def test_a_branch_name_that_git_would_refuse_cannot_be_followed(branch: str) -> None:
    with pytest.raises(BadUsage, match="not a branch name"):
        Origin(branch=branch)


async def test_own_branches_only_move_forward(tmp_path: Path, work: WorkTree) -> None:
    repository = GitRepository(tmp_path / "fleet.git")
    await repository.ensure()
    work.commit({"a.yaml": "a: 1\n"})
    work.push(str(repository.directory))
    work.git("commit", "--amend", "--quiet", "-m", "rewritten")
    done = work.git("push", "--force", str(repository.directory), "main", check=False)
    assert done.returncode
    assert "non-fast-forward" in done.stderr
    done = work.git("push", str(repository.directory), ":main", check=False)
    assert done.returncode
    done = work.git("push", str(repository.directory), "main:refs/edgewise/accepted", check=False)
    assert "hidden ref" in done.stderr


async def test_no_process_is_started_to_learn_that_nothing_moved(
    repository: GitRepository, work: WorkTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = work.commit({"edgewise.yaml": "a: 1\n"})
    await deliver(repository, work)
    assert await repository.head() == first
    await repository.snapshot(first)
    await repository.accept(first)
    started: list[str] = []
    attempt = repository.git.attempt

    async def counted(*arguments: str, **more):
        started.append(arguments[0])
        return await attempt(*arguments, **more)

    monkeypatch.setattr(repository.git, "attempt", counted)
    assert await repository.head() == first
    await repository.snapshot(first)
    await repository.accept(first)
    assert started == []
    await repository.git.run("pack-refs", "--all")
    assert await repository.head() == first
    second = work.commit({"edgewise.yaml": "a: 2\n"})
    await deliver(repository, work)
    assert await repository.head() == second, "a packed ref that moves is seen"
    work.git("reset", "--quiet", "--hard", first)
    await repository.git.run("update-ref", repository.ref, first)
    assert await repository.head() == first
