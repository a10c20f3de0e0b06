"""Candidate, incumbent and original on the holdout that none of them has seen."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import storage
from pipeline.errors import MissingStep
from pipeline.models import find_dataset, find_deployment
from pipeline.parameters import EvaluateSettings
from pipeline.selection import find_model
from pipeline.traffic import questions_per_hour
from provider.clock import clock_of
from provider.completions import complete_many
from provider.endpoint.charging import ask_charged
from provider.lifecycle.sharing import hourly_part
from provider.money.token_prices import tokens_usd
from provider.port import CompletionResult, Sampling
from provider.providers import capabilities_of, open_provider_of
from quality.dataset.manifest import DatasetRow, read_manifest, read_rows
from quality.dataset.redaction import redaction_note
from quality.evaluation.error_budget import allow
from quality.evaluation.evaluate import Evaluation, Label, SourceAnswer, evaluate
from quality.evaluation.model_card import ModelCard, find_examples, make_card, read_card
from quality.evaluation.objectives import load_objective
from quality.evaluation.promotion import judge
from quality.evaluation.slices import Facets, find_slices
from quality.evaluation.thresholds import Threshold, choose_threshold
from quality.evaluation.worth import WorthPolicy, judge_worth, load_worth
from reasoning.config import Config, load_config
from reasoning.decision_types import DecisionType, get_decision_type
from reasoning.errors import UnparseableAnswer
from reasoning.records import Message
from reasoning.redaction.placeholders import RedactedPrompt
from reasoning.redaction.prompts import redact_prompt
from storage.errors import DatasetError
from storage.layout import Layout
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import evaluations_of, last_evaluation, save_evaluation
from storage.ledger.rows import (
    INCUMBENT_STATES,
    Deployment,
    DeploymentState,
    Model,
    UploadedDataset,
    required,
)
from storage.progress import OnProgress, part_of

if TYPE_CHECKING:
    from storage.ledger.ledger import Ledger


_POSITION_ROWS = 200
"""So many rows are asked once more with their options in reverse order."""
_LEAST_VALIDATION_ROWS = 30
SEEN = "the model was not trained here: that it has not seen the questions of this holdout is for you to know"


def evaluate_model(
    data: Path,
    model: str,
    settings: EvaluateSettings | None = None,
    *,
    now: datetime | None = None,
    progress: OnProgress | None = None,
) -> Evaluation:
    """Ask a deployed model (its id, or a decision type; `pipeline.selection`) every question of the holdout, and
    compare.

    The incumbent is asked the same where one serves; the original's answers are those of the log. What an answer
    costs is the deployment's price an hour over the questions of its type an hour, of the last 7 days, and the price of
    its tokens where they have one. Kept in the ledger, the verdict (`quality.evaluation.promotion`) in `about`. Raises
    `MissingStep` where the model is not deployed.
    """
    settings = settings or EvaluateSettings()
    with open_ledger(data) as ledger:
        row = find_model(data, ledger, model, "evaluate")
        config = load_config(data)
        kind = get_decision_type(required(row.decision_type, f"the decision type of model {row.id}"), config)
        folder = find_dataset(data, settings.dataset or dataset_of(data, ledger, row))
        manifest = read_manifest(folder)
        questions = read_rows(folder, "holdout", config=config)[-settings.limit if settings.limit else None :]
        if not questions:
            raise MissingStep(f"the holdout of {folder} has no rows: export a dataset of more decisions")
        servers = {"candidate": _server_of(ledger, row)}
        if (incumbent := find_incumbent(ledger, row)) is not None:
            servers["incumbent"] = incumbent
        traffic = questions_per_hour(data, kind.name, clock_of(now)())
        exam = _Exam(kind, questions, traffic, config, now)
        answers: dict[str, Sequence[SourceAnswer | None]] = {"original": [_original_answer(row) for row in questions]}
        for number, (source, server) in enumerate(servers.items()):
            answers[source] = _ask(ledger, exam, server, part_of(progress, number, len(servers), source))
        bias = _measure_position_bias(ledger, exam, servers["candidate"], answers["candidate"])
    labels = [Label(question.label, question.episode, question.label_source) for question in questions]
    evaluation = evaluate(
        kind,
        labels,
        answers,
        now=now,
        objective=load_objective(kind),
        about={
            "model_id": row.id,
            "base_model": row.base_model,
            "served_name": servers["candidate"].served_name,
            "incumbent_model_id": servers["incumbent"].model_id if "incumbent" in servers else None,
            "dataset_id": manifest.dataset_id,
            "holdout": [manifest.splits["holdout"].first, manifest.splits["holdout"].last],
            **({"position_bias": bias} if bias else {}),
        },
    )
    notes = redaction_note(manifest, config), None if capabilities_of(row.provider).trains else SEEN
    evaluation.notes.extend(filter(None, notes))
    with open_ledger(data) as ledger:
        _judge(ledger, kind, evaluation, settings, now=clock_of(now)())
        evaluation.about["card"] = _card(data, kind, evaluation, questions, labels, answers).as_dict()
        save_evaluation(ledger, evaluation.as_dict())
    return evaluation


def _card(
    data: Path,
    kind: DecisionType,
    evaluation: Evaluation,
    questions: Sequence[DatasetRow],
    labels: Sequence[Label],
    answers: dict[str, Sequence[SourceAnswer | None]],
) -> ModelCard:
    """The model card: slices by what the log knows of each row, wins and losses."""
    known = _asked_by(data, kind.name, questions)
    facets = [
        Facets(
            agent=known.get(row.decision_id, (None, None))[0],
            speakers=known.get(row.decision_id, (None, None))[1],
            text="\n".join(str(message["content"]) for message in row.messages if message["role"] == "user"),
            ts=row.ts,
        )
        for row in questions
    ]
    slices = find_slices(kind, labels, answers, facets, objective=load_objective(kind))
    wins, losses = find_examples(kind, labels, answers, [row.decision_id for row in questions])
    return make_card(evaluation, slices, wins, losses)


def _asked_by(data: Path, decision_type: str, rows: Sequence[DatasetRow]) -> dict[str, tuple[str | None, int | None]]:
    """Agent and number of speakers by decision id, of the rows that are still in the log."""
    query = """
        SELECT decision_id::VARCHAR, agent_id, len(subject_ids) FROM decisions
        WHERE decision_type = ? AND date BETWEEN ? AND ? AND list_contains(?, decision_id::VARCHAR)
    """
    days = [min(row.ts for row in rows).date(), max(row.ts for row in rows).date()]
    found = storage.sql(data, query, [decision_type, *days, [row.decision_id for row in rows]]).rows
    return {decision_id: (agent, speakers) for decision_id, agent, speakers in found}


def show_card(data: Path, model: str) -> tuple[ModelCard, dict[str, str]]:
    """The card of a model's newest evaluation, and the questions of its examples by decision id.

    The questions are those of the holdout, redacted; of one that was erased or deleted there are none. Raises
    `MissingStep` where the model has no card.
    """
    config = load_config(data)
    with open_ledger(data) as ledger:
        row = find_model(data, ledger, model, "show")
        found = last_evaluation(ledger, row.id)
    content = None if found is None else found.content.get("about", {}).get("card")
    if content is None:
        raise MissingStep(f"model {row.id} has no card: `reasoning evaluate {row.id}` makes one")
    card = read_card(content)
    wanted = {each.decision_id for each in (*card.wins, *card.losses)}
    questions: dict[str, str] = {}
    with suppress(MissingStep, DatasetError, OSError):
        for each in read_rows(find_dataset(data, card.dataset_id), "holdout", config=config):
            if each.decision_id in wanted:
                questions[each.decision_id] = str(each.messages[-1]["content"])
    return card, questions


def _judge(
    ledger: Ledger, kind: DecisionType, evaluation: Evaluation, settings: EvaluateSettings, *, now: datetime
) -> None:
    """Write the verdict into the evaluation: is the model proven better, and is it worth its price?"""
    if settings.any_price:
        policy = WorthPolicy(policy="any")
    elif settings.max_usd_per_1000 is not None:
        policy = WorthPolicy(settings.max_usd_per_1000)
    else:
        policy = load_worth(kind.name)
    allowance = allow(evaluations_of(ledger, kind.name), about=evaluation.about, primary=evaluation.primary, now=now)
    verdict = judge(evaluation, margin=settings.margin, allowance=allowance)
    verdict = judge_worth(verdict, evaluation, policy, decision_type=kind.name)
    evaluation.about["verdict"] = asdict(verdict)


def choose_confidence(data: Path, model: str, *, now: datetime | None = None) -> Threshold:
    """The minimum confidence of a deployed model (its id, or a decision type), by its answers to validation rows.

    What it asks costs what any question costs. Raises `MissingStep` where fewer than 30 validation rows have an answer
    of the fallback, or the model gives no confidence.
    """
    config = load_config(data)
    with open_ledger(data) as ledger:
        row = find_model(data, ledger, model, "promote")
        kind = get_decision_type(required(row.decision_type, f"the decision type of model {row.id}"), config)
        folder = find_dataset(data, dataset_of(data, ledger, row))
        rows = [each for each in read_rows(folder, "validation", config=config) if each.original is not None]
        if len(rows) < _LEAST_VALIDATION_ROWS:
            raise MissingStep(
                f"{len(rows)} validation rows of {folder.name} have an answer of the fallback, and the choice of a "
                f"confidence needs {_LEAST_VALIDATION_ROWS}: give --min-confidence a number"
            )
        exam = _Exam(kind, rows, questions_per_hour(data, kind.name, clock_of(now)()), config, now)
        answers = [answer or SourceAnswer(None) for answer in _ask(ledger, exam, _server_of(ledger, row), None)]
    if all(answer.confidence is None for answer in answers):
        raise MissingStep(f"model {row.id} gives no confidence: promote it without --min-confidence")
    return choose_threshold(
        kind,
        [Label(each.label, each.episode, each.label_source) for each in rows],
        answers,
        [_original_answer(each) or SourceAnswer(None) for each in rows],
        load_objective(kind),
    )


def dataset_of(data: Path, ledger: Ledger, model: Model) -> str:
    """Name on disk of the dataset that a model was trained on; of a registered one, the newest of its decision type.

    Raises `MissingStep` where there is none.
    """
    if not capabilities_of(model.provider).trains:
        manifests = Layout(data).datasets.glob(f"{model.decision_type}/*/manifest.json")
        newest = max(manifests, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            raise MissingStep(
                f"there is no dataset of {model.decision_type} to evaluate {model.name} on: "
                f"`reasoning export {model.decision_type}` makes one"
            )
        return newest.parent.name
    return ledger.get(UploadedDataset, required(model.upload_id, f"the dataset of model {model.id}")).dataset


def find_incumbent(ledger: Ledger, model: Model) -> Deployment | None:
    """The ready deployment of the model of the same decision type, other than `model`, that is live or degraded."""
    for row in reversed(ledger.find(Model, decision_type=model.decision_type, state=INCUMBENT_STATES)):
        if row.id != model.id and (deployment := find_deployment(ledger, row.id, DeploymentState.READY)):
            return deployment
    return None


def _server_of(ledger: Ledger, model: Model) -> Deployment:
    deployment = find_deployment(ledger, model.id, DeploymentState.READY)
    if deployment is None:
        raise MissingStep(f"model {model.id} is not deployed: `reasoning deploy {model.id}` first")
    return deployment


def _original_answer(question: DatasetRow) -> SourceAnswer | None:
    if question.original is None:
        return None
    return SourceAnswer(question.original, latency_ms=question.original_latency_ms, cost_usd=question.original_cost_usd)


@dataclass(frozen=True, slots=True)
class _Exam:
    """What every source is asked. `per_hour` is how often decisions of the type are asked for."""

    kind: DecisionType
    questions: Sequence[DatasetRow]
    per_hour: float
    config: Config
    now: datetime | None


def _ask(ledger: Ledger, exam: _Exam, server: Deployment, progress: OnProgress | None) -> list[SourceAnswer | None]:
    prompts = redact_questions(exam.questions, exam.config.redaction.region)
    conversations = [prompt.messages for prompt in prompts]
    sampling = Sampling.of(exam.kind)
    is_registered = not capabilities_of(server.provider).starts_servers
    model = ledger.get(Model, required(server.model_id, f"the model of {server.name}")) if is_registered else None
    if model is not None:
        completions = ask_charged(
            exam.config, ledger, server, model, conversations, sampling, progress=progress, now=exam.now
        )
    else:
        with open_provider_of(exam.config.data, server.provider) as provider:
            name = required(server.served_name, server.name)
            completions = complete_many(
                provider, name, conversations, sampling, ledger=ledger, progress=progress, now=exam.now
            )
    answers: list[SourceAnswer | None] = []
    hourly = hourly_part(ledger, server)
    for prompt, completion in zip(prompts, completions, strict=True):
        decision = None if completion.error is not None else read_decision(exam.kind, prompt, completion.text)
        cost_usd = _cost_usd(exam, hourly, model, completion)
        answers.append(SourceAnswer(decision, completion.confidence, completion.latency_ms, cost_usd))
    return answers


def _measure_position_bias(
    ledger: Ledger, exam: _Exam, server: Deployment, answers: Sequence[SourceAnswer | None]
) -> dict[str, float] | None:
    """How often a model answers otherwise where the options stand in reverse order, of the latest rows of the holdout.

    None where prompts have no options to reorder. What it asks costs what any question costs.
    """
    kind, rows, given = exam.kind, exam.questions[-_POSITION_ROWS:], answers[-_POSITION_ROWS:]
    prompts: list[list[Message]] = [
        [{"role": m["role"], "content": m["content"]} for m in row.messages] for row in rows
    ]
    reversed_prompts = [kind.form.reorder(kind, prompt, "reversed") for prompt in prompts]
    if reversed_prompts == prompts:
        return None
    asked = [
        replace(row, messages=[{"role": m["role"], "content": m["content"]} for m in p])
        for row, p in zip(rows, reversed_prompts, strict=True)
    ]
    other = _ask(ledger, replace(exam, questions=asked), server, None)
    pairs = [(a.decision, b.decision) for a, b in zip(given, other, strict=True) if a is not None and b is not None]
    changed = sum(a != b for a, b in pairs)
    return {"rows": len(pairs), "changed": changed, "share": changed / len(pairs)} if pairs else None


def _cost_usd(exam: _Exam, hourly: Decimal, model: Model | None, answer: CompletionResult) -> float | None:
    """What an answer costs: its share of an hour, and the price of its tokens. None where one of them is not known."""
    tokens = Decimal(0)
    if hourly and not exam.per_hour:
        return None
    if model is not None and model.input_million_usd is not None:
        if answer.input_tokens is None or answer.output_tokens is None:
            return None
        tokens = tokens_usd(model, answer.input_tokens, answer.output_tokens)
    return float(tokens) + (float(hourly) / exam.per_hour if hourly else 0.0)


def redact_questions(questions: Sequence[DatasetRow], region: str) -> list[RedactedPrompt]:
    """The prompts of a holdout as agents ask models. Rows of an export are redacted already, which changes nothing."""
    return [
        redact_prompt([{"role": m["role"], "content": m["content"]} for m in question.messages], region=region)
        for question in questions
    ]


def read_decision(kind: DecisionType, prompt: RedactedPrompt, text: str) -> dict[str, Any] | None:
    """The decision of a completion; None where an agent would get its fallback: it is none, or acts on a placeholder
    that its prompt does not have."""
    try:
        return prompt.restore_decision(kind.parse_reply(text, prompt.messages))
    except UnparseableAnswer:
        return None
