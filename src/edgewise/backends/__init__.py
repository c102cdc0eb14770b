"""Where data is kept. Each backend implements ports that a capability owns."""
