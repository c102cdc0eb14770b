"""What heal does on the agent."""
