"""What the ledger keeps of a model's life beside its objects: evaluations, cycles, arms, and what was promoted.

Versions before 0.3 kept evaluations in `evaluations/<id>.json` and cycles in `datasets/<decision type>/turn.json`.
`take_in_files` copies them into the ledger in the transaction that brings an older ledger up to date. The files stay
where they are, and nothing reads them any more.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from storage.errors import LedgerError
from storage.layout import Layout
from storage.ledger import schema
from storage.ledger.database import LedgerDatabase

log = logging.getLogger(__name__)


class CycleOutcome(StrEnum):
    """Where a cycle stands, or how it ended. `NOT_DUE` is an answer to whoever asks for a cycle, and is never kept."""

    NOT_DUE = "not_due"
    UNDER_WAY = "under_way"
    NOT_ENOUGH_DATA = "not_enough_data"
    FAILED = "failed"
    REJECTED = "rejected"
    CANARY = "canary"
    PROMOTED = "promoted"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow:
    """An evaluation. `content` is what `quality.evaluation.evaluate.Evaluation.as_dict` gives."""

    id: str
    model_id: str | None
    decision_type: str | None
    content: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleRow:
    """Where a cycle of a decision type stands, or how it ended. `due` is why it was begun. Times are RFC 3339."""

    decision_type: str
    outcome: CycleOutcome = CycleOutcome.UNDER_WAY
    why: str = ""
    started_at: str | None = None
    finished_at: str | None = None
    dataset_id: str | None = None
    job_id: str | None = None
    model_id: str | None = None
    deployment_id: str | None = None
    evaluation_id: str | None = None
    due: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How a model is asked while it has an arm in its type's route. Shares are of the type's questions.

    `arm` is the JSON object of its arm, without a share. `weight` is its share when it is live, `canary_weight` before
    that and when it is degraded.
    """

    arm: dict[str, Any]
    weight: float = 0.9
    canary_weight: float = 0.1
    deadline_ms: float = 800.0
    min_confidence: float = 0.0
    shadow_original: bool = False
    salt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that has an arm in its type's route. Its live test began at `since`; `checked` is what it said last."""

    model_id: str
    decision_type: str
    serving: Serving
    since: datetime
    checked: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """A route that was decided on. `routes` is the JSON of a routes file that holds it alone, or nothing where the
    type's route was withdrawn and the routes file may still have it.
    """

    decision_type: str
    model_id: str
    routes: str
    decided_at: datetime
    published_at: datetime | None


# -- evaluations ----------------------------------------------------------------------------------------------------


def save_evaluation(ledger: LedgerDatabase, content: dict[str, Any]) -> None:
    """Keep an evaluation (`Evaluation.as_dict`), once an id."""
    with ledger.transaction() as connection:
        _insert_evaluation(connection, content)


def read_evaluation(ledger: LedgerDatabase, evaluation_id: str) -> EvaluationRow | None:
    """The evaluation of that id, None without one."""
    return _one_evaluation(ledger, schema.evaluations.c.id == evaluation_id)


def last_evaluation(ledger: LedgerDatabase, model_id: str) -> EvaluationRow | None:
    """The newest evaluation of a model, None without one."""
    return _one_evaluation(ledger, schema.evaluations.c.model_id == model_id)


def evaluations_of(ledger: LedgerDatabase, decision_type: str) -> list[dict[str, Any]]:
    """What all evaluations of a decision type say, oldest first."""
    table = schema.evaluations
    with ledger.read() as connection:
        query = sa.select(table.c.content).filter_by(decision_type=decision_type).order_by(table.c.id)
        return [orjson.loads(content) for content in connection.execute(query).scalars()]


def evaluated_models(ledger: LedgerDatabase) -> set[str]:
    """Ids of the models of which there is an evaluation."""
    column = schema.evaluations.c.model_id
    with ledger.read() as connection:
        return set(connection.execute(sa.select(column).where(column.is_not(None)).distinct()).scalars())


def _one_evaluation(ledger: LedgerDatabase, where: sa.ColumnElement[bool]) -> EvaluationRow | None:
    table = schema.evaluations
    with ledger.read() as connection:
        row = connection.execute(sa.select(table).where(where).order_by(table.c.id.desc()).limit(1)).mappings().first()
    if row is None:
        return None
    return EvaluationRow(**{**row, "content": orjson.loads(row["content"])})


def _insert_evaluation(connection: sa.Connection, content: dict[str, Any]) -> None:
    table, about = schema.evaluations, content.get("about") or {}
    evaluation_id = str(content["evaluation_id"])
    if connection.execute(sa.select(table.c.id).filter_by(id=evaluation_id)).first() is None:
        connection.execute(
            table.insert().values(
                id=evaluation_id,
                model_id=about.get("model_id"),
                decision_type=content.get("decision_type"),
                content=orjson.dumps(content, option=orjson.OPT_SORT_KEYS).decode(),
            )
        )


# -- cycles ---------------------------------------------------------------------------------------------------------


def save_cycle(ledger: LedgerDatabase, cycle: CycleRow) -> None:
    """Replace where the cycle of a decision type stands; how one ended is kept. Raises ValueError for `NOT_DUE`."""
    _kept_outcome(cycle.outcome)
    with ledger.transaction() as connection:
        connection.execute(schema.cycles.delete().filter_by(decision_type=cycle.decision_type))
        row = {**asdict(cycle), "outcome": cycle.outcome.value}
        connection.execute(schema.cycles.insert().values(**row))
        if cycle.outcome != CycleOutcome.UNDER_WAY and cycle.started_at is not None:
            known = {"decision_type": cycle.decision_type, "started_at": cycle.started_at}
            connection.execute(schema.past_cycles.delete().filter_by(**known))  # of a canary that ended by now
            connection.execute(schema.past_cycles.insert().values(**row))


def past_cycles(ledger: LedgerDatabase, decision_type: str) -> list[CycleRow]:
    """How the cycles of a decision type ended, oldest first: also those that led to no model, and why."""
    table = schema.past_cycles
    query = sa.select(table).filter_by(decision_type=decision_type).order_by(table.c.started_at)
    with ledger.read() as connection:
        rows = connection.execute(query).mappings().all()
    return [CycleRow(**{**row, "outcome": _kept_outcome(row["outcome"])}) for row in rows]


def read_cycle(ledger: LedgerDatabase, decision_type: str) -> CycleRow | None:
    """Where the cycle of a decision type stands, None before the first. Raises LedgerError for an unknown outcome."""
    with ledger.read() as connection:
        query = sa.select(schema.cycles).filter_by(decision_type=decision_type)
        row = connection.execute(query).mappings().first()
    if row is None:
        return None
    try:
        return CycleRow(**{**row, "outcome": _kept_outcome(row["outcome"])})
    except ValueError:
        raise LedgerError(
            f"unknown outcome in the ledger: {row['outcome']!r} of the cycle of {decision_type}; known: "
            f"{', '.join(_KEPT_OUTCOMES)}. Use the version of this project that wrote it"
        ) from None


_KEPT_OUTCOMES = tuple(outcome for outcome in CycleOutcome if outcome != CycleOutcome.NOT_DUE)


def _kept_outcome(text: str) -> CycleOutcome:
    if text not in _KEPT_OUTCOMES:
        raise ValueError(text)
    return CycleOutcome(text)


# -- promotions -----------------------------------------------------------------------------------------------------


def decide_promotion(ledger: LedgerDatabase, promotion: Promotion) -> None:
    """Write down that a route is to be published, in place of the decision type's last one."""
    with ledger.transaction() as connection:
        drop_promotions(ledger, decision_type=promotion.decision_type)
        connection.execute(schema.promotions.insert().values(**asdict(promotion)))


def mark_published(ledger: LedgerDatabase, promotion: Promotion, *, now: datetime) -> Promotion:
    """Write down that the routes file has it, unless another was decided on meanwhile."""
    table = schema.promotions
    with ledger.transaction() as connection:
        where = {"decision_type": promotion.decision_type, "model_id": promotion.model_id}
        connection.execute(table.update().filter_by(**where, decided_at=promotion.decided_at).values(published_at=now))
    return replace(promotion, published_at=now)


def mark_unpublished(ledger: LedgerDatabase, decision_type: str) -> None:
    """Write down that the routes file lacks a part of the route: it is to be written again."""
    with ledger.transaction() as connection:
        connection.execute(schema.promotions.update().filter_by(decision_type=decision_type).values(published_at=None))


def promotions(ledger: LedgerDatabase, *, only_unpublished: bool = False) -> list[Promotion]:
    """What was decided to get traffic, and not withdrawn since, in the order of the decision types."""
    table = schema.promotions
    query = sa.select(table).order_by(table.c.decision_type)
    if only_unpublished:
        query = query.where(table.c.published_at.is_(None))
    with ledger.read() as connection:
        return [Promotion(**row) for row in connection.execute(query).mappings()]


def drop_promotions(ledger: LedgerDatabase, **where: str) -> None:
    """Forget the promotions whose columns equal `where`: the model was taken down, or another was promoted."""
    with ledger.transaction() as connection:
        connection.execute(schema.promotions.delete().filter_by(**where))


# -- models that have an arm in a route -----------------------------------------------------------------------------


def save_serving(ledger: LedgerDatabase, model_id: str, decision_type: str, serving: Serving, *, now: datetime) -> None:
    """Write down how a model is asked. Its live test begins anew."""
    with ledger.transaction() as connection:
        drop_serving(ledger, model_id)
        text = orjson.dumps(asdict(serving)).decode()
        row = {"model_id": model_id, "decision_type": decision_type, "serving": text, "since": now, "checked": None}
        connection.execute(schema.model_routes.insert().values(**row))


def drop_serving(ledger: LedgerDatabase, model_id: str) -> None:
    """Forget how a model is asked: it has no arm any more."""
    with ledger.transaction() as connection:
        connection.execute(schema.model_routes.delete().filter_by(model_id=model_id))


def restart_test(ledger: LedgerDatabase, model_id: str, *, now: datetime) -> None:
    """Begin the live test of a model anew: what it is compared with has changed."""
    with ledger.transaction() as connection:
        connection.execute(schema.model_routes.update().filter_by(model_id=model_id).values(since=now))


def note_check(ledger: LedgerDatabase, model_id: str, checked: dict[str, Any]) -> None:
    """Write down what the live test of a model said. A model without an arm has none."""
    with ledger.transaction() as connection:
        text = orjson.dumps(checked).decode()
        connection.execute(schema.model_routes.update().filter_by(model_id=model_id).values(checked=text))


def served_models(ledger: LedgerDatabase, decision_type: str | None = None) -> list[ServedModel]:
    """The models that have an arm, of one decision type or of all, by type and in the order of their tests."""
    table = schema.model_routes
    query = sa.select(table).order_by(table.c.decision_type, table.c.since, table.c.model_id)
    if decision_type is not None:
        query = query.where(table.c.decision_type == decision_type)
    with ledger.read() as connection:
        rows = connection.execute(query).mappings().all()
    return [
        ServedModel(
            model_id=row["model_id"],
            decision_type=row["decision_type"],
            serving=Serving(**orjson.loads(row["serving"])),
            since=row["since"],
            checked=None if row["checked"] is None else orjson.loads(row["checked"]),
        )
        for row in rows
    ]


# -- the files of versions before -----------------------------------------------------------------------------------


def take_in_files(connection: sa.Connection, layout: Layout) -> None:
    """Copy evaluations and cycles that older versions kept in files. What cannot be read is left out, with a warning.

    Again is harmless: what the ledger has already stays as it is.
    """
    for path in sorted(layout.evaluations.glob("*.json")):
        content = _read_object(path)
        if content is not None and isinstance(content.get("about"), dict):
            _insert_evaluation(connection, {**content, "evaluation_id": path.stem})
        elif content is not None:
            log.warning("%s is not an evaluation: it was not taken into the ledger", path)
    for path in sorted(layout.datasets.glob("*/turn.json")):
        _take_in_cycle(connection, path)


def _take_in_cycle(connection: sa.Connection, path: Path) -> None:
    content = _read_object(path)
    if content is None:
        return
    try:
        cycle = CycleRow(**{**content, "outcome": _kept_outcome(content["outcome"])})
    except (KeyError, TypeError, ValueError):
        log.warning("%s is not a cycle: it was not taken into the ledger", path)
        return
    known = sa.select(schema.cycles.c.decision_type).filter_by(decision_type=cycle.decision_type)
    if connection.execute(known).first() is None:
        connection.execute(schema.cycles.insert().values(**{**asdict(cycle), "outcome": cycle.outcome.value}))


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        log.warning("%s cannot be read (%s): it was not taken into the ledger", path, error)
        return None
    if isinstance(content, dict):
        return content
    log.warning("%s is not a JSON object: it was not taken into the ledger", path)
    return None
