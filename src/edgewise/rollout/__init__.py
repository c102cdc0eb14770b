"""From a release to every node, in stages, behind gates."""
