"""How each model that has a route is asked, and the figures behind each change of state."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("transitions", sa.Column("numbers", sa.Text(), nullable=True))
    table = op.create_table(
        "model_routes",
        sa.Column("model_id", sa.String(length=40), nullable=False),
        sa.Column("decision_type", sa.String(length=100), nullable=False),
        sa.Column("serving", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("checked", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("model_id"),
    )
    op.create_index("model_routes_type", "model_routes", ["decision_type"], unique=False)
    _take_over_routes(table)


def _take_over_routes(table: sa.Table) -> None:
    """Each promotion of before has one model. One in the shadow was `trained`, a canary was `promoted`."""
    connection = op.get_bind()
    time = sa.column("decided_at", sa.DateTime(timezone=True))
    known = sa.table("promotions", sa.column("decision_type"), sa.column("model_id"), sa.column("routes"), time)
    models = sa.table("models", sa.column("id"), sa.column("state"))
    cycles = sa.table("cycles", sa.column("model_id"), sa.column("outcome"))
    canaries = set(connection.execute(sa.select(cycles.c.model_id).where(cycles.c.outcome == "canary")).scalars())
    for name, model_id, text, decided_at in connection.execute(sa.select(known)).tuples().all():
        serving = _serving(json.loads(text)["routes"][name], canary=model_id in canaries)
        if serving is None:
            continue
        row = {"model_id": model_id, "decision_type": name, "serving": json.dumps(serving), "since": decided_at}
        connection.execute(table.insert().values(**row))
        if serving["arm"].get("mode") == "shadow":
            was, state = "trained", "shadow"
        elif model_id in canaries:
            was, state = "promoted", "canary"
        else:
            continue
        connection.execute(models.update().where(models.c.id == model_id, models.c.state == was).values(state=state))


def _serving(route: dict[str, Any], *, canary: bool) -> dict[str, Any] | None:
    arm = next((arm for arm in route["arms"] if arm["source"] == "custom"), None)
    if arm is None:
        return None
    shadow = arm.get("mode") == "shadow"
    return {
        "arm": arm,
        "weight": 0.9 if shadow or canary else arm.get("weight", 0.9),
        "canary_weight": arm.get("weight", 0.1) if canary else 0.1,
        "deadline_ms": route.get("deadline_ms", 800.0),
        "min_confidence": route.get("min_confidence", 0.0),
        "shadow_original": any(a["source"] == "original" and a.get("mode") == "shadow" for a in route["arms"]),
        "salt": route.get("salt", ""),
    }


def downgrade() -> None:
    raise NotImplementedError("a ledger is never thrown away; restore a backup instead")
