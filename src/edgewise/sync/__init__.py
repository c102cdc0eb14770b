"""From a git commit to a release."""
