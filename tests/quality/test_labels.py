"""What a model is taught is what it can say as it will be asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quality.dataset.labels import format_completion
from reasoning.decision_types import DECISION_TYPES
from reasoning.errors import UnparseableAnswer

PLAN = '{"thought": "because", "actions": ["REPLY"], "providers": [], "text": "one ### two"}'


def test_a_label_with_a_text_at_which_the_model_would_be_cut_is_not_taught() -> None:
    planning = DECISION_TYPES["planning"]
    assert "one ### two" in format_completion(planning, PLAN)
    with pytest.raises(UnparseableAnswer, match="'###', at which the answer would be cut"):
        format_completion(replace(planning, stop=("###",)), PLAN)
    assert "one ### two" in format_completion(replace(planning, stop=("####",)), PLAN)


def test_no_thought_of_a_teacher_is_taught() -> None:
    """Thinking is switched off where models are asked, so none is in what they learn."""
    label = '{"code": "x = 1", "explanation": "<think>hm</think> so", "language": "python"}'
    assert format_completion(DECISION_TYPES["coding"], label) == "so\n\n```python\nx = 1\n```"
