"""What sync does on the hub."""
