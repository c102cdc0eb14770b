"""The repo that `edgewise init DIR` writes: small, commented, and it passes validation."""

from __future__ import annotations

from edgewise.model.errors import BadUsage
from edgewise.model.names import is_name


def starter_repo(organisation: str = "acme") -> dict[str, str]:
    """Path to text. Raises BadUsage when ``organisation`` is no DNS label."""
    if not is_name(organisation):
        raise BadUsage(
            f"organisation {organisation!r} is not a DNS label",
            hint="use a-z, 0-9 and '-', at most 63 characters",
        )
    texts = {
        "README.md": _README,
        "edgewise.yaml": _WORKSPACE,
        "fleets/all.yaml": _FLEET,
        "apps/hello.yaml": _APP,
        "programs/hello/bin/hello": _PROGRAM,
        "configs/site.yaml": _CONFIG,
        "policies/careful.yaml": _POLICY,
        "nodes/example.yaml": _NODES,
    }
    return {path: text.replace("@ORG@", organisation) for path, text in texts.items()}


_WORKSPACE = """\
# Settings of this repo. Every field: docs/fleet-repo.md
apiVersion: edgewise.dev/v1
kind: Workspace
metadata:
  name: @ORG@
spec:
  verification:
    mode: "off"                 # HEAD: only act on signed commits (.edgewise/allowed_signers)
  pruneProtection:
    maxDeleted: 10%             # a commit that takes more nodes out of their fleet waits for you
  vars:
    greeting: hello             # variables of every fleet: {{ vars.greeting }}
"""

_FLEET = """\
# Which nodes get what. Labels come from the join token, or from nodes/*.yaml.
apiVersion: edgewise.dev/v1
kind: Fleet
metadata:
  name: all
spec:
  selector: {}                  # every node; narrow it: {matchLabels: {type: kiosk}}
  apps:
    - ref: {name: hello}
  configs:
    - ref: {name: site}
  rolloutPolicyRef: {name: careful}
  # What differs by label:
  # overlays:
  #   - name: west
  #     selector: {matchLabels: {region: west}}
  #     vars: {greeting: howdy}
  #     apps:
  #       - {name: hello, resources: {memory: 64Mi}}
"""

_APP = """\
# A signed tree of files and a command. Publish the tree first:
#   edgewise artifact build programs/hello --name hello --version 1.0.0
#   edgewise artifact publish hello 1.0.0
apiVersion: edgewise.dev/v1
kind: App
metadata:
  name: hello
spec:
  type: process
  artifact: {ref: hello, version: 1.0.0}
  command: [bin/hello]          # looked up in the tree
  env:
    GREETING: "{{ vars.greeting }} from {{ node.labels.site | default('somewhere') }}"
  resources: {memory: 64Mi}
  probes:
    liveness:
      exec: {command: [bin/hello, --check]}
      periodSeconds: 10
  healthPolicy: {minReady: 10s} # unbroken health before an update counts as good
"""

_PROGRAM = """\
#!/bin/sh
# Greets once in ten seconds, until something better takes its place.
if [ "$1" = --check ]; then exit 0; fi   # what the liveness probe asks
while :; do
  echo "$GREETING"
  sleep 10
done
"""

_CONFIG = """\
# Files that are kept in place; what is changed by hand is put right.
apiVersion: edgewise.dev/v1
kind: Config
metadata:
  name: site
spec:
  files:
    - path: /etc/@ORG@/site.conf
      mode: "0644"
      content: |
        # Managed by Edgewise from configs/site.yaml
        organisation=@ORG@
        site={{ node.labels.site | default('unknown') }}
"""

_POLICY = """\
# How a release moves over a fleet: one node first, then the rest in quarters.
apiVersion: edgewise.dev/v1
kind: RolloutPolicy
metadata:
  name: careful
spec:
  stages:
    - name: canary
      limit: 1                  # label canaries and add: selector: {matchLabels: {ring: canary}}
      successThreshold: 100%
      bake: 2m                  # stay healthy that long before the next stage
    - name: rest                # the last stage takes every node that is left
      minTargets: 0             # a fleet of one node is done after its canary
      maxConcurrent: 25%
      successThreshold: 95%
  failureThreshold: 4%          # of the nodes attempted so far; judged all the time
  nodeTimeout: 30m
  onFailure: {action: Rollback} # attempted nodes go back to what they ran before
"""

_NODES = """\
# Expected inventory. Optional: a node that joins without being listed here has the labels
# of its join token. Labels in this file win over those. Take the # away to use it.
#
# apiVersion: edgewise.dev/v1
# kind: NodeSet
# metadata:
#   name: stores
# spec:
#   defaults:
#     labels: {type: kiosk}
#   nodes:
#     - {name: kiosk-1, labels: {site: s001, ring: canary}}
#     - {name: kiosk-2, labels: {site: s002}, hold: true}   # keeps what it runs
"""

_README = """\
# The fleet of @ORG@

What is in this repo runs on the fleet: push a commit, and Edgewise moves it to the nodes
in stages. A commit that breaks nodes is taken back by itself.

| folder | what is in it |
|---|---|
| `edgewise.yaml` | settings of this repo |
| `fleets/` | which nodes get what |
| `apps/` | what runs |
| `programs/` | the program of the example, for `edgewise artifact build` |
| `configs/` | files that are kept in place |
| `policies/` | how a release moves over a fleet |
| `nodes/` | expected nodes and their labels (optional) |
| `secrets/`, `images/` | ciphertext for nodes; OS images |

    edgewise validate .          # every mistake, with file and line
    edgewise plan                # what HEAD would change, on which node, in which stage
    edgewise push --wait         # let it go, and see it move

To take a commit back: `git revert` it and push.
"""
