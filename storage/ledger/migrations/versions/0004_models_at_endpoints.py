"""Models that somebody else runs at a URL: their provider, address, the variable of their key, and their prices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    for table in ("models", "deployments"):
        op.add_column(table, sa.Column("provider", sa.String(length=20), server_default="together", nullable=False))
    op.add_column("models", sa.Column("name", sa.String(length=40), nullable=True))
    op.add_column("models", sa.Column("base_url", sa.String(length=500), nullable=True))
    op.add_column("models", sa.Column("key_variable", sa.String(length=100), nullable=True))
    op.add_column("models", sa.Column("logprobs", sa.String(length=8), nullable=True))
    for column in ("input_million_nano", "output_million_nano", "hourly_nano"):
        op.add_column("models", sa.Column(column, sa.BigInteger(), nullable=True))
    op.create_index("models_name", "models", ["name"], unique=True)


def downgrade() -> None:
    raise NotImplementedError("a ledger is never thrown away; restore a backup instead")
