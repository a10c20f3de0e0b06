"""Errors of the command line.

::

    ReasoningError
    └── CommandError           a command cannot do what was asked (says why, and the remedy)
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


STOP_HINT = "`reasoning stop` stops everything of this installation that costs money; --dry-run lists it"


def is_about_money(error: BaseException) -> bool:
    """Whether after this error something at the provider may cost money: errors of provider, ledger and budgets.

    Not where nothing was spent: settings that are wrong, and data that was refused before anything was bought.
    """
    from provider import errors as provider
    from storage import errors as storage

    before = (provider.ProviderSettingsError, provider.NotServable, provider.InvalidDataset, storage.NoSuchObject)
    return isinstance(error, (provider.ProviderError, storage.LedgerError)) and not isinstance(error, before)


def describe(error: ReasoningError | OSError) -> str:
    """An error of ours or of the system for people. The last line of one about money is `STOP_HINT`."""
    if isinstance(error, ReasoningError):
        return f"{error}\n{STOP_HINT}" if is_about_money(error) else str(error)
    where = f": {error.filename}" if error.filename else ""
    mend = ". Free some space and run it again: nothing is half done" if error.errno in _DISK_FULL else ""
    return f"{error.strerror or error}{where}{mend}"
