"""What delivery does on the agent."""
