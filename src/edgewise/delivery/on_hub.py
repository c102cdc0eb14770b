"""What delivery does on the hub."""
