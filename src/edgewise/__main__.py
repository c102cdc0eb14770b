"""``python -m edgewise`` is the ``edgewise`` command."""

from edgewise.cli.main import run

if __name__ == "__main__":
    run()
