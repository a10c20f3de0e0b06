"""The label: what the right decision was, and who says so."""

from __future__ import annotations

import orjson

from reasoning.decision_types import DecisionType
from reasoning.errors import UnparseableAnswer


def format_label(decision_type: DecisionType, label: str) -> str:
    """The completion that a model is taught for a label (JSON text of a decision). Raises `UnparseableAnswer`.

    Also for one that the model could not say as it will be asked: with a text at which it is cut.
    """
    try:
        decision = orjson.loads(label)
    except orjson.JSONDecodeError as error:
        raise UnparseableAnswer(f"the label is not JSON: {error}") from None
    completion = decision_type.format_answer(decision)
    for stop in decision_type.stop:
        if stop in completion:
            raise UnparseableAnswer(f"the answer holds {stop!r}, at which the model's would be cut")
    return completion
