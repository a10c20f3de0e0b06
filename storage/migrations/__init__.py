"""Alembic migrations of the ledger, run by `storage.ledger_database`."""
