"""Where each fine-tune is trained: on this machine where its base model is one of here, at Together otherwise."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    column = sa.Column("provider", sa.String(length=20), server_default="together", nullable=False)
    op.add_column("fine_tune_jobs", column)
    jobs = sa.table("fine_tune_jobs", sa.column("provider"), sa.column("base_model"))
    op.execute(jobs.update().where(jobs.c.base_model.startswith("local/")).values(provider="local"))


def downgrade() -> None:
    raise NotImplementedError("a ledger is never thrown away; restore a backup instead")
