"""The demo's report: one self-contained HTML file, and tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from demo.result import Comparison, DemoResult, FunnelResult
from storage.files import write_atomic

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.economy.pays import TypePays

METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "f1_respond": "F1 of RESPOND",
    "auc": "AUC",
    "brier": "Brier score",
    "ece": "calibration error",
    "exact_match": "exact plan",
    "set_f1": "F1 of the actions",
    "order": "order of the actions",
}
"""Names of the metrics in the report, in its order: what a source is judged by comes first."""


def write_report(result: DemoResult, path: Path) -> None:
    """Write the report as one HTML file that opens offline, with its styles and figures inside."""
    from jinja2 import Environment
    from markupsafe import Markup

    from demo import plots

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    spend = [(_time(point["ts"]), float(point["spent_usd"])) for point in result["spend"]]
    limit = next((float(b["limit_usd"]) for b in result["budgets"] if b["period"] == "total"), None)
    stopped = [_time(action["ts"]) for action in result["actions"]]
    # Markup: the figures are SVG of our own making.
    calibration = [
        Markup(plots.plot_calibration(name, points))  # noqa: S704
        for name, points in result["calibration"].items()
        if points
    ]
    latencies = [
        Markup(plots.plot_latencies(name, sources))  # noqa: S704
        for name, sources in result["latencies_ms"].items()
        if any(sources.values())
    ]
    html = template.render(
        clock="the day" if result["provider"] == "together" else "the data",
        period=[f"{_time(result[key]):%-d %B %Y, %H:%M}" for key in ("collected_from", "turned_at", "served_until")],
        tiles=_tiles(result),
        comparisons=[_compare(one) for one in result["comparisons"]],
        calibration=calibration,
        latencies=latencies,
        latency_rows=list(_latency_rows(result)),
        decisions=list(_decision_rows(result)),
        funnels=[_funnel(name, funnel) for name, funnel in result["funnels"].items()],
        quality=result["quality"],
        spend=Markup(plots.plot_spend(spend, limit, stopped)),  # noqa: S704
        trainings=list(_training_rows(result)),
        budgets=list(_budget_rows(result)),
        reconciliation=_reconcile(result),
        actions=list(_action_rows(result)),
        steps=_steps(result),
        places=result["places"],
        footer=_footer(result),
    )
    write_atomic(path, html.encode())


def print_report(result: DemoResult, console: Console) -> None:
    """Print the report as tables."""
    console.print(_table("Decisions", ["decision type", "phase", "source", "decisions"], _decision_rows(result)))
    dropped = [
        (name, reason.replace("_", " "), f"{rows:,}", f"{rows / max(funnel['selected'], 1):.1%}")
        for name, funnel in result["funnels"].items()
        for reason, rows in funnel["dropped"].items()
        if rows
    ]
    console.print(_table("Rows not learned from", ["decision type", "reason", "rows", "share"], dropped))
    failures = result["quality"].get("failures", [])
    console.print(
        f"Quality: {'[green]passed[/]' if result['quality'].get('success') else '[red]not passed[/]'}, "
        f"{result['quality'].get('checked', 0)} expectations, {len(failures)} not met\n"
    )
    columns = ["decision type", "base model", "rows", "tokens", "time", "cost"]
    console.print(_table("Training", columns, _training_rows(result)))
    quality = [
        (f"{one['decision_type']}, {one['rows_of']}", *row)
        for one in result["comparisons"]
        for row in _metric_rows(one["evaluation"])
    ]
    columns = ["rows", "metric", "original", "custom", "difference, 95 %"]
    console.print(_table("Fallback against model", columns, quality))
    columns = ["decision type", "source", "answers", "p50", "p95", "p99"]
    console.print(_table("Latency", columns, _latency_rows(result)))
    console.print(_table("Spend against budget", ["period", "for", "spent", "limit"], _budget_rows(result)))
    console.print(_table("Shut down", ["when", "what and why"], _action_rows(result)))
    console.print(f"{_reconcile(result)}\n")
    console.print("[bold]Next steps[/]\n")
    for place in result["places"]:
        # Whole lines, however narrow the terminal: they are there to be copied.
        console.print(f"  {place['what']}\n    {place['how']}", markup=False, highlight=False, soft_wrap=True)


def print_value(found: Sequence[TypePays], console: Console) -> None:
    """Print what each way of serving the decisions of the log would cost."""
    rows = [
        (each.decision_type, way.title, *(f"${usd:,.2f}" for usd in (way.usd_per_month, way.usd_per_1000)))
        for each in found
        for way in each.ways
        if way.usd_per_month is not None and way.usd_per_1000 is not None
    ]
    columns = ["decision type", "served by", "a month", "per 1,000"]
    console.print(_table("What serving these decisions would cost", columns, rows))
    console.print("`reasoning pays` says of your own log whether a model pays.\n", highlight=False)


def _table(title: str, columns: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    numbers = {"decisions", "rows", "share", "tokens", "time", "cost", "answers", "p50", "p95", "p99", "spent", "limit"}
    numbers |= {"a month", "per 1,000"}
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number and column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    if not table.row_count:
        table.add_row(*["none", *[""] * (len(columns) - 1)])
    return table


def _tiles(result: DemoResult) -> list[dict[str, str]]:
    total = sum(row["rows"] for row in result["decisions"])
    custom = sum(row["rows"] for row in result["decisions"] if row["source"] == "custom")
    training = sum(float(training["cost_usd"]) for training in result["trainings"])
    tiles = [(f"{total:,}", "decisions in all"), (f"{custom:,}", "answered by custom models")]
    tiles += [(f"${training:,.2f}", "for training")]
    tiles += [
        (f"${float(budget['spent_usd']):,.2f}", f"spent of ${float(budget['limit_usd']):,.2f}")
        for budget in result["budgets"]
        if budget["period"] == "total" and budget["decision_type"] is None
    ]
    tiles.append((_seconds(result["seconds"]), "for the whole cycle"))
    return [{"value": value, "label": label} for value, label in tiles]


def _custom_of(evaluation: Mapping[str, Any]) -> str | None:
    """The source that is neither the original logic nor an older model."""
    return next((name for name in evaluation["sources"] if name not in ("original", "incumbent")), None)


def _difference(evaluation: Mapping[str, Any], metric: str) -> Mapping[str, float] | None:
    differences: Mapping[str, Mapping[str, float]]
    differences = evaluation["differences"].get(f"{_custom_of(evaluation)} - original", {})
    return differences.get(metric)


def _compare(one: Comparison) -> dict[str, Any]:
    evaluation = one["evaluation"]
    primary, custom = evaluation["primary"], _custom_of(evaluation)
    found = {name: evaluation["sources"].get(name, {}).get("metrics", {}).get(primary) for name in ("original", custom)}
    bars = []
    for kind, name in (("original", "original"), ("custom", custom)):
        if estimate := found[name]:
            low, high = (100 * min(max(estimate[key], 0), 1) for key in ("low", "high"))
            bars.append(
                {
                    "source": kind,
                    "kind": kind,
                    "low": round(low, 2),
                    "width": round(high - low, 2),
                    "at": round(100 * estimate["value"], 2),
                    "value": f"{estimate['value']:.3f}",
                }
            )
    difference = _difference(evaluation, primary)
    mood, conclusion = "", "not comparable"
    if difference is not None:
        better, worse = difference["low"] > 0, difference["high"] < 0
        mood = "win" if better else "lose" if worse else ""
        conclusion = "worse, the interval is below zero" if worse else "no difference shown"
        if better:
            conclusion = "better, the interval is clear of zero"
    return {
        "decision_type": one["decision_type"],
        "rows_of": one["rows_of"],
        "rows": evaluation["rows"],
        "episodes": evaluation["episodes"],
        "primary": _metric_name(primary),
        "bars": bars,
        "difference": _interval(difference, signed=True),
        "mood": mood,
        "conclusion": conclusion,
        "verdict": one.get("verdict", ""),
        "table": list(_metric_rows(evaluation)),
        "notes": evaluation.get("notes", []),
    }


def _metric_rows(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    custom = _custom_of(evaluation)
    sources = [evaluation["sources"].get(name, {}).get("metrics", {}) for name in ("original", custom)]
    found = {name for source in sources for name in source}
    for metric in [*(name for name in METRICS if name in found), *sorted(found - METRICS.keys())]:
        original, ours = (_value(source.get(metric)) for source in sources)
        yield _metric_name(metric), original, ours, _interval(_difference(evaluation, metric), signed=True)


def _metric_name(metric: str) -> str:
    return METRICS.get(metric, metric.replace("_", " "))


def _value(estimate: Mapping[str, float] | None) -> str:
    return f"{estimate['value']:.3f}" if estimate else "–"


def _interval(estimate: Mapping[str, float] | None, *, signed: bool = False) -> str:
    if not estimate:
        return "–"
    sign = "+" if signed else ""
    return f"{estimate['value']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"


def _decision_rows(result: DemoResult) -> Iterator[tuple[str, str, str, str]]:
    for row in result["decisions"]:
        yield row["decision_type"], row["phase"], row["source"], f"{row['rows']:,}"


def _funnel(name: str, funnel: FunnelResult) -> dict[str, Any]:
    rows = [("in the log", funnel["selected"], "")]
    rows += [
        (f"− {reason.replace('_', ' ')}", count, "dropped") for reason, count in funnel["dropped"].items() if count
    ]
    rows += [(split, count, "") for split, count in funnel["splits"].items()]
    top = max(funnel["selected"], 1)
    return {
        "name": name,
        "rows": [{"label": a, "count": n, "kind": kind, "width": round(100 * n / top, 1)} for a, n, kind in rows],
        "labels": ", ".join(f"{count:,} {source}" for source, count in funnel["label_sources"].items()),
    }


def _training_rows(result: DemoResult) -> Iterator[tuple[str, ...]]:
    for one in result["trainings"]:
        yield (
            one["decision_type"],
            one["base_model"],
            f"{one['rows']:,}",
            f"{one['tokens']:,}",
            _seconds(one["seconds"]),
            _usd(one["cost_usd"]),
        )


def _latency_rows(result: DemoResult) -> Iterator[tuple[str, ...]]:
    for name, sources in result["latencies_ms"].items():
        for source, values in sources.items():
            if values:
                p50, p95, p99 = np.percentile(values, [50, 95, 99])
                yield name, source, f"{len(values):,}", *(f"{value:,.2f} ms" for value in (p50, p95, p99))


def _budget_rows(result: DemoResult) -> Iterator[tuple[str, str, str, str]]:
    for budget in result["budgets"]:
        yield budget["period"], budget["decision_type"] or "all", _usd(budget["spent_usd"]), _usd(budget["limit_usd"])


def _action_rows(result: DemoResult) -> Iterator[tuple[str, str]]:
    for action in result["actions"]:
        yield f"{_time(action['ts']):%-d %B %H:%M}", action["what"]


def _reconcile(result: DemoResult) -> str:
    found = result["reconciliation"]
    said = f"The provider billed {_usd(found['billed_usd'])}, our ledger said {_usd(found['charged_usd'])}"
    if result["provider"] == "local":
        return "Training and serving on this machine cost nothing."
    if result["provider"] == "together":
        said = "The provider's bill is complete an hour later; `reasoning reconcile` compares it with our ledger. "
    elif float(found["difference_usd"]) == 0:
        said += " too. "
    else:
        said += f", and was corrected by {_usd(found['difference_usd'])}. "
    return said + (f"Orphans: {', '.join(found['orphans'])}." if found["orphans"] else "Nothing was left running.")


def _steps(result: DemoResult) -> list[dict[str, Any]]:
    total = sum(step["seconds"] for step in result["steps"]) or 1.0
    steps, before = [], 0.0
    for step in result["steps"]:
        steps.append(
            {
                "name": step["name"],
                "said": step["said"],
                "seconds": _seconds(step["seconds"]),
                "left": round(100 * before / total, 2),
                "width": round(100 * step["seconds"] / total, 2),
            }
        )
        before += step["seconds"]
    return steps


def _footer(result: DemoResult) -> str:
    where = {
        "local": "The models were trained and served on this machine. No money was spent.",
        "emulator": "The provider was the emulator on this machine. It bills at list prices; no money was spent.",
        "together": "The provider was Together: this money was spent.",
    }
    return where.get(result["provider"], "")


def _usd(amount: str) -> str:
    value = float(amount)
    digits = 2 if value == 0 or abs(value) >= 0.01 else 6
    return f"{'-' if value < 0 else ''}${abs(value):,.{digits}f}"


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
