"""What delivery does on the relay."""
