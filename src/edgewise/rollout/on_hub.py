"""What rollout does on the hub."""
