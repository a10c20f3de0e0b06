"""The bill. Every amount is exact: whole nano-USD, rounded half up once per line.

* A replica is billed from the moment it is ready until it is stopped, by the minute; a started minute counts.
* A fine-tune is billed when it ends: price per token times (n_epochs * training + n_evals * validation) tokens, and
  never less than the minimum. A cancelled one pays for the part that was trained, also at least the minimum, and
  nothing if no part was; a failed one pays nothing.
* Tokens of base models asked without a deployment are billed by their serverless price; a deployment's cost nothing.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from emulator.billing.catalog import NANO
from emulator.errors import ApiError
from emulator.world.clock import format_time
from emulator.world.context import ORGANIZATION, PROJECT, Emulator
from emulator.world.replicas import stop_inactive

_MINUTE = 60.0
_CENT = NANO // 100


@dataclass(frozen=True)
class BillLine:
    """One thing that was used. `start` and `end` are seconds since the epoch, `amount` is nano-USD."""

    kind: str
    what: str
    resource_id: str
    start: float
    end: float
    quantity: int
    unit: str
    unit_price: Decimal
    amount: int

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "what": self.what,
            "resource_id": self.resource_id,
            "start": format_time(self.start),
            "end": format_time(self.end),
            "quantity": self.quantity,
            "unit": self.unit,
            "unit_price_usd": decimal_text(self.unit_price),
            "amount_usd": format_usd(self.amount),
        }


def read_bill(emulator: Emulator, *, since: float = -math.inf, until: float = math.inf) -> list[BillLine]:
    """The lines of what was used from `since` to `until`, now at the latest, in order of their start."""
    stop_inactive(emulator)
    now = emulator.clock.timestamp()
    lines = [
        *(line for row in _replicas(emulator, min(now, until)) for line in _replica_lines(row, now, since, until)),
        *(_training_line(row) for row in _training_charges(emulator, since, until)),
        *(line for row in _token_usage(emulator, since, until) for line in _token_lines(row)),
    ]
    return sorted(lines, key=_by_start)


def _by_start(line: BillLine) -> tuple[float, str, str]:
    return line.start, line.kind, line.resource_id


def _replicas(emulator: Emulator, before: float) -> list[sqlite3.Row]:
    """The runs of replicas that began before a moment."""
    return emulator.state.rows("SELECT rowid, * FROM replicas WHERE ready_at < ? ORDER BY ready_at, rowid", before)


def _training_charges(emulator: Emulator, since: float, until: float) -> list[sqlite3.Row]:
    return emulator.state.rows("SELECT * FROM training_charges WHERE charged_at >= ? AND charged_at < ?", since, until)


def _token_usage(emulator: Emulator, since: float, until: float) -> list[sqlite3.Row]:
    """The hours of paid inference that begin in [since, until)."""
    return emulator.state.rows(
        "SELECT * FROM token_usage WHERE input_price + output_price > 0 AND hour * 3600.0 >= ? AND hour * 3600.0 < ?",
        since,
        until,
    )


def _replica_lines(row: sqlite3.Row, now: float, since: float, until: float) -> list[BillLine]:
    """The minutes of a run that begin in [since, until), in one line, or none."""
    start, end = row["ready_at"], min(now, row["stopped_at"] or now)
    minutes = _count_minutes(start, end, since, until)
    if not minutes:
        return []
    return [
        BillLine(
            kind="deployment",
            what=f"{row['deployment_name']} on {row['hardware']}",
            resource_id=row["deployment_id"],
            start=max(start, since),
            end=min(end, until),
            quantity=minutes,
            unit="replica minute",
            unit_price=Decimal(row["price_cents_per_hour"]) / 6000,
            amount=_divide(minutes * row["price_cents_per_hour"] * _CENT, 60),
        )
    ]


def _count_minutes(start: float, end: float, since: float, until: float) -> int:
    """Started minutes of the run [start, end) that begin in [since, until)."""
    total = math.ceil(max(0.0, end - start) / _MINUTE)

    def begun_before(moment: float) -> int:
        if math.isinf(moment):
            return total if moment > 0 else 0
        return min(total, max(0, math.ceil((moment - start) / _MINUTE)))

    return begun_before(until) - begun_before(since)


def _training_line(row: sqlite3.Row) -> BillLine:
    return BillLine(
        kind="fine_tune",
        what=row["what"],
        resource_id=row["id"],
        start=row["charged_at"],
        end=row["charged_at"],
        quantity=row["tokens"],
        unit="token",
        unit_price=Decimal(row["price_per_mtok"]) / NANO / 1_000_000,
        amount=row["amount"],
    )


def _token_lines(row: sqlite3.Row) -> list[BillLine]:
    start = row["hour"] * 3600.0
    return [
        BillLine(
            kind="inference",
            what=row["model"],
            resource_id=row["model"],
            start=start,
            end=start + 3600.0,
            quantity=row[f"{unit}_tokens"],
            unit=f"{unit} token",
            unit_price=Decimal(row[f"{unit}_price"]) / NANO / 1_000_000,
            amount=_divide(row[f"{unit}_tokens"] * row[f"{unit}_price"], 1_000_000),
        )
        for unit in ("input", "output")
    ]


def charge_training(emulator: Emulator, job: Any, *, share: float) -> int:
    """Charge the `share` (0..1) of a job that was trained; returns the nano-USD. The caller holds the transaction."""
    kind = training_kind(json.loads(job["request"])["training_type"])
    base = emulator.catalog.model(job["model"])
    assert base is not None, "a job's model is in the catalog"
    if share <= 0:
        return 0
    price = base.training_price(kind)
    tokens = math.ceil(job["token_count"] * share)
    amount = max(_divide(tokens * price, 1_000_000), int(emulator.catalog.minimum_training_price * NANO))
    emulator.state.insert(
        "training_charges",
        id=job["id"],
        charged_at=emulator.clock.timestamp(),
        what=f"{kind} fine-tuning of {job['model']}: {job['output_name']}",
        tokens=tokens,
        price_per_mtok=price,
        amount=amount,
    )
    return amount


def training_kind(training_type: dict[str, Any] | None) -> str:
    """What the price list calls a `training_type` of the wire; without one the service trains LoRA."""
    return "full" if (training_type or {}).get("type") == "Full" else "lora"


def training_price(emulator: Emulator, model: str, kind: str, tokens: int) -> int:
    """Nano-USD for a whole training."""
    base = emulator.catalog.model(model)
    assert base is not None, "a job's model is in the catalog"
    minimum = int(emulator.catalog.minimum_training_price * NANO)
    return max(_divide(tokens * base.training_price(kind), 1_000_000), minimum)


def remaining_balance(emulator: Emulator) -> int | None:
    """Nano-USD left of the configured balance; None: none is configured."""
    balance = emulator.state.get_setting("balance", None)
    if balance is None:
        return None
    return int(balance) - sum(line.amount for line in read_bill(emulator))


def require_funds(emulator: Emulator, needed: int = 1) -> None:
    """Refuse with 402 when less than `needed` nano-USD of the configured balance are left."""
    remaining = remaining_balance(emulator)
    if remaining is not None and remaining < needed:
        left = format_usd(max(remaining, 0))
        raise ApiError(402, f"Insufficient balance: {left} USD left. Add credits.", code="insufficient_balance")


def _divide(amount: int, by: int) -> int:
    """Rounded half up."""
    return (2 * amount + by) // (2 * by)


def format_usd(amount: int) -> str:
    """Nano-USD as decimal dollars."""
    return decimal_text(Decimal(amount) / NANO)


def decimal_text(value: Decimal) -> str:
    """Plain decimal text, without an exponent."""
    return f"{value:f}"


def describe_bill(emulator: Emulator) -> dict[str, Any]:
    lines = read_bill(emulator)
    remaining = remaining_balance(emulator)
    return {
        "now": format_time(emulator.clock.timestamp()),
        "currency": "USD",
        "items": [line.to_json() for line in lines],
        "total_usd": format_usd(sum(line.amount for line in lines)),
        "balance_usd": None if remaining is None else format_usd(remaining),
    }


BILL_ATTRIBUTES = ("resource", "typed", "path", "endpoint", "hardware", "absent")
"""What the `attributes` of a bill's lines may name. Together says only that they vary by product."""

_PRODUCTS = {"deployment": "Dedicated Inference", "fine_tune": "Fine-tuning", "inference": "Serverless Inference"}


def describe_usage(emulator: Emulator, month: str | None, granularity: str) -> tuple[str, list[dict[str, Any]]]:
    """(billing period, windows with something in them) for `GET /v1/billing/usage`."""
    stop_inactive(emulator)
    now = emulator.clock.now()
    first = _parse_month(month) if month else now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    start, end = first.timestamp(), (first + timedelta(days=32)).replace(day=1).timestamp()
    step = 3600.0 if granularity == "hour" else 86_400.0
    used: dict[float, list[BillLine]] = defaultdict(list)

    def window_of(moment: float) -> float:
        return moment - (moment - start) % step

    for row in _replicas(emulator, min(now.timestamp(), end)):
        moment = window_of(max(row["ready_at"], start))
        while moment < min(row["stopped_at"] or end, now.timestamp(), end):
            used[moment] += _replica_lines(row, now.timestamp(), moment, moment + step)
            moment += step
    for row in _training_charges(emulator, start, end):
        used[window_of(row["charged_at"])].append(_training_line(row))
    for row in _token_usage(emulator, start, end):
        used[window_of(row["hour"] * 3600.0)] += _token_lines(row)
    form = bill_form(emulator)["attributes"]
    windows = [
        {
            "date": format_time(moment)[:10],
            "start_time": format_time(moment),
            "end_time": format_time(moment + step),
            "line_items": [_describe_line_item(line, form) for line in sorted(lines, key=_by_start)],
        }
        for moment, lines in sorted(used.items())
        if lines
    ]
    return first.strftime("%Y-%m"), windows


def bill_form(emulator: Emulator) -> dict[str, Any]:
    """How the billing API answers: `attributes`, one of `BILL_ATTRIBUTES`, and `api`, whether it is there at all."""
    return {"attributes": "resource", "api": True, **emulator.state.get_setting("bill_form", {})}


def set_bill_form(emulator: Emulator, changes: dict[str, Any]) -> dict[str, Any]:
    """Change how the billing API answers from now on. Raises `ApiError` (400) on an unknown form."""
    if unknown := sorted(set(changes) - {"attributes", "api"}):
        raise ApiError(400, f"unknown keys: {', '.join(unknown)}; known are attributes, api")
    form = bill_form(emulator) | changes
    if form["attributes"] not in BILL_ATTRIBUTES:
        raise ApiError(400, f"attributes {form['attributes']!r} is not one of {', '.join(BILL_ATTRIBUTES)}")
    if not isinstance(form["api"], bool):
        raise ApiError(400, f"api {form['api']!r} is not true or false")
    with emulator.state.transaction():
        emulator.state.set_setting("bill_form", form)
    return form


def _describe_attributes(line: BillLine, form: str) -> dict[str, str]:
    if form == "resource":
        return {"resource_id": line.resource_id, "description": line.what}
    if form == "absent":
        return {}
    if line.kind == "inference":
        return {"model": line.resource_id}
    project = PROJECT["id"]
    if form == "hardware" or (form == "endpoint" and line.kind == "fine_tune"):
        tuned = line.what.split(":", 1)[0]  # the kind and the base model, not the name of what came out
        return {"project_id": project} | (
            {"training": tuned} if line.kind == "fine_tune" else {"hardware": line.what.rsplit(" ", 1)[-1]}
        )
    if line.kind == "fine_tune":
        return {"fine_tune_id": line.resource_id}
    endpoint = "/".join(line.what.split(" on ", 1)[0].split("/")[:2])  # local/<endpoint>/<deployment>
    if form == "endpoint":
        return {"endpoint_name": endpoint, "project_id": project}
    if form == "typed":
        return {"deployment_id": line.resource_id, "endpoint_name": endpoint}
    return {"resource": f"projects/{project}/endpoints/{endpoint}/deployments/{line.resource_id}"}


def _describe_line_item(line: BillLine, form: str) -> dict[str, Any]:
    return {
        "product_name": _PRODUCTS[line.kind],
        "cost": format_usd(line.amount),
        "quantity": str(line.quantity),
        "unit_price": decimal_text(line.unit_price),
        "attributes": _describe_attributes(line, form),
        "pricing_dimensions": {"unit": line.unit},
        "applied_credit": {"type": "POSTPAID"},
    }


def _parse_month(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)
    except ValueError:
        raise ApiError(400, f"month {text!r} is not written as YYYY-MM", param="month") from None


def describe_report(emulator: Emulator, period: str, page: dict[str, Any]) -> dict[str, Any]:
    windows = page["data"]
    return page | {
        "organization_id": ORGANIZATION["id"],
        "billing_period": period,
        "currency": "USD",
        "earliest_window_start": windows[0]["start_time"] if windows else None,
        "latest_window_end": windows[-1]["end_time"] if windows else None,
    }
