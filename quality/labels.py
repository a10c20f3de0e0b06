"""The label: what the right decision was, and who says so."""

from __future__ import annotations

import json
from typing import Any

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


def answer_class(decision: dict[str, Any]) -> str:
    """What a decision comes down to: its action, its actions in order, its tool calls or its code; else all of it.

    Two decisions of one class are the same answer: reasoning and wording may differ.
    """
    if isinstance(action := decision.get("action"), str):
        return action
    if isinstance(decision.get("actions"), list):
        return ", ".join(map(str, decision["actions"]))
    if decision.get("tool_calls"):
        return json.dumps(decision["tool_calls"], sort_keys=True, ensure_ascii=False)
    if isinstance(code := decision.get("code"), str):
        return code
    return json.dumps(decision, sort_keys=True, ensure_ascii=False)
