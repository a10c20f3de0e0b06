"""The local provider's learning: a model of conversational JSONL that trains in seconds on a CPU.

What the assistants' answers look like decides what is learned:

* a list of actions in XML or JSON: a classifier chooses the actions, and the nearest logged answer having them
  supplies the words;
* one action, or few distinct answers: a classifier with calibrated probabilities;
* open text: the nearest logged answer.

A completion is a whole answer in the form of the training data. The log-probabilities of its tokens sum to that of what
it decides, calibrated. Decisions do not depend on `temperature`: the same question gets the same answer.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, Literal

import sklearn
from threadpoolctl import threadpool_limits

from learners import artifact
from learners.answers import Answer, Kind, parse_answer
from learners.choice import ChoiceModel, fit_choice
from learners.errors import ArtifactError, DatasetError
from learners.majority import Completion
from learners.plans import PlanModel, fit_plans
from learners.retrieval import NearestAnswer
from learners.tokens import count_message_tokens
from learners.transcript import Transcript, message_text, parse_transcript

MAX_CLASSES = 50
SHARE = 0.9
"""This share of the answers must have a form for it to be the form that is learned."""

Progress = Callable[[float, dict[str, float]], None]
Task = Literal["plan", "choice", "text"]
Core = ChoiceModel | PlanModel | NearestAnswer
_CORES: dict[str, type[Core]] = {"choice": ChoiceModel, "plan": PlanModel, "text": NearestAnswer}


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training made. Losses are in nats."""

    task: Task
    rows: int
    unused_rows: int
    """Rows whose answer lacks the form of the others."""
    validation_rows: int
    classes: list[str]
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a dataset: the conversation before the last assistant message, and that answer."""

    transcript: Transcript
    answer: Answer


class Model:
    """A trained model. Threads may share it."""

    def __init__(self, task: Task, core: Core, answers: list[Answer]) -> None:
        self.task = task
        self.core = core
        self.answers = answers
        self.rows_of: dict[tuple[str, ...], list[int]] = {}
        for row, answer in enumerate(answers):
            self.rows_of.setdefault(answer.values, []).append(row)
        counts = Counter(answer.text for answer in answers)
        self.usual = {
            values: max((answers[row] for row in rows), key=lambda a: counts[a.text])
            for values, rows in self.rows_of.items()
        }
        """Of the answers with the same decision, the commonest."""

    def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        logprobs: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Completion:
        """Answer a chat request.

        Args:
            messages: chat messages, the question last.
            max_tokens: the answer is cut after so many tokens, with finish reason `length`.
            temperature: accepted and without effect (see the module's docstring).
            logprobs: whether to give log-probabilities; `token_logprobs` is empty without.
            tools: functions on offer, when they are not listed in the prompt.
        """
        answer, log_probability = self._decide(parse_transcript(messages, tools))
        tokens, log_probabilities = answer.tokens(log_probability)
        cut = len(tokens) > max_tokens
        tokens = tokens[:max_tokens]
        return Completion(
            text="".join(tokens),
            tokens=tokens,
            token_logprobs=log_probabilities[:max_tokens] if logprobs else [],
            prompt_tokens=count_message_tokens([dict(message) for message in messages]),
            finish_reason="length" if cut else "stop",
        )

    def _decide(self, transcript: Transcript) -> tuple[Answer, float]:
        if isinstance(self.core, ChoiceModel):
            value, log_probability = self.core.decide(transcript)
            return self.usual[(value,)], log_probability
        if isinstance(self.core, PlanModel):
            plan, log_probability, likeness = self.core.decide(transcript)
            rows = self.rows_of.get(plan) or range(len(self.answers))
            return self.answers[max(rows, key=lambda row: likeness[row])].with_values(plan), log_probability
        row, log_probability = self.core.decide(transcript)
        return self.answers[row], log_probability


def read_examples(path: Path) -> list[Example]:
    """Read conversational JSONL, one `{"messages": [...]}` a line, the last assistant message being the answer.

    Raises:
        DatasetError: a line is no such object; says the file and the line.
    """
    examples = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path.name}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            messages = row["messages"]
            last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
            transcript = parse_transcript(messages[:last], row.get("tools") or ())
            examples.append(Example(transcript, parse_answer(message_text(messages[last]))))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f'{path.name}, line {number}: needs {{"messages": [{{"role", "content"}}...]}} and an assistant answer '
                f"({type(error).__name__}: {error})"
            ) from error
    if not examples:
        raise DatasetError(f"{path.name} has no examples")
    return examples


def train(
    train_path: Path,
    validation_path: Path | None,
    output_dir: Path,
    *,
    n_epochs: int = 1,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train on a dataset and keep the model in a folder.

    Args:
        train_path: conversational JSONL.
        validation_path: rows that are not fitted to. With the training rows, cross-validated, they choose the
            regularisation, the calibration and the thresholds.
        output_dir: made if missing; gets the artifact (`learners.artifact`).
        n_epochs: accepted and without effect: the fits run to their end.
        progress: called with the finished fraction (0..1) and the losses known by then.

    Raises:
        DatasetError: the dataset cannot be learned from.
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
        core, answers, metrics = _fit(task, used, held_out, fitting)
    result = TrainingResult(
        task=task,
        rows=len(used),
        unused_rows=len(examples) - len(used),
        validation_rows=len(held_out),
        classes=_classes(core),
        seconds=time.monotonic() - started,
        metrics=metrics,
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    parts = artifact.Parts({"answers": [astuple(answer) for answer in answers]})
    parts.put("core", core.parts())
    artifact.save(output_dir, parts, {"learner": "linear", "sklearn": sklearn.__version__, **asdict(result)})
    report(1.0, metrics)
    return result


def _fit(
    task: Task, train_rows: list[Example], validation: list[Example], progress: Progress
) -> tuple[Core, list[Answer], dict[str, float]]:
    """The fitted core, the answers whose words it may use, and the metrics."""
    transcripts, held_out = [row.transcript for row in train_rows], [row.transcript for row in validation]
    answers = [row.answer for row in train_rows]
    if task == "plan":
        plans, held_plans = [answer.values for answer in answers], [row.answer.values for row in validation]
        model, metrics = fit_plans(transcripts, plans, held_out, held_plans, progress=progress)
        return model, answers[-len(model.log.chosen) :], metrics
    if task == "choice":
        labels, held_labels = [answer.values[0] for answer in answers], [row.answer.values[0] for row in validation]
        choice, metrics = fit_choice(transcripts, labels, held_out, held_labels, progress=progress)
        return choice, answers, metrics
    return NearestAnswer(transcripts), answers, {}


def _classes(core: Core) -> list[str]:
    if isinstance(core, ChoiceModel):
        return core.classes
    return core.log.labels if isinstance(core, PlanModel) else []


def _find_form(answers: Sequence[Answer]) -> tuple[Task, Kind]:
    """What is to be learned, and which part of the answers says it."""
    kinds = Counter(answer.kind for answer in answers)
    if kinds["plan"] >= SHARE * len(answers):
        return "plan", "plan"
    chosen = {answer.values for answer in answers if answer.kind == "choice"}
    if kinds["choice"] >= SHARE * len(answers) and len(chosen) <= MAX_CLASSES:
        return "choice", "choice"
    texts = {answer.text.strip() for answer in answers}
    return ("choice" if len(texts) <= min(MAX_CLASSES, max(len(answers) // 3, 1)) else "text"), "text"


def load_model(directory: Path) -> Model:
    """Load what `train` kept.

    Raises:
        ArtifactError: there is no finished model, it is damaged, or another version wrote it.
    """
    parts, about = artifact.load(directory)
    try:
        answers = [Answer(kind, text, tuple(values), *span) for kind, text, values, *span in parts.values["answers"]]
        return Model(about["task"], _CORES[about["task"]].from_parts(parts.get("core")), answers)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ArtifactError(f"no usable model in {directory}: {reason}; train it again") from error
