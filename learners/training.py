"""Training: conversational JSONL in, an artifact out, in seconds on a CPU.

What the assistants' answers look like decides what is learned:

* a list of actions in XML or JSON: a classifier chooses the actions, and the nearest logged answer having them
  supplies the words;
* one action, or few distinct answers: a classifier with calibrated probabilities;
* answers to typed questions, `{"answers": {...}}`: a classifier for each question;
* open text: the nearest logged answer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import sklearn
from threadpoolctl import threadpool_limits

from learners import artifact
from learners.answers import AnswerKind, ParsedAnswer
from learners.cores.choice import LINEAR, ChoiceModel, fit_choice
from learners.cores.plans import PlanModel, fit_plans
from learners.cores.questions import QuestionsModel, fit_questions
from learners.cores.retrieval import NearestAnswer
from learners.errors import MissingExtra
from learners.examples import Example, read_examples
from learners.features import encoder
from learners.model import Core, Task, load_model
from learners.progress import Progress

__all__ = ["TrainingResult", "load_model", "train"]

Learner = Literal["linear", "encoder", "stacked", "auto"]
BLOCKS: dict[str, tuple[str, ...]] = {
    "linear": LINEAR,
    "encoder": ("numbers", "sentence"),
    "stacked": ("numbers", "words", "pieces", "sentence"),
}
"""What each learner sees of a transcript (`learners.features.representations`), the cheapest first."""
MARGIN = 0.01
"""So much better must a dearer learner be: less is within the noise of some hundred rows."""
MAX_CLASSES = 255
MAX_TEXTS = 50
"""Open answers of at most so many distinct texts are a choice among them."""
SHARE = 0.9
"""This share of the answers must have a form for it to be the form that is learned."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training made. Losses are in nats."""

    task: Task
    rows: int
    unused_rows: int
    """Rows whose answer lacks the form of the others."""
    validation_rows: int
    classes: list[str]
    learner: str
    """Which one made the model; of plans and open text there is one only, `linear`."""
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    candidates: dict[str, dict[str, float | str]] = field(default_factory=dict)
    """The metrics of every learner that was tried, or why it was not: `{"skipped": reason}`."""


def train(
    train_path: Path,
    validation_path: Path | None,
    output_dir: Path,
    *,
    learner: Learner = "auto",
    seconds: float = 600.0,
    n_epochs: int = 1,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train on a dataset and keep the model in a folder.

    Args:
        train_path: conversational JSONL.
        validation_path: rows that are not fitted to. With the training rows, cross-validated, they choose the
            regularisation, the calibration and the thresholds.
        output_dir: made if missing; gets the artifact (`learners.artifact`).
        learner: who learns. `auto` tries all that are installed, and keeps the one that is best on rows that it was
            not fitted to.
        seconds: `auto` begins no other learner after this time.
        n_epochs: accepted and without effect: the fits run to their end.
        progress: called with the finished fraction (0..1) and the losses known by then.

    Raises:
        DatasetError: the dataset cannot be learned from.
        MissingExtra: the learner's packages are not installed.
    """
    started = time.monotonic()
    report = progress or (lambda fraction, metrics: None)
    examples = read_examples(train_path)
    validation = read_examples(validation_path) if validation_path else []
    report(0.1, {})
    task, kind = _find_form([example.answer for example in examples])
    used = [Example(e.transcript, e.answer.of_kind(kind)) for e in examples if kind in (e.answer.kind, "text")]
    held_out = [Example(e.transcript, e.answer.of_kind(kind)) for e in validation if kind in (e.answer.kind, "text")]

    def fitting(fraction: float, metrics: dict[str, float]) -> None:
        report(0.1 + 0.8 * fraction, metrics)

    # One thread: on busy cores the threads of the linear algebra wait for each other, and a fit takes thrice as long.
    with threadpool_limits(1):
        made = _fit(task, used, held_out, fitting, learner, started + seconds)
    result = TrainingResult(
        task=task,
        rows=len(used),
        unused_rows=len(examples) - len(used),
        validation_rows=len(held_out),
        classes=_classes(made.core),
        learner=made.learner,
        seconds=time.monotonic() - started,
        metrics=made.metrics,
        candidates=made.candidates,
    )
    parts = artifact.Parts({"answers": [astuple(answer) for answer in made.answers]})
    parts.put("core", made.core.parts())
    versions = {"numpy": np.__version__, "scikit-learn": sklearn.__version__}
    artifact.save(output_dir, parts, {"versions": versions, **asdict(result)})
    report(1.0, made.metrics)
    return result


@dataclass(frozen=True, slots=True)
class _Made:
    """What was fitted: the core, and the answers whose words it may use."""

    core: Core
    answers: list[ParsedAnswer]
    metrics: dict[str, float]
    learner: str = "linear"
    candidates: dict[str, dict[str, float | str]] = field(default_factory=dict)


def _fit(
    task: Task, train_rows: list[Example], validation: list[Example], progress: Progress, learner: Learner, until: float
) -> _Made:
    transcripts, held_out = [row.transcript for row in train_rows], [row.transcript for row in validation]
    answers = [row.answer for row in train_rows]
    if task == "plan":
        plans, held_plans = [answer.values for answer in answers], [row.answer.values for row in validation]
        model, metrics = fit_plans(transcripts, plans, held_out, held_plans, progress=progress)
        return _Made(model, answers[-len(model.log.chosen) :], metrics)
    if task == "text":
        return _Made(NearestAnswer(transcripts), answers, {})
    if task == "questions":
        return _fit_questions(train_rows, validation, progress, learner, until)
    labels, held_labels = [answer.values[0] for answer in answers], [row.answer.values[0] for row in validation]

    def fit(name: str) -> tuple[ChoiceModel, dict[str, float]]:
        return fit_choice(transcripts, labels, held_out, held_labels, blocks=BLOCKS[name], progress=progress)

    if learner != "auto":
        choice, metrics = fit(learner)
        return _Made(choice, answers, metrics, learner)
    return _compete(fit, answers, until)


def _fit_questions(
    train_rows: list[Example], validation: list[Example], progress: Progress, learner: Learner, until: float
) -> _Made:
    def fit(name: str) -> tuple[QuestionsModel, dict[str, float]]:
        return fit_questions(
            [row.transcript for row in train_rows],
            [row.answer.values[0] for row in train_rows],
            [row.transcript for row in validation],
            [row.answer.values[0] for row in validation],
            lambda *rows: fit_choice(*rows, blocks=BLOCKS[name], progress=progress),
        )

    if learner != "auto":
        model, metrics = fit(learner)
        return _Made(model, [], metrics, learner)
    return _compete(fit, [], until)


def _compete(fit: Callable[[str], tuple[Core, dict[str, float]]], answers: list[ParsedAnswer], until: float) -> _Made:
    """Fit every learner that can be, the cheapest first, and keep the one of the best `eval_quality`, `MARGIN` counting
    as equal."""
    best: _Made | None = None
    candidates: dict[str, dict[str, float | str]] = {}
    for name, blocks in BLOCKS.items():
        if best is not None and time.monotonic() > until:
            candidates[name] = {"skipped": "the time is over"}
            continue
        try:
            if "sentence" in blocks:
                encoder.load_encoder()
        except MissingExtra as error:
            candidates[name] = {"skipped": str(error)}
            continue
        core, metrics = fit(name)
        candidates[name] = dict(metrics)
        if best is None or metrics.get("eval_quality", 0.0) > best.metrics.get("eval_quality", 0.0) + MARGIN:
            best = _Made(core, answers, metrics, name)
    assert best is not None, "the first learner needs no extra"
    return replace(best, candidates=candidates)


def _classes(core: Core) -> list[str]:
    if isinstance(core, ChoiceModel):
        return core.classes
    if isinstance(core, QuestionsModel):
        return [f"{name}: {value}" for name, head in core.heads.items() for value in head.classes]
    return core.log.labels if isinstance(core, PlanModel) else []


def _find_form(answers: Sequence[ParsedAnswer]) -> tuple[Task, AnswerKind]:
    """What is to be learned, and which part of the answers says it."""
    kinds = Counter(answer.kind for answer in answers)
    if kinds["questions"] >= SHARE * len(answers):
        return "questions", "questions"
    if kinds["plan"] >= SHARE * len(answers):
        return "plan", "plan"
    chosen = {answer.values for answer in answers if answer.kind == "choice"}
    if kinds["choice"] >= SHARE * len(answers) and len(chosen) <= MAX_CLASSES:
        return "choice", "choice"
    texts = {answer.text.strip() for answer in answers}
    return ("choice" if len(texts) <= min(MAX_TEXTS, max(len(answers) // 3, 1)) else "text"), "text"
