"""Errors of the ledger.

::

    ReasoningError
    └── LedgerError            the ledger cannot do what was asked
        ├── BudgetExceeded     a reservation would exceed a budget (names it, what is left, and the mend)
        ├── PriceUnknown       what something costs is not known, so nothing is spent on it
        ├── ChargeConflict     a key was charged before, with another amount
        ├── IllegalTransition  an object of the ledger cannot go from its state to that one
        └── NoSuchObject       the ledger has no object of that id
"""

from __future__ import annotations

from reasoning.errors import ReasoningError


class LedgerError(ReasoningError):
    """The ledger cannot do what was asked."""


class BudgetExceeded(LedgerError):
    """A reservation would exceed a budget."""


class PriceUnknown(LedgerError):
    """What something costs is not known, so nothing is spent on it."""


class ChargeConflict(LedgerError):
    """A key was charged before, with another amount."""


class IllegalTransition(LedgerError):
    """An object of the ledger cannot go from its state to that one."""


class NoSuchObject(LedgerError):
    """The ledger has no object of that id."""
