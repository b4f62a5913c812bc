"""Names that become files, ledgers and lines of a transcript: one strict alphabet for all of them.

A name is typed by one party and used by others as part of a path. ASCII alone, because two names
that look alike must not be two names; no device names, because a run folder may be copied to a
system that has them.
"""

import re

from fedtree_secure.errors import ConfigurationError

LONGEST = 64
_ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_NUMBERED = frozenset(f"{port}{number}" for port in ("com", "lpt") for number in range(10))
_DEVICES = frozenset({"con", "prn", "aux", "nul"}) | _NUMBERED


def check_name(what: str, name: str) -> str:
    """Return a name that is safe as part of a path.

    Args:
        what: What it names, for the error.
        name: 1 to 64 of the ASCII letters, digits, ``.``, ``_`` and ``-``; the first a letter or
            a digit, the last no dot, no two dots in a row, no device name of Windows.

    Raises:
        ConfigurationError: It is another one.
    """
    whole = isinstance(name, str) and _ALLOWED.fullmatch(name) is not None
    if not whole or name.endswith(".") or ".." in name or _is_device(name):
        raise ConfigurationError(
            f"{what} is {name!r}; allowed: 1 to {LONGEST} ASCII letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit, without '..', not ending in '.', and no device "
            "name such as 'con' or 'nul'"
        )
    return name


def _is_device(name: str) -> bool:
    return name.partition(".")[0].lower() in _DEVICES
