"""Following the repo: a broken commit changes nothing, and a restart loses nothing."""

import pytest
from repo_of import ARTIFACTS, app, compiled, doc, files

from edgewise.model.errors import NotFound, TryLater, Untrusted
from edgewise.protocol.api import PlanRequest
from edgewise.sync.on_hub import Awaiting, Held, Rejected, SourceFollower, Sources, Unchanged
from edgewise.sync.ports import Compiled, Inputs, JoinedNode
from edgewise.testing.clock import ManualClock
from edgewise.testing.commits import MemoryCommits, MemoryRepository

BROKEN = files(apps_hello=app(more="restart: Sometimes"))
FEWER = files(
    nodes_all=doc("NodeSet", "all", "nodes: [{name: n-1, labels: {type: pos, region: east}}]")
)


class Signatures:
    """Refuses the commits that it is told to refuse."""

    def __init__(self) -> None:
        self.bad: set[str] = set()

    async def check(self, commit: str, previous: str | None) -> str:
        if commit in self.bad:
            raise Untrusted(f"commit {commit[:8]} is not signed", hint="sign it")
        return "ann"


class World:
    """A repo, its surroundings, and a follower that can be restarted."""

    def __init__(self) -> None:
        self.repository = MemoryRepository()
        self.memory = MemoryCommits()
        self.signatures = Signatures()
        self.clock = ManualClock()
        self.inputs = Inputs(ARTIFACTS)
        self.unsigned: tuple[str, ...] = ()
        self.restart()

    def restart(self) -> None:
        async def inputs() -> Inputs:
            return self.inputs

        sources = Sources(
            self.repository, inputs, self.memory, self.signatures, lambda compiled: self.unsigned
        )
        self.follower = SourceFollower(sources, self.clock)


@pytest.fixture
def world() -> World:
    return World()


async def test_before_the_first_commit_there_is_nothing_to_do(world: World) -> None:
    assert await world.follower.look() == Unchanged()
    assert world.follower.status().conditions[0].reason == "NoCommit"


async def test_a_commit_compiles_once(world: World) -> None:
    commit = world.repository.push(files())
    outcome = await world.follower.look()
    assert isinstance(outcome, Compiled)
    assert await world.follower.look() == Unchanged()
    seen = await world.follower.commit(commit[:7])
    assert seen.compiled
    assert seen.releases == {"pos": outcome.fleets["pos"].release}
    status = world.follower.status()
    assert status.revision == status.compiled == f"main@sha1:{commit}"
    assert [(c.type, c.status) for c in status.conditions] == [("Ready", True)]


async def test_a_broken_commit_leaves_the_fleets_on_the_last_good_one(world: World) -> None:
    good = world.repository.push(files())
    await world.follower.look()
    bad = world.repository.push(BROKEN)
    outcome = await world.follower.look()
    assert isinstance(outcome, Rejected)
    assert outcome.still == world.follower.good
    status = world.follower.status()
    assert (status.revision[-40:], status.compiled[-40:]) == (bad, good)
    assert (status.problems[0].file, status.problems[0].line) == ("apps/hello.yaml", 8)
    assert {c.type for c in status.conditions} == {"Ready", "Stalled"}
    assert await world.follower.look() == Unchanged()


async def test_a_node_that_joins_while_the_repo_is_broken_still_gets_its_fleet(
    world: World,
) -> None:
    world.repository.push(files())
    await world.follower.look()
    world.repository.push(BROKEN)
    await world.follower.look()
    world.inputs = Inputs(ARTIFACTS, (JoinedNode("new", {"type": "pos", "region": "east"}),))
    outcome = await world.follower.look()
    assert isinstance(outcome, Rejected)
    assert outcome.still is not None
    assert "new" in outcome.still.fleets["pos"].members


async def test_publishing_the_missing_artifact_mends_the_commit(world: World) -> None:
    world.inputs = Inputs({})
    world.repository.push(files())
    assert isinstance(await world.follower.look(), Rejected)
    world.inputs = Inputs(ARTIFACTS)
    assert isinstance(await world.follower.look(), Compiled)


async def test_a_commit_without_a_good_signature_is_not_acted_on(world: World) -> None:
    world.repository.push(files())
    await world.follower.look()
    world.signatures.bad.add(world.repository.push(files(apps_hello=app(more="env: {A: b}"))))
    outcome = await world.follower.look()
    assert isinstance(outcome, Rejected)
    assert "is not signed (sign it)" in str(outcome.problems[0])
    world.inputs = Inputs(ARTIFACTS, (JoinedNode("new", {"type": "pos", "region": "east"}),))
    assert isinstance(await world.follower.look(), Rejected), "new inputs do not sign it"


async def test_after_a_restart_a_broken_head_still_finds_the_last_good_commit(
    world: World,
) -> None:
    world.repository.push(files())
    before = await world.follower.look()
    world.repository.push(BROKEN)
    await world.follower.look()
    world.restart()
    outcome = await world.follower.look()
    assert isinstance(outcome, Rejected)
    assert outcome.still == before


async def test_a_mass_deletion_waits_for_approval_across_a_restart(world: World) -> None:
    world.repository.push(files())
    before = await world.follower.look()
    world.repository.push(FEWER)
    outcome = await world.follower.look()
    assert isinstance(outcome, Held)
    assert "2 of 3 nodes would lose their fleet" in outcome.compiled.held
    assert outcome.still == before
    world.restart()
    assert isinstance(await world.follower.look(), Held)
    (change,) = world.follower.held
    with pytest.raises(NotFound, match="no change 'other' waits"):
        await world.follower.approve("other")
    approved = await world.follower.approve(change.id)
    assert isinstance(approved, Compiled)
    assert approved.held == ""
    assert world.follower.held == ()
    world.restart()
    assert isinstance(await world.follower.look(), Compiled)


async def test_a_repository_that_cannot_be_read_changes_nothing_and_says_so(world: World) -> None:
    world.repository.push(files())
    await world.follower.look()
    world.repository.away = TryLater("git server did not answer in 5 s")
    with pytest.raises(TryLater):
        await world.follower.look()
    assert world.follower.good is not None
    assert world.follower.status().conditions[0].reason == "CannotRead"
    world.repository.away = None
    assert await world.follower.look() == Unchanged()
    assert world.follower.status().conditions[0].reason == "Compiled"


async def test_a_plan_compares_with_what_runs_or_with_a_base(world: World) -> None:
    first = world.repository.push(files())
    await world.follower.look()
    second = world.repository.push(files(apps_hello=app(more="env: {A: b}")))
    plan = await world.follower.plan(PlanRequest())
    assert (plan.base[-40:], plan.head[-40:]) == (first, second)
    assert plan.fleets[0].changed_nodes == 3
    assert (await world.follower.plan(PlanRequest(first, second))) == plan
    assert (await world.follower.plan(PlanRequest(second, second))).fleets[0].changed_nodes == 0
    world.repository.push(BROKEN)
    assert (await world.follower.plan(PlanRequest())).problems[0].file == "apps/hello.yaml"
    with pytest.raises(NotFound):
        await world.follower.plan(PlanRequest("", "nope"))


async def test_a_plan_never_moves_the_fleets(world: World) -> None:
    world.repository.push(files())
    before = await world.follower.look()
    world.repository.push(FEWER)
    plan = await world.follower.plan(PlanRequest())
    assert plan.held
    assert world.follower.good == before
    assert compiled(files()).fleets == before.fleets  # type: ignore[union-attr]


async def test_an_unknown_commit_is_not_found(world: World) -> None:
    with pytest.raises(NotFound, match="has not looked at"):
        await world.follower.commit("abcdef")


async def test_the_fleets_stay_as_they_are_until_a_builder_has_signed(world: World) -> None:
    world.repository.push(files())
    await world.follower.look()
    world.unsigned = ("pos (abc)",)
    commit = world.repository.push(files(apps_hello=app(more="env: {A: b}")))
    outcome = await world.follower.look()
    assert isinstance(outcome, Awaiting)
    assert outcome.still is not None
    assert outcome.still.revision != outcome.compiled.revision
    stalled = world.follower.status().conditions[1]
    assert stalled.reason == "AwaitingBuilderSignature"
    assert f"release sign --head {commit[:12]}" in stalled.message
    assert world.follower.held == ()
    with pytest.raises(NotFound):
        await world.follower.approve(f"held-{commit[:12]}")
    assert await world.follower.look() == Unchanged()
    world.restart()
    assert isinstance(await world.follower.look(), Awaiting), "a restart signs nothing"
    world.unsigned = ()
    signed = await world.follower.look()
    assert isinstance(signed, Compiled)
    assert signed.revision == outcome.compiled.revision
    assert world.follower.status().conditions[0].reason == "Compiled"


async def test_the_stricter_of_git_and_the_hub_says_who_signs(world: World) -> None:
    world.repository.push(files())
    loose = await world.follower.look()
    world.inputs = Inputs(ARTIFACTS, trust="builder")
    strict = await world.follower.look()
    assert isinstance(loose, Compiled)
    assert isinstance(strict, Compiled)
    assert (loose.trust, strict.trust) == ("hub", "builder")
