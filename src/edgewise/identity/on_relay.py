"""What identity does on the relay."""
