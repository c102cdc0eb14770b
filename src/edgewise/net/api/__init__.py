"""The hub's API, one module for each group of paths; docs/api.md is its manual."""
