"""What identity does on the hub."""
