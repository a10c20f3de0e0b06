"""The quick trainer: answers everything with the commonest answer of its training data.

It learns in milliseconds and needs no library, so that tests can have the whole HTTP without the learning. Its
confidence is honest: the share of the training data that has that answer.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learners.completion import LearnerCompletion, fixed_completion
from learners.errors import DatasetError


@dataclass(frozen=True)
class MajorityModel:
    """The most frequent answer of a training file, and its share."""

    answer: str
    share: float

    def complete(
        self, messages: list[dict[str, Any]], *, max_tokens: int, temperature: float = 0.0, logprobs: bool = False
    ) -> LearnerCompletion:
        """The one answer, whatever the question; the whole log-probability is on its first token."""
        return fixed_completion(self.answer, math.log(self.share), messages, max_tokens=max_tokens)


def train(
    train_path: Path,
    validation_path: Path | None,
    output_dir: Path,
    *,
    n_epochs: int,
    progress: Callable[[float, dict[str, float]], None],
) -> dict[str, Any]:
    """Count the last assistant messages of `train_path` (conversational JSONL) and keep the commonest.

    The losses that `progress` gets are the cross-entropy of the answers under their training frequencies, in nats.
    """
    answers = Counter(_read_answers(train_path))
    if not answers:
        raise DatasetError("the training file has no assistant message to learn from")
    total = answers.total()
    loss = -sum(count / total * math.log(count / total) for count in answers.values())
    metrics = {"train_loss": loss}
    if validation_path is not None:
        metrics["eval_loss"] = _cross_entropy(answers, list(_read_answers(validation_path)))
    for epoch in range(1, n_epochs + 1):
        progress(epoch / n_epochs, metrics)
    # Ties are broken by the text, so that the same data give the same model.
    answer, count = min(answers.items(), key=lambda item: (-item[1], item[0]))
    (output_dir / "majority.json").write_text(json.dumps({"answer": answer, "share": count / total}))
    return metrics


def load_model(directory: Path) -> MajorityModel:
    """Read a model from its artifact's folder."""
    return MajorityModel(**json.loads((directory / "majority.json").read_text()))


def _read_answers(path: Path) -> Iterable[str]:
    with path.open(encoding="utf-8") as handle:
        for line in handle:
            sample = json.loads(line)
            yield from (
                str(message["content"]) for message in sample["messages"][-1:] if message["role"] == "assistant"
            )


def _cross_entropy(answers: Counter[str], validation: list[str]) -> float:
    if not validation:
        return 0.0
    # Laplace smoothing, so that an unseen answer costs much and not everything.
    total = answers.total() + len(answers) + 1
    return -sum(math.log((answers[answer] + 1) / total) for answer in validation) / len(validation)
