"""Reports as plain data and as Markdown, for the CLI, Prefect's artifacts and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quality.evaluation.evaluate import Estimate, Evaluation


def to_jsonable(value: Any) -> Any:
    """`value` as JSON has it: dataclasses become objects, decimals and paths text, times RFC 3339."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_jsonable(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return str(value)  # DuckDB has integers of 128 bits, orjson has none
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def without(report: Any, *names: str) -> dict[str, Any]:
    """A report without some of its fields."""
    return {name: value for name, value in _items(report) if name not in names}


def _items(report: Any) -> list[tuple[str, Any]]:
    if dataclasses.is_dataclass(report):
        return [(field.name, getattr(report, field.name)) for field in dataclasses.fields(report)]
    return list(report.items())


def evaluation_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """An evaluation as a table: a row a metric, the sources and the differences between them with their intervals."""
    ours = "candidate" if "candidate" in evaluation.sources else "custom"  # in live traffic
    rows = []
    for metric in dict.fromkeys(name for source in evaluation.sources.values() for name in source.metrics):
        row: dict[str, Any] = {"metric": metric + (" (judged by)" if metric == evaluation.primary else "")}
        for name, source in evaluation.sources.items():
            row[name] = _estimate(source.metrics.get(metric))
        for other in evaluation.sources:
            if other != ours:
                row[f"{ours} - {other}"] = _estimate(evaluation.difference(ours, other, metric), signed=True)
        rows.append(row)
    for what in ("failed", "latency_p50_ms", "latency_p95_ms", "cost_per_1000_usd"):
        rows.append({"metric": what} | {name: getattr(source, what) for name, source in evaluation.sources.items()})
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [{column: row.get(column) for column in columns} for row in rows]


def _estimate(estimate: Estimate | None, *, signed: bool = False) -> str | None:
    if estimate is None:
        return None
    sign = "+" if signed else ""
    return f"{estimate.value:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"


def cost_fields(costs: dict[str, Any]) -> dict[str, Any]:
    """A cost report without its tables; what each kind of charge came to goes by the name that a model's has."""
    kinds = {f"{kind}_usd": usd for kind, usd in costs["by_kind_usd"].items()}
    found: dict[str, Any] = {}
    for name, value in without(costs, "models", "budgets").items():
        found |= kinds if name == "by_kind_usd" else {name: value}
    return found


def cost_rows(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The models of a cost report as a table, what matters most first: a page shows six or seven columns."""
    first = ("model_id", "decision_type", "total_usd", "training_usd", "endpoint_usd", "requests")
    return [{name: row[name] for name in first} | row for row in models]


def budget_rows(budgets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The budgets of a cost report as a table, a row a budget, what matters most first."""
    return [
        without(budget, "used_fraction", "exhausted_at", "left_usd")
        | {
            "decision_type": budget["decision_type"] or "all",
            "used": f"{budget['used_fraction']:.1%}",
            "exhausted_at": budget["exhausted_at"],
            "left_usd": budget["left_usd"],
        }
        for budget in budgets
    ]


def model_rows(status: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The status of every model as a table, what matters most first: a page shows six or seven columns."""
    first = ("model_id", "decision_type", "state", "enabled", "deployment_state", "hourly_usd", "cost_usd")
    return [{name: row[name] for name in first} | row for row in status]


def fields(report: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of everything that a report has to say; what is empty is left out."""
    for name, value in _items(report):
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        for key, item in inner:
            if item not in (None, [], {}, ""):
                yield f"{name} {key}".strip().replace("_", " "), item


def text(value: Any) -> str:
    """A value in a table: times in UTC (those without a zone as they are), money to a hundredth of a cent, and what is
    less than that whole."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}" if value.tzinfo is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
    if isinstance(value, Decimal):
        digits = 4 if value == 0 or abs(value) >= Decimal("0.0001") else 9
        return f"{value:,.{digits}f}".rstrip("0").rstrip(".")
    value = value if isinstance(value, list | dict) else to_jsonable(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, list):
        return ", ".join(text(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {text(item)}" for key, item in value.items())
    return str(value)


def markdown(report: Any) -> str:
    """A report as a Markdown table, a row a field."""
    lines = [("what", "value"), ("---", "---"), *fields(report)]
    return "\n".join("| " + " | ".join(text(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
