"""The verbs, in the order of ``edgewise --help``: name, module and one line each."""

from __future__ import annotations

from dataclasses import dataclass

_SEE = "See what runs"
_CHANGE = "Change what runs"
_FLEET = "Nodes and their fleet"
_PEOPLE = "People"
_SETUP = "Set up"


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb; ``module`` is below edgewise.cli and has ``app`` or ``verb``."""

    name: str
    module: str
    help: str
    panel: str
    hidden: bool = False


VERBS = (
    Verb("up", "up", "Start a hub in one directory.", _SETUP),
    Verb("init", "init", "Write a starter fleet repo that passes.", _SETUP),
    Verb("validate", "validate", "Check a fleet repo without a hub: file, line, hint.", _SETUP),
    Verb("demo", "demo", "The whole story on this machine, in under three minutes.", _SETUP),
    Verb("plan", "plan", "Say exactly what a commit would do, before anything moves.", _CHANGE),
    Verb("push", "push", "Push the fleet repo to the hub; --wait follows the rollout.", _CHANGE),
    Verb("fetch", "fetch", "Get the hub's branches into your clone, as edgewise/main.", _CHANGE),
    Verb("rollout", "rollout", "Watch, approve, pause, resume, abort or retry rollouts.", _CHANGE),
    Verb("status", "status", "The whole organisation on one screen.", _SEE),
    Verb("trace", "trace", "Follow a commit from git to every node.", _SEE),
    Verb("audit", "audit", "Who did what: the hash-chained log; verify checks the chain.", _SEE),
    Verb(
        "doctor", "doctor", "Check this machine and the hub; every finding has a next move.", _SEE
    ),
    Verb("node", "node", "List, explain, hold and forget nodes; make join tokens.", _FLEET),
    Verb("device", "device", "Machines that prove what they are: TPMs and factory lists.", _FLEET),
    Verb("artifact", "artifact", "Build, sign and publish what can be put on nodes.", _FLEET),
    Verb("delta", "delta", "Deltas and packs: what the hub has made and makes.", _FLEET),
    Verb("release", "release", "What a release puts on nodes; sign one as a builder.", _FLEET),
    Verb("bundle", "bundle", "Releases on a stick, for sites without a network.", _FLEET),
    Verb("secret", "secret", "Encrypt secrets for the fleet repo.", _FLEET),
    Verb("agent", "agent", "On a node: join, run, see what it does.", _FLEET),
    Verb("relay", "relay", "On a region's relay: join and run.", _FLEET),
    Verb("content", "content_sync", "On the hub's machine: its content for a file server.", _FLEET),
    Verb("login", "login", "Log in at a hub, by password or OpenID provider.", _PEOPLE),
    Verb("logout", "logout", "End this login, here and at the hub.", _PEOPLE),
    Verb("whoami", "whoami", "Who the hub takes you for, and what you may do.", _PEOPLE),
    Verb("user", "user", "Local users: add, passwd, groups, disable, rm.", _PEOPLE),
    Verb("api-token", "api_token", "Tokens for CI and dashboards.", _PEOPLE),
    Verb("key", "key", "On the hub's machine: who may sign what.", _SETUP),
    Verb("ca", "ca", "The certificate authority: roots, rotation, sealing its key.", _SETUP),
    Verb("schema", "schema", "JSON Schemas of the documents, for editors and CI.", _SETUP),
    Verb("openapi", "openapi", "The hub's API as OpenAPI 3.1.", _SETUP),
    Verb("reference", "reference", "Write docs/cli.md.", _SETUP, hidden=True),
)
