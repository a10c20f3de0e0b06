"""Errors of what is kept.

::

    ReasoningError
    └── StorageError
        ├── DataFolderError       there is no data folder there, or it is not one of ours
        ├── DataFolderBusy        another process is landing, compacting, expiring or erasing (names it)
        ├── LockLost              another host may have taken the lock of a process that was suspended: run it again
        ├── ClockJumped           this machine's clock went further ahead than is plausible: nothing was expired
        ├── LandingError          a segment could not be landed: it stays in the spool, run again
        ├── QuarantineError       a file in the quarantine is not one that landing wrote, or was mended wrongly
        ├── TableError            a partition is not as it should be, or could not be rewritten
        ├── BackupError           a backup cannot be taken there, is damaged, or cannot be restored
        ├── QueryRefused          a query wants more than to read the log (says what, and what opens it)
        ├── DatasetError          an exported dataset cannot be read, or is not what its manifest says
        └── LedgerError           the ledger cannot do what was asked
            ├── BudgetExceeded    a reservation would exceed a budget (names it, what is left, and the mend)
            ├── PriceUnknown      what something costs is not known, so nothing is spent on it
            ├── LedgerUnavailable it cannot be read or written now: locked, read-only, disk full, connection lost
            ├── ChargeConflict    a key was charged before, with another amount
            ├── IllegalTransition an object of the ledger cannot go from its state to that one
            └── NoSuchObject      the ledger has no object of that id
"""

from __future__ import annotations

from reasoning.errors import ReasoningError


class StorageError(ReasoningError):
    """Base of the storage room's errors."""


class DataFolderError(StorageError):
    """There is no data folder there, or it is not one of ours."""


class DataFolderBusy(StorageError):
    """Another process holds the data folder's lock."""


class LockLost(StorageError):
    """This process had the data folder's lock and was suspended, or its lock file was deleted. Nothing is half done."""


class ClockJumped(StorageError):
    """The clock of this machine went further ahead than is plausible, so nothing was deleted by it."""


class LandingError(StorageError):
    """A segment could not be landed. It stays in the spool; landing again takes it up where it stopped."""


class QuarantineError(StorageError):
    """A file in the quarantine is not one that landing wrote, or was mended by hand wrongly."""


class TableError(StorageError):
    """A partition of the decision log is not as it should be, or could not be rewritten. The old one is untouched."""


class BackupError(StorageError):
    """A backup cannot be taken there, is damaged, or cannot be restored."""


class QueryRefused(StorageError):
    """A read-only query wants more than to read the log. Nothing was written."""


class DatasetError(StorageError):
    """An exported dataset cannot be read, or is not what its manifest says."""


class LedgerError(StorageError):
    """The ledger cannot do what was asked."""


class BudgetExceeded(LedgerError):
    """A reservation would exceed a budget."""


class PriceUnknown(LedgerError):
    """What something costs is not known, so nothing is spent on it."""


class LedgerUnavailable(LedgerError):
    """The ledger's database cannot be read or written now: nothing that needs it was done."""


class ChargeConflict(LedgerError):
    """A key was charged before, with another amount."""


class IllegalTransition(LedgerError):
    """An object of the ledger cannot go from its state to that one."""


class NoSuchObject(LedgerError):
    """The ledger has no object of that id."""
