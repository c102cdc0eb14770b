"""What identity does on the agent."""
