"""Tables of the ledger. The migrations in `storage/ledger/migrations/` make them; a test holds the two together.

Columns ending in `_nano` are whole nano-dollars (`storage.ledger.money`). Times are UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

# The newest migration. Kept here so that opening an up-to-date ledger does not import Alembic.
REVISION = "0008"

metadata = sa.MetaData()


class UtcDateTime(sa.TypeDecorator[datetime]):
    """An aware UTC datetime; SQLite, which has no time zones, gets naive UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"time without a time zone: {value!r}; use datetime.now(UTC)")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite numbers only INTEGER keys by itself

# One row: who we are.
installation = sa.Table(
    "installation",
    metadata,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

# period: hour (what everything running may cost an hour), day, month, total. decision_type '' is all of them.
budgets = sa.Table(
    "budgets",
    metadata,
    sa.Column("period", sa.String(8), primary_key=True),
    sa.Column("decision_type", sa.String(100), primary_key=True, server_default=""),
    sa.Column("limit_nano", sa.BigInteger, nullable=False),
    sa.Column("set_at", UtcDateTime, nullable=False),
)

# Sums of charges, kept in the transaction of each charge, so that a reservation costs the same after a million of them.
totals = sa.Table(
    "totals",
    metadata,
    sa.Column("period", sa.String(8), primary_key=True),
    sa.Column("start", sa.String(10), primary_key=True),  # 2026-11-22 | 2026-11 | '' for total
    sa.Column("decision_type", sa.String(100), primary_key=True),
    sa.Column("spent_nano", sa.BigInteger, nullable=False),
)

charges = sa.Table(
    "charges",
    metadata,
    sa.Column("id", Id, primary_key=True, autoincrement=True),
    sa.Column("key", sa.String(200), nullable=False, unique=True),  # the same cost is never charged twice
    sa.Column("ts", UtcDateTime, nullable=False),  # when the cost arose
    sa.Column("recorded_at", UtcDateTime, nullable=False),
    sa.Column("kind", sa.String(12), nullable=False),  # tokens | training | endpoint | adjustment | share
    sa.Column("amount_nano", sa.BigInteger, nullable=False),
    sa.Column("what", sa.Text, nullable=False),
    sa.Column("decision_type", sa.String(100)),
    sa.Column("model_id", sa.String(40)),
    sa.Column("job_id", sa.String(40)),
    sa.Column("deployment_id", sa.String(40)),
    sa.Column("quantity", sa.BigInteger),  # tokens, or minutes of one replica
    sa.Index("charges_ts", "ts"),
    sa.Index("charges_deployment", "deployment_id"),
    sa.Index("charges_job", "job_id"),
)

reservations = sa.Table(
    "reservations",
    metadata,
    sa.Column("id", Id, primary_key=True, autoincrement=True),
    sa.Column("ts", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime),  # NULL: held until its job or deployment ends
    sa.Column("state", sa.String(8), nullable=False),  # open | settled | released | lapsed
    sa.Column("amount_nano", sa.BigInteger, nullable=False),  # what is still held
    sa.Column("hourly_nano", sa.BigInteger, nullable=False),  # what it may cost an hour while it is open
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("decision_type", sa.String(100)),
    sa.Column("model_id", sa.String(40)),
    sa.Column("closed_at", UtcDateTime),
    sa.Index("reservations_state", "state", "expires_at"),
)

datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("decision_type", sa.String(100)),
    sa.Column("dataset", sa.String(200), nullable=False, unique=True),  # its name on disk
    sa.Column("train_sha256", sa.String(64), nullable=False),
    sa.Column("validation_sha256", sa.String(64)),
    sa.Column("train_rows", sa.BigInteger, nullable=False),
    sa.Column("validation_rows", sa.BigInteger, nullable=False),
    sa.Column("train_file_id", sa.String(100)),
    sa.Column("validation_file_id", sa.String(100)),
    sa.Column("error", sa.Text),
)

fine_tune_jobs = sa.Table(
    "fine_tune_jobs",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("decision_type", sa.String(100)),
    sa.Column("suffix", sa.String(40), nullable=False, unique=True),
    sa.Column("dataset_id", sa.String(40), sa.ForeignKey("datasets.id")),
    sa.Column("tier", sa.String(40)),
    sa.Column("base_model", sa.String(200), nullable=False),
    sa.Column("parameters", sa.Text, nullable=False),  # JSON: what is sent, so that a resumed submission sends the same
    sa.Column("estimate_nano", sa.BigInteger, nullable=False),
    sa.Column("reservation_id", Id, sa.ForeignKey("reservations.id")),
    sa.Column("attempted_at", UtcDateTime),  # when a create was last sent
    sa.Column("remote_id", sa.String(100)),
    sa.Column("remote_state", sa.String(40)),
    sa.Column("price_nano", sa.BigInteger),
    sa.Column("model_id", sa.String(40)),
    sa.Column("reconciled_at", UtcDateTime),  # when its charges were last made equal to the provider's final bill
    sa.Column("error", sa.Text),
    sa.Column("provider", sa.String(20), nullable=False, server_default="together"),
)

models = sa.Table(
    "models",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("decision_type", sa.String(100)),
    sa.Column("tier", sa.String(40)),
    sa.Column("base_model", sa.String(200), nullable=False),
    sa.Column("dataset_id", sa.String(40)),
    sa.Column("job_id", sa.String(40), unique=True),
    sa.Column("model_object_id", sa.String(100), nullable=False),  # ml_...: what a deployment serves
    sa.Column("output_name", sa.String(300)),
    sa.Column("provider", sa.String(20), nullable=False, server_default="together"),
    # Of a model that somebody else runs at a URL. Its prices are for a million tokens, and for an hour.
    sa.Column("name", sa.String(40)),
    sa.Column("base_url", sa.String(500)),
    sa.Column("key_variable", sa.String(100)),  # the name of the environment variable, never the key
    sa.Column("logprobs", sa.String(8)),  # how the server is asked for log-probabilities: `reasoning.serving.routes`
    sa.Column("input_million_nano", sa.BigInteger),
    sa.Column("output_million_nano", sa.BigInteger),
    sa.Column("hourly_nano", sa.BigInteger),
    # Of a LoRA that the provider keeps unmerged as well: its id there, and the name that it answers under.
    sa.Column("adapter_object_id", sa.String(100)),
    sa.Column("adapter_name", sa.String(300)),
    sa.Index("models_name", "name", unique=True),
)

deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("decision_type", sa.String(100)),
    sa.Column("name", sa.String(40), nullable=False, unique=True),  # of the endpoint and of its deployment
    sa.Column("model_id", sa.String(40)),
    sa.Column("model_object_id", sa.String(100), nullable=False),
    sa.Column("config", sa.String(300), nullable=False),
    sa.Column("hardware", sa.String(100), nullable=False),
    sa.Column("hourly_nano", sa.BigInteger, nullable=False),  # of one replica
    sa.Column("max_replicas", sa.Integer, nullable=False),
    sa.Column("reservation_id", Id, sa.ForeignKey("reservations.id")),
    sa.Column("attempted_at", UtcDateTime),
    sa.Column("endpoint_id", sa.String(100)),
    sa.Column("remote_id", sa.String(100)),
    sa.Column("served_name", sa.String(300)),  # <project slug>/<name>: the `model` of a request
    sa.Column("replicas", sa.Integer, nullable=False, server_default="0"),  # seen running last
    sa.Column("metered_until", UtcDateTime),
    sa.Column("billed_minutes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("ready_at", UtcDateTime),
    sa.Column("last_request_at", UtcDateTime),
    sa.Column("stopped_at", UtcDateTime),
    sa.Column("reconciled_at", UtcDateTime),
    sa.Column("reason", sa.Text),  # why it is being stopped, or what failed
    sa.Column("provider", sa.String(20), nullable=False, server_default="together"),
    sa.Column("role", sa.String(10), nullable=False, server_default="own"),  # own | shared | attached
    sa.Column("replica_id", sa.String(40)),  # of what is attached: the shared deployment that carries it
    sa.Column("max_adapters", sa.Integer),  # of a shared one; NULL: the provider does not tell
    sa.Index("deployments_replica", "replica_id"),
)

# When a promoted model was taken down because nobody asked it, and when it was started again.
sleeps = sa.Table(
    "sleeps",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("decision_type", sa.String(100), nullable=False),
    sa.Column("model_id", sa.String(40), nullable=False),
    sa.Column("why", sa.String(12), nullable=False),  # idle | calendar
    sa.Column("slept_at", UtcDateTime, nullable=False),
    sa.Column("saving_nano", sa.BigInteger, nullable=False),  # an hour; 0 where its replica went on for others
    sa.Column("saves_until", UtcDateTime),
    sa.Column("woken_at", UtcDateTime),
    sa.Column("ready_at", UtcDateTime),
    sa.Column("refused", sa.Text),  # why it could not be woken last
    sa.Index("sleeps_type", "decision_type"),
)

# Append-only: what happened to which object, and why.
transitions = sa.Table(
    "transitions",
    metadata,
    sa.Column("id", Id, primary_key=True, autoincrement=True),
    sa.Column("ts", UtcDateTime, nullable=False),
    sa.Column("object", sa.String(20), nullable=False),
    sa.Column("object_id", sa.String(40), nullable=False),
    sa.Column("from_state", sa.String(12)),
    sa.Column("to_state", sa.String(12), nullable=False),
    sa.Column("why", sa.Text),
    sa.Column("numbers", sa.Text),  # JSON: the figures behind it
    sa.Index("transitions_object", "object", "object_id"),
)

# What the decision log was last seen to hold, so that only the increase is charged.
meters = sa.Table(
    "meters",
    metadata,
    sa.Column("model", sa.String(300), primary_key=True),
    sa.Column("decision_type", sa.String(100), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("cost_nano", sa.BigInteger, nullable=False),
)

# Figures of an evaluation, as JSON; no text of anybody. The id is a UUIDv7: the greatest is the newest.
evaluations = sa.Table(
    "evaluations",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("model_id", sa.String(40)),
    sa.Column("decision_type", sa.String(100)),
    sa.Column("content", sa.Text, nullable=False),
    sa.Index("evaluations_model", "model_id"),
)

# Where the cycle of a decision type stands, or how the last one ended. Times are RFC 3339.
cycles = sa.Table(
    "cycles",
    metadata,
    sa.Column("decision_type", sa.String(100), primary_key=True),
    sa.Column("outcome", sa.String(20), nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("started_at", sa.String(40)),
    sa.Column("finished_at", sa.String(40)),
    sa.Column("dataset_id", sa.String(200)),
    sa.Column("job_id", sa.String(40)),
    sa.Column("model_id", sa.String(40)),
    sa.Column("deployment_id", sa.String(40)),
    sa.Column("evaluation_id", sa.String(40)),
    sa.Column("due", sa.Text, nullable=False, server_default=""),  # why it was begun
)

# How each cycle ended; of a canary by its last outcome.
past_cycles = sa.Table(
    "past_cycles",
    metadata,
    sa.Column("decision_type", sa.String(100), primary_key=True),
    sa.Column("started_at", sa.String(40), primary_key=True),
    sa.Column("finished_at", sa.String(40)),
    sa.Column("outcome", sa.String(20), nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("dataset_id", sa.String(200)),
    sa.Column("job_id", sa.String(40)),
    sa.Column("model_id", sa.String(40)),
    sa.Column("deployment_id", sa.String(40)),
    sa.Column("evaluation_id", sa.String(40)),
    sa.Column("due", sa.Text, nullable=False, server_default=""),
)

# What was decided to get traffic, as the JSON of a routes file. `published_at` is NULL until the routes file has it.
promotions = sa.Table(
    "promotions",
    metadata,
    sa.Column("decision_type", sa.String(100), primary_key=True),
    sa.Column("model_id", sa.String(40), nullable=False),
    sa.Column("routes", sa.Text, nullable=False),
    sa.Column("decided_at", UtcDateTime, nullable=False),
    sa.Column("published_at", UtcDateTime),
)

# How a model in shadow, canary, live or degraded state is asked (`serving`, JSON: `storage.ledger.lives.Serving`), and
# what its live test said last (`checked`, JSON). Its test began at `since`.
model_routes = sa.Table(
    "model_routes",
    metadata,
    sa.Column("model_id", sa.String(40), primary_key=True),
    sa.Column("decision_type", sa.String(100), nullable=False),
    sa.Column("serving", sa.Text, nullable=False),
    sa.Column("since", UtcDateTime, nullable=False),
    sa.Column("checked", sa.Text),
    sa.Index("model_routes_type", "decision_type"),
)


OBJECTS = {table.name: table for table in (datasets, fine_tune_jobs, models, deployments)}

# state -> the states that may follow. A change to the same state is always allowed: steps are repeated after a kill.
TRANSITIONS: dict[str, dict[str, set[str]]] = {
    "datasets": {
        "intended": {"uploaded", "ready", "failed"},
        "uploaded": {"ready", "failed", "intended"},
        "failed": {"intended"},
        "ready": {"intended"},  # its files are gone at the provider: uploaded anew
    },
    "fine_tune_jobs": {
        "intended": {"submitted", "abandoned"},
        "submitted": {"running", "cancelling", "completed", "failed", "cancelled"},
        "running": {"cancelling", "completed", "failed", "cancelled"},
        "cancelling": {"completed", "failed", "cancelled"},
        "abandoned": {"submitted"},  # a create thought lost turned up after all
        "completed": set(),
        "failed": set(),
        "cancelled": set(),
    },
    "models": {
        "trained": {"shadow", "canary", "promoted", "rejected", "retired"},
        "shadow": {"canary", "promoted", "trained", "rejected", "retired"},
        "canary": {"shadow", "promoted", "trained", "rejected", "retired"},
        "promoted": {"degraded", "shadow", "canary", "trained", "rejected", "retired"},
        "degraded": {"promoted", "shadow", "canary", "trained", "rejected", "retired"},
        "rejected": {"shadow", "canary", "promoted", "trained", "retired"},  # a person may insist
        "retired": set(),
    },
    "deployments": {
        "intended": {"provisioning", "stopping", "deleted"},
        "provisioning": {"ready", "degraded", "failed", "draining", "stopping", "stopped", "deleted"},
        "degraded": {"ready", "provisioning", "failed", "draining", "stopping", "stopped", "deleted"},
        "ready": {"provisioning", "degraded", "failed", "draining", "stopping", "stopped", "deleted"},
        "failed": {"stopping", "stopped", "deleted"},
        "draining": {"stopping", "stopped", "deleted"},
        "stopping": {"stopped", "deleted"},
        "stopped": {"stopping", "deleted"},  # stopping again: something started it behind our back
        "deleted": {"stopping"},  # a create thought lost turned up after all
    },
}
