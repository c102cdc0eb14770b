"""The edgewise command: one module per verb."""
