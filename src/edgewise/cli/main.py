"""The ``edgewise`` command."""


def run() -> None:
    """Entry point of the console script."""
