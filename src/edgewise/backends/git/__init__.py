"""The fleet repo, through the git command: no checkout, no working tree."""
