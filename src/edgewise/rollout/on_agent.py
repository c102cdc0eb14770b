"""What rollout does on the agent."""
