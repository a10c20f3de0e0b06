"""What the demo shows first: three decisions side by side, and how often each side was right."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import storage
from quality.evaluation.evaluate import is_right
from reasoning.decision_types import DecisionType, get_decision_type

if TYPE_CHECKING:
    from rich.console import Console

_LINE = 70
_ANSWER = 28

_ANSWERED_BY_BOTH = """
SELECT decision_type, messages[-1].content, demonstration, original_decision, custom_decision
FROM labelled_decisions
WHERE ts >= $since AND demonstration IS NOT NULL AND original_decision IS NOT NULL AND custom_decision IS NOT NULL
ORDER BY decision_type DESC, ts
"""


@dataclass(frozen=True)
class Told:
    """A decision that rule and model both took: what was asked last, the right answer, and both answers."""

    decision_type: str
    asked: str
    right: str
    rule: str
    model: str
    rule_is_right: bool
    model_is_right: bool


def read_story(data: Path, since: datetime) -> list[Told]:
    """Every decision since then of which both answers and the right one are known."""
    found = []
    for name, asked, right, rule, model in storage.sql(data, _ANSWERED_BY_BOTH, {"since": since}).rows:
        kind = get_decision_type(name)
        truth = kind.normalize(json.loads(right))
        rule, model = json.loads(rule), json.loads(model)
        found.append(
            Told(
                name,
                _last_line(asked),
                _short(kind, truth),
                _short(kind, rule),
                _short(kind, model),
                bool(is_right(kind, truth, rule)),
                bool(is_right(kind, truth, model)),
            )
        )
    return found


def pick_examples(told: Iterable[Told]) -> list[Told]:
    """Three decisions of one type: the model alone was right, both were, the rule alone was. What there is of these."""
    told = list(told)
    wanted = [(False, True), (True, True), (True, False)]
    picked: list[Told] = []
    for each in wanted:
        fitting = [one for one in told if (one.rule_is_right, one.model_is_right) == each]
        shown = {one.right for one in picked}
        picked += [one for one in fitting if one.right not in shown][:1] or fitting[:1]
    return picked


def headlines(told: Sequence[Told]) -> list[str]:
    """A sentence for each decision type: how many of a hundred each side got right."""
    lines = []
    for name in dict.fromkeys(one.decision_type for one in told):
        of_type = [one for one in told if one.decision_type == name]
        model = 100 * sum(one.model_is_right for one in of_type) / len(of_type)
        rule = 100 * sum(one.rule_is_right for one in of_type) / len(of_type)
        lines.append(
            f"{name}: the model is right in {model:.0f} of 100, the rule in {rule:.0f} "
            f"({len(of_type):,} later decisions that both answered)"
        )
    return lines


def print_story(told: Sequence[Told], console: Console) -> None:
    """Print the examples as a table, then the headlines. Prints nothing where no model answered."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not told:
        return
    examples = pick_examples(one for one in told if one.decision_type == told[0].decision_type)
    title = f"Decisions that the model had never seen: {told[0].decision_type}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in ("said last", "right", "the rule", "the model"):
        table.add_column(column)

    def mark(answer: str, is_good: bool) -> Text:
        return Text(f"{'✓' if is_good else '✗'} {_cut(answer, _ANSWER)}", style="green" if is_good else "red")

    for one in examples:
        table.add_row(
            Text(_cut(one.asked, _LINE)),
            Text(_cut(one.right, _ANSWER)),
            mark(one.rule, one.rule_is_right),
            mark(one.model, one.model_is_right),
        )
    console.print(table)
    for line in headlines(told):
        console.print(line, style="bold", highlight=False)
    console.print()


def _last_line(asked: str) -> str:
    """The last line of a conversation: what follows it, after an empty line, is what the agent is asked."""
    said = asked.strip().rpartition("\n\n")[0] or asked.strip()
    return said.splitlines()[-1] if said else ""


def _short(kind: DecisionType, decision: dict[str, Any]) -> str:
    answer = decision.get("action", decision.get("actions"))
    return ", ".join(answer) if isinstance(answer, list) else str(answer or kind.name)


def _cut(text: str, width: int) -> str:
    text = "".join(each if each.isprintable() else " " for each in text)
    return text if len(text) <= width else text[: width - 1] + "…"
