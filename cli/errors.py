"""Errors of the command line.

::

    ReasoningError
    └── CommandError           a command cannot do what was asked (says why, and the mend)
        └── ServeError
            ├── PortInUse      another program listens on a port that `reasoning serve` needs
            └── ChildDied      a process of `reasoning serve` ended, or never became ready
"""

from __future__ import annotations

from reasoning.errors import ReasoningError


class CommandError(ReasoningError):
    """A command cannot do what was asked."""


class ServeError(CommandError):
    """`reasoning serve` cannot start or go on."""


class PortInUse(ServeError):
    """Another program listens on a port that is needed."""


class ChildDied(ServeError):
    """A process of `reasoning serve` ended, or never became ready."""
