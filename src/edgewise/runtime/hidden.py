"""Secrets that people hand to a command: a command line can be read by everybody on the machine.

Standard library only, because the resident agent uses it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from edgewise.model.errors import BadUsage

AT_MOST: Final = 64 << 10
"""Characters of one secret; a join token with several URLs has a few hundred."""
TOKEN: Final = "EDGEWISE_TOKEN"
"""The variable that may hold a join token."""


def hidden(given: str, variable: str = TOKEN) -> str:
    """A secret by what stands on the command line.

    ``-``: the first line of standard input; on a terminal it is asked for and not shown.
    ``@FILE``: the first line of a file. Empty: the environment's ``variable``, which may be
    missing and is taken out, so that nothing that is started later inherits it. Anything else
    is the secret itself. Raises BadUsage for a file that cannot be read, or an empty line.
    """
    if not given:
        return os.environ.pop(variable, "").strip()
    if given == "-":
        return _first_line(_asked(), "standard input")
    if given.startswith("@"):
        path = Path(given[1:]).expanduser()
        try:
            with path.open() as file:
                return _first_line(file.read(AT_MOST), str(path))
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise BadUsage(f"{path} cannot be read: {why}") from error
    return given


def _asked() -> str:
    if sys.stdin is not None and sys.stdin.isatty():
        import getpass

        return getpass.getpass("token: ")
    return sys.stdin.readline(AT_MOST) if sys.stdin is not None else ""


def _first_line(text: str, where: str) -> str:
    line = text.partition("\n")[0].strip()
    if not line:
        raise BadUsage(f"{where} holds no token", hint="`edgewise node token` prints one line")
    return line
