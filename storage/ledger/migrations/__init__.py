"""Alembic migrations of the ledger, run by `storage.ledger.database`."""
