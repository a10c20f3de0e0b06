"""A trained model: it completes a chat request with a whole answer in the form of its training data.

The log-probabilities of the answer's tokens sum to that of what it decides, calibrated. Decisions do not depend on
`temperature`: the same question gets the same answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from learners import artifact
from learners.adapter.model import AdapterModel, load_adapter
from learners.answers import ParsedAnswer
from learners.completion import LearnerCompletion
from learners.cores.choice import ChoiceModel
from learners.cores.plans import PlanModel
from learners.cores.questions import QuestionsModel, write_answers
from learners.cores.retrieval import NearestAnswer
from learners.errors import ArtifactError
from learners.tokens import count_message_tokens
from learners.transcript import Transcript, parse_transcript

Task = Literal["plan", "choice", "questions", "text"]
Core = ChoiceModel | PlanModel | QuestionsModel | NearestAnswer
_CORES: dict[str, type[Core]] = {
    "choice": ChoiceModel,
    "plan": PlanModel,
    "questions": QuestionsModel,
    "text": NearestAnswer,
}


class TrainedModel:
    """A trained model. Threads may share it."""

    def __init__(self, task: Task, core: Core, answers: list[ParsedAnswer]) -> None:
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
    ) -> LearnerCompletion:
        """Answer a chat request.

        Args:
            messages: chat messages, the question last.
            max_tokens: the answer is cut after so many tokens, with finish reason `length`.
            temperature: accepted and without effect (see the module's docstring).
            logprobs: whether to give log-probabilities; `token_logprobs` is empty without.
            tools: functions on offer, when they are not listed in the prompt.
        """
        transcript = parse_transcript(messages, tools)
        alternatives: list[dict[str, float]] = []
        if isinstance(self.core, QuestionsModel):
            tokens, log_probabilities, alternatives = write_answers(self.core.decide(transcript))
        else:
            answer, log_probability = self.decide(transcript)
            tokens, log_probabilities = answer.tokens(log_probability)
        cut = len(tokens) > max_tokens
        tokens = tokens[:max_tokens]
        return LearnerCompletion(
            text="".join(tokens),
            tokens=tokens,
            token_logprobs=log_probabilities[:max_tokens] if logprobs else [],
            prompt_tokens=count_message_tokens([dict(message) for message in messages]),
            finish_reason="length" if cut else "stop",
            alternatives=alternatives[:max_tokens] if logprobs else [],
        )

    def decide(self, transcript: Transcript) -> tuple[ParsedAnswer, float]:
        """The answer, and the calibrated log-probability (natural) of what it decides; not of typed questions."""
        assert not isinstance(self.core, QuestionsModel)
        if isinstance(self.core, ChoiceModel):
            value, log_probability = self.core.decide(transcript)
            return self.usual[(value,)], log_probability
        if isinstance(self.core, PlanModel):
            plan, log_probability, likeness = self.core.decide(transcript)
            rows = self.rows_of.get(plan) or range(len(self.answers))
            return self.answers[max(rows, key=lambda row: likeness[row])].with_values(plan), log_probability
        row, log_probability = self.core.decide(transcript)
        return self.answers[row], log_probability


def load_model(directory: Path) -> TrainedModel | AdapterModel:
    """Load what `train` or `train_adapter` kept.

    Raises:
        MissingExtra: the model needs packages that are not installed.
        ArtifactError: there is no finished model, it is damaged, or another version wrote it.
    """
    if artifact.describe(directory).get("learner") == "adapter":
        return load_adapter(directory)
    parts, about = artifact.load(directory)
    try:
        answers = [
            ParsedAnswer(kind, text, tuple(values), *span) for kind, text, values, *span in parts.values["answers"]
        ]
        return TrainedModel(about["task"], _CORES[about["task"]].from_parts(parts.get("core")), answers)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ArtifactError(f"no usable model in {directory}: {reason}; train it again") from error
