"""The ledger: what was spent, what may be spent, and what of ours exists at the provider.

One SQL database: `<data>/ledger.sqlite` (SQLite in WAL mode) unless `REASONING_LEDGER_URL` names a PostgreSQL. Every
change of money is one serialised transaction (`BEGIN IMMEDIATE`; on PostgreSQL under an advisory lock), so that
processes that reserve at the same moment never exceed a budget together. Charges are append-only, by trigger.

    with open_ledger("reasoning-data") as ledger:
        ledger.set_budget("day", "25")
        reservation = ledger.reserve("4.00", purpose="fine-tune of should_respond", decision_type="should_respond")
        ledger.settle(reservation, "4.00", kind="training", what="fine-tune of should_respond")
"""

from __future__ import annotations

import functools
from datetime import datetime
from pathlib import Path

from storage.installation import remember_installation
from storage.layout import Layout
from storage.ledger.budgets import HOLD_TTL, RESERVATION_TTL, Budget, LedgerBudgets, Reservation
from storage.ledger.charges import PERIODS, ChargedTo, ChargeKind, Period, period_start
from storage.ledger.database import open_database, utc
from storage.ledger.lives import take_in_files
from storage.ledger.objects import LedgerObjects

__all__ = [
    "HOLD_TTL",
    "PERIODS",
    "RESERVATION_TTL",
    "Budget",
    "ChargeKind",
    "ChargedTo",
    "Ledger",
    "Period",
    "Reservation",
    "open_ledger",
    "period_start",
]


class Ledger(LedgerBudgets, LedgerObjects):
    """An open ledger. Safe to use from several threads; every process opens its own (`open_ledger`)."""


def open_ledger(data_or_url: str | Path, *, now: datetime | None = None) -> Ledger:
    """Open the ledger of a data folder (or at an SQLAlchemy URL), creating and migrating it where needed.

    Raises LedgerError when the database cannot be opened, or was written by a newer version of this project.
    """
    in_folder = "://" not in str(data_or_url)
    take_in = functools.partial(take_in_files, layout=Layout(data_or_url)) if in_folder else None
    engine, installation_id = open_database(data_or_url, utc(now), take_in=take_in)
    if in_folder:
        remember_installation(data_or_url, installation_id)
    return Ledger(engine, installation_id)
