"""The label: what the right decision was, and who says so."""

from __future__ import annotations

import orjson

from reasoning.decision_types import DecisionType
from reasoning.errors import UnparseableAnswer


def format_completion(decision_type: DecisionType, label: str) -> str:
    """Return the completion that a model is trained on for a label (JSON text of a decision).

    Raises `UnparseableAnswer`, also for a completion that contains a stop text: the model could never give it whole.
    """
    try:
        decision = orjson.loads(label)
    except orjson.JSONDecodeError as error:
        raise UnparseableAnswer(f"the label is not JSON: {error}") from None
    completion = decision_type.format_answer(decision)
    for stop in decision_type.stop:
        if stop in completion:
            raise UnparseableAnswer(f"the completion contains {stop!r}, at which the answer would be cut")
    return completion
