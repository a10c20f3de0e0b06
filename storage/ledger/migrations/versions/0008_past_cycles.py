"""How each cycle of a decision type ended, and why it was begun."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("cycles", sa.Column("due", sa.Text(), server_default="", nullable=False))
    op.create_table(
        "past_cycles",
        sa.Column("decision_type", sa.String(length=100), nullable=False),
        sa.Column("started_at", sa.String(length=40), nullable=False),
        sa.Column("finished_at", sa.String(length=40), nullable=True),
        sa.Column("outcome", sa.String(length=20), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("dataset_id", sa.String(length=200), nullable=True),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.Column("model_id", sa.String(length=40), nullable=True),
        sa.Column("deployment_id", sa.String(length=40), nullable=True),
        sa.Column("evaluation_id", sa.String(length=40), nullable=True),
        sa.Column("due", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("decision_type", "started_at"),
    )


def downgrade() -> None:
    raise NotImplementedError("a ledger is never thrown away; restore a backup instead")
