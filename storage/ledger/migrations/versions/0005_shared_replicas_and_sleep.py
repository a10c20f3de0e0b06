"""Replicas that several adapters share, what is attached to them, and when models slept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("deployments", sa.Column("role", sa.String(length=10), server_default="own", nullable=False))
    op.add_column("deployments", sa.Column("replica_id", sa.String(length=40), nullable=True))
    op.add_column("deployments", sa.Column("max_adapters", sa.Integer(), nullable=True))
    op.create_index("deployments_replica", "deployments", ["replica_id"], unique=False)
    op.add_column("models", sa.Column("adapter_object_id", sa.String(length=100), nullable=True))
    op.add_column("models", sa.Column("adapter_name", sa.String(length=300), nullable=True))
    op.create_table(
        "sleeps",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("decision_type", sa.String(length=100), nullable=False),
        sa.Column("model_id", sa.String(length=40), nullable=False),
        sa.Column("why", sa.String(length=12), nullable=False),
        sa.Column("slept_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("saving_nano", sa.BigInteger(), nullable=False),
        sa.Column("saves_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("woken_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("refused", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("sleeps_type", "sleeps", ["decision_type"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("a ledger is never thrown away; restore a backup instead")
