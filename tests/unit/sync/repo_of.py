"""A small fleet repo that compiles, to be bent by the tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgewise.protocol.content import Artifact, TreeRef
from edgewise.sync.compile import compile_workspace
from edgewise.sync.parse import ParseCache
from edgewise.sync.ports import Compiled, CompileFailed, Inputs, JoinedNode
from edgewise.sync.validate import snapshot_of

EXAMPLES = Path(__file__).parents[3] / "examples"
HEAD = "apiVersion: edgewise.dev/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n"


def doc(kind: str, name: str, spec: str) -> str:
    """A document; ``spec`` is YAML, indented by two."""
    lines = "".join(f"  {line}\n" for line in spec.strip("\n").splitlines())
    return HEAD.format(kind=kind, name=name) + lines


def app(name: str = "hello", more: str = "") -> str:
    return doc(
        "App",
        name,
        f"type: process\nartifact: {{ref: {name}, version: 1.0.0}}\ncommand: [bin/{name}]\n{more}",
    )


def files(**changed: str | None) -> dict[str, str]:
    """The repo; keys are file names with ``_`` for ``/``, None removes one."""
    repo = {
        "edgewise.yaml": doc("Workspace", "acme", "prune: true"),
        "nodes/all.yaml": doc(
            "NodeSet",
            "all",
            "defaults: {labels: {type: pos}}\n"
            "nodes:\n"
            "  - {name: n-1, labels: {ring: canary, region: east}}\n"
            "  - {name: n-2, labels: {ring: stable, region: east}}\n"
            "  - {name: n-3, labels: {ring: stable, region: west}}\n",
        ),
        "fleets/pos.yaml": doc(
            "Fleet",
            "pos",
            "selector: {matchLabels: {type: pos}}\n"
            "apps:\n  - ref: {name: hello}\n"
            "configs:\n  - ref: {name: site}\n",
        ),
        "apps/hello.yaml": app(),
        "configs/site.yaml": doc(
            "Config",
            "site",
            "files:\n  - path: /etc/site.conf\n    content: |\n"
            "      region={{ node.labels.region }}\n",
        ),
    }
    for key, text in changed.items():
        path = key.replace("_", "/", 1) + ".yaml"
        if text is None:
            del repo[path]
        else:
            repo[path] = text
    return repo


def artifact(name: str = "hello", version: str = "1.0.0", *platforms: str) -> Artifact:
    return Artifact(
        name,
        version,
        {p: TreeRef(f"{i:064x}", 1000, 3) for i, p in enumerate(platforms or ("linux/amd64",))},
    )


ARTIFACTS = {("hello", "1.0.0"): artifact()}


def compiled(
    repo: Mapping[str, str],
    *joined: JoinedNode,
    previous: Compiled | None = None,
    artifacts: Mapping[tuple[str, str], Artifact] = ARTIFACTS,
    cache: ParseCache | None = None,
) -> Compiled:
    return compile_workspace(
        snapshot_of(repo), Inputs(artifacts, joined), cache or ParseCache(), previous
    )


def mistakes(
    repo: Mapping[str, str],
    *joined: JoinedNode,
    artifacts: Mapping[tuple[str, str], Artifact] = ARTIFACTS,
) -> list[str]:
    """The problems of a repo that must not compile, as lines."""
    try:
        compiled(repo, *joined, artifacts=artifacts)
    except CompileFailed as failed:
        return [str(problem) for problem in failed.problems]
    return []


def example(name: str) -> dict[str, str]:
    """A repo below examples/."""
    root = EXAMPLES / name
    return {str(p.relative_to(root)): p.read_text() for p in sorted(root.rglob("*.yaml"))}
