"""The model card of an evaluation: what the model is, how good it is, where it is weak, and what it got wrong.

Kept as JSON (`as_dict`) with the evaluation, and shown as Markdown (`as_markdown`). It keeps the ids of its examples
and no text of a question, which an erasure could not reach: the texts are read from the holdout when it is shown.
After Mitchell et al., "Model Cards for Model Reporting", FAT* 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quality.evaluation.answers import Label, SourceAnswer
from quality.evaluation.evaluate import Evaluation, is_right
from quality.evaluation.intervals import Estimate
from quality.evaluation.slices import Slice, describe_worst
from reasoning.decision_types import DecisionType

EXAMPLES = 3
_MOST_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Example:
    """A row on which the candidate and the other source disagree.

    The answers are labels of the type; None for other answer forms, whose answers are text.
    """

    decision_id: str
    right: str | None
    candidate: str | None
    other: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What is to be known of a model before it serves. `wins` and `losses` are examples against `against`."""

    model_id: str
    decision_type: str
    base_model: str
    dataset_id: str
    evaluation_id: str
    created_at: str
    verdict: str
    why: str
    rows: int
    episodes: int
    label_sources: dict[str, int]
    primary: str
    against: str
    quality: dict[str, Estimate | None]
    difference: Estimate | None
    latency_p95_ms: float | None
    cost_per_1000_usd: float | None
    worst_slice: str
    slices: list[Slice]
    wins: list[Example]
    losses: list[Example]
    won: int
    lost: int
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def make_card(
    evaluation: Evaluation, slices: Sequence[Slice], wins: Sequence[Example], losses: Sequence[Example]
) -> ModelCard:
    """The card of an evaluation that has its verdict. Of the wins and losses a few are kept, and all are counted."""
    about, verdict = evaluation.about, evaluation.about.get("verdict") or {}
    against = "incumbent" if "incumbent" in evaluation.sources else "original"
    candidate = evaluation.sources["candidate"]
    return ModelCard(
        model_id=str(about.get("model_id")),
        decision_type=evaluation.decision_type,
        base_model=str(about.get("base_model")),
        dataset_id=str(about.get("dataset_id")),
        evaluation_id=evaluation.evaluation_id,
        created_at=evaluation.created_at,
        verdict=str(verdict.get("decision")),
        why=str(verdict.get("why")),
        rows=evaluation.rows,
        episodes=evaluation.episodes,
        label_sources=evaluation.label_sources,
        primary=evaluation.primary,
        against=against,
        quality={name: source.metrics.get(evaluation.primary) for name, source in evaluation.sources.items()},
        difference=evaluation.difference("candidate", against),
        latency_p95_ms=candidate.latency_p95_ms,
        cost_per_1000_usd=candidate.cost_per_1000_usd,
        worst_slice=describe_worst(slices),
        slices=list(slices),
        wins=list(wins[:EXAMPLES]),
        losses=list(losses[:EXAMPLES]),
        won=len(wins),
        lost=len(losses),
        notes=list(evaluation.notes),
    )


def find_examples(
    kind: DecisionType,
    labels: Sequence[Label],
    answers: Mapping[str, Sequence[SourceAnswer | None]],
    decision_ids: Sequence[str],
) -> tuple[list[Example], list[Example]]:
    """Rows that the candidate got right and the other wrong, and the reverse. `decision_ids` has an id for each row."""
    other = "incumbent" if "incumbent" in answers else "original"
    wins: list[Example] = []
    losses: list[Example] = []
    for row, label in enumerate(labels):
        ours, theirs = answers["candidate"][row], answers.get(other, [None] * len(labels))[row]
        if ours is None or theirs is None or label.source == "original":
            continue
        right = [is_right(kind, label.decision, each.decision) for each in (ours, theirs)]
        if right[0] == right[1]:
            continue
        decisions = (label.decision, ours.decision, theirs.decision)
        example = Example(decision_ids[row], *(_shown(kind, decision) for decision in decisions))
        (wins if right[0] else losses).append(example)
    return wins, losses


def as_markdown(card: ModelCard, questions: Mapping[str, str] | None = None) -> str:
    """The card as Markdown. `questions` has the redacted texts of examples by decision id, where they are shown."""
    lines = [
        f"# Model {card.model_id}",
        "",
        f"For `{card.decision_type}`, made of {card.base_model} and dataset {card.dataset_id}. "
        f"Evaluation {card.evaluation_id} of {card.created_at}.",
        "",
        f"**Verdict: {card.verdict}.** {card.why}",
        "",
        f"## Quality: {card.primary.replace('_', ' ')} on {card.rows:,} rows of {card.episodes:,} episodes",
        "",
        "| source | value | 95 % interval |",
        "|---|---|---|",
        *(f"| {name} | {_estimate(found)} |" for name, found in card.quality.items()),
        f"| candidate less {card.against} | {_estimate(card.difference, sign='+')} |",
        "",
        f"Latency, 95th percentile: {_number(card.latency_p95_ms, 'ms')}. "
        f"1,000 decisions: {_number(card.cost_per_1000_usd, 'USD')}.",
        "",
        "## Where it is weak",
        "",
        card.worst_slice,
    ]
    if card.slices:
        columns = ("slice", "rows", "candidate", f"less {card.against}, 95 % interval", "p (Holm)")
        lines += ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *map(_slice_line, card.slices)]
    for title, count, examples in (("Won", card.won, card.wins), ("Lost", card.lost, card.losses)):
        lines += ["", f"## {title} against the {card.against}: {count:,} rows", ""]
        lines += [_example_line(each, card.against, (questions or {}).get(each.decision_id)) for each in examples]
    if card.notes:
        lines += ["", "## Notes", "", *(f"* {note}" for note in card.notes)]
    return "\n".join(lines) + "\n"


def _estimate(found: Estimate | None, sign: str = "") -> str:
    if found is None:
        return "undefined | "
    return f"{found.value:{sign}.3f} | [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def _number(value: float | None, unit: str) -> str:
    return "not known" if value is None else f"{value:,.4g} {unit}"


def _slice_line(found: Slice) -> str:
    quality = "" if found.quality is None else f"{found.quality.value:.3f}"
    interval = f"{found.difference.value:+.3f} [{found.difference.low:+.3f}, {found.difference.high:+.3f}]"
    cells = (f"{found.facet} {_cell(found.value)}", f"{found.rows:,}", quality, interval, f"{found.p_value:.2g}")
    return f"| {' | '.join(cells)} |"


def _example_line(example: Example, against: str, question: str | None) -> str:
    text = "" if question is None else f": {_cell(_last(question))}"
    if example.right is None:
        return f"* `{example.decision_id}`{text}"
    answers = (("right", example.right), ("candidate", example.candidate), (against, example.other))
    return f"* `{example.decision_id}`{text} ({'; '.join(f'{name}: {_cell(str(said))}' for name, said in answers)})"


def _shown(kind: DecisionType, decision: dict[str, Any] | None) -> str | None:
    if not kind.labels:
        return None
    return "no answer" if decision is None else kind.form.answer_class(kind.normalize(decision))


def _last(text: str) -> str:
    """The end of a question, which is what is to be decided on."""
    return text if len(text) <= _MOST_CHARACTERS else "..." + text[-_MOST_CHARACTERS:]


def _cell(text: str) -> str:
    """Anyone's text within a table or a line of Markdown: no line breaks, no markup of its own."""
    one_line = " ".join(text.split())
    return "".join(f"\\{c}" if c in "|`*_<>[]#\\" else c for c in one_line)


def read_card(content: Mapping[str, Any]) -> ModelCard:
    """The card that a recorded evaluation keeps (`ModelCard.as_dict`)."""

    def estimate(found: Mapping[str, Any] | None) -> Estimate | None:
        return None if found is None else Estimate(**found)

    slices = [
        Slice(**{**each, "quality": estimate(each["quality"]), "difference": Estimate(**each["difference"])})
        for each in content["slices"]
    ]
    examples = {name: [Example(**each) for each in content[name]] for name in ("wins", "losses")}
    quality = {name: estimate(found) for name, found in content["quality"].items()}
    difference = estimate(content["difference"])
    return ModelCard(**{**content, **examples, "slices": slices, "quality": quality, "difference": difference})
