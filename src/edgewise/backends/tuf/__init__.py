"""The TUF repository and its keys as files."""
