"""Errors of the command line.

::

    ReasoningError
    └── CommandError           a command cannot do what was asked (says why, and the mend)
        └── ServeError
            ├── PortInUse      another program listens on a port that `reasoning serve` needs
            └── ChildDied      a process of `reasoning serve` ended, or never became ready
"""

from __future__ import annotations

import errno

from reasoning.errors import ReasoningError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class CommandError(ReasoningError):
    """A command cannot do what was asked."""


class ServeError(CommandError):
    """`reasoning serve` cannot start or go on."""


class PortInUse(ServeError):
    """Another program listens on a port that is needed."""


class ChildDied(ServeError):
    """A process of `reasoning serve` ended, or never became ready."""


def describe(error: ReasoningError | OSError) -> str:
    """An error of ours or of the system for people, in one line where it is one of the system."""
    if isinstance(error, ReasoningError):
        return str(error)
    where = f": {error.filename}" if error.filename else ""
    mend = ". Free some space, then run the same again: nothing is half done" if error.errno in _DISK_FULL else ""
    return f"{error.strerror or error}{where}{mend}"
