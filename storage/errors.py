"""Errors of the storage package.

::

    ReasoningError
    └── StorageError
        ├── DataFolderError       the data folder is missing, unusable, or not one of ours
        ├── DataFolderBusy        another process is landing, compacting, expiring or erasing (names it)
        ├── LockLost              another host may have taken the lock of a process that was suspended: run it again
        ├── ClockJumped           this machine's clock went further ahead than is plausible: nothing was expired
        ├── LandingError          a segment could not be landed: it stays in the spool, run again
        ├── QuarantineError       a quarantine file was not written by landing, or was repaired wrongly
        ├── TableError            a partition is damaged, or could not be rewritten
        ├── BackupError           a backup cannot be taken there, is damaged, or cannot be restored
        ├── QueryRefused          a read-only query tried to do more than read (says what, and how to allow it)
        ├── NoSuchDecision        the log has no decision with that id, or several
        ├── DatasetError          an exported dataset cannot be read, or differs from its manifest
        └── LedgerError           the ledger refused an operation
            ├── BudgetExceeded    a reservation would exceed a budget (names it, what is left, and the remedy)
            ├── PriceUnknown      a price is unknown, so nothing is spent
            ├── LedgerUnavailable the database is unavailable: locked, read-only, disk full, connection lost
            ├── ChargeConflict    a key was already charged with another amount
            ├── IllegalTransition a ledger object cannot change from its state to the requested one
            └── NoSuchObject      the ledger has no object with that id
"""

from __future__ import annotations

from reasoning.errors import ReasoningError


class StorageError(ReasoningError):
    """Base of the errors of the storage package."""


class DataFolderError(StorageError):
    """The data folder is missing, unusable, or not one of ours."""


class DataFolderBusy(StorageError):
    """Another process holds the data folder's lock."""


class LockLost(StorageError):
    """This process held the lock and was suspended, or the lock file was deleted. Nothing is half done."""


class ClockJumped(StorageError):
    """The clock of this machine went further ahead than is plausible, so nothing was deleted by it."""


class LandingError(StorageError):
    """A segment could not be landed. It stays in the spool; landing again takes it up where it stopped."""


class QuarantineError(StorageError):
    """A quarantine file was not written by landing, or was repaired wrongly by hand."""


class TableError(StorageError):
    """A partition of the decision log is damaged, or could not be rewritten. The old one is untouched."""


class BackupError(StorageError):
    """A backup cannot be taken there, is damaged, or cannot be restored."""


class QueryRefused(StorageError):
    """A read-only query tried to do more than read the log. Nothing was written."""


class NoSuchDecision(StorageError):
    """The log has no decision with that id, or the beginning of an id is that of several."""


class DatasetError(StorageError):
    """An exported dataset cannot be read, or differs from its manifest."""


class LedgerError(StorageError):
    """The ledger refused an operation."""


class BudgetExceeded(LedgerError):
    """A reservation would exceed a budget."""


class PriceUnknown(LedgerError):
    """A price is unknown, so nothing is spent."""


class LedgerUnavailable(LedgerError):
    """The ledger's database is unavailable; nothing that needs it was done."""


class ChargeConflict(LedgerError):
    """A key was already charged with another amount."""


class IllegalTransition(LedgerError):
    """A ledger object cannot change from its state to the requested one."""


class NoSuchObject(LedgerError):
    """The ledger has no object of that id."""
