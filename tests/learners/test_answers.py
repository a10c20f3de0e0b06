from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.answers import parse_answer
from reasoning.decision_types import get_decision_type
from reasoning.serving.completion import Completion, measure_confidence

NAMES = st.lists(st.from_regex(r"[A-Za-z&][A-Za-z0-9_&. -]{0,15}[A-Za-z]", fullmatch=True), max_size=5, unique=True)
LOG_P = st.floats(-12, 0)


@given(NAMES, NAMES, st.text(max_size=40), LOG_P)
def test_a_plan_with_other_actions_is_read_back_by_the_client(
    first: list[str], second: list[str], text: str, log_p: float
) -> None:
    planning = get_decision_type("planning")
    plan = {"thought": text, "actions": first, "providers": [], "text": text}
    answer = parse_answer(planning.format_answer(plan)).with_values(tuple(second))
    decision = planning.parse(answer.text)
    assert decision["actions"] == second
    assert decision["text"] == planning.normalize(plan)["text"]
    tokens, log_probabilities = answer.tokens(log_p)
    assert "".join(tokens) == answer.text
    assert math.fsum(log_probabilities) == pytest.approx(log_p)
    measured = measure_confidence("plan", Completion(answer.text, tokens, log_probabilities))
    assert measured == pytest.approx(math.exp(log_p))


@given(st.sampled_from(["RESPOND", "IGNORE", "STOP"]), st.text(max_size=60), LOG_P)
def test_the_client_measures_the_probability_of_the_label(action: str, reasoning: str, log_p: float) -> None:
    answer = parse_answer(get_decision_type("should_respond").format_answer({"action": action, "reasoning": reasoning}))
    assert (answer.kind, answer.values) == ("choice", (action,))
    tokens, log_probabilities = answer.tokens(log_p)
    assert "".join(tokens) == answer.text
    measured = measure_confidence("label", Completion(answer.text, tokens, log_probabilities))
    assert measured == pytest.approx(math.exp(log_p))


@pytest.mark.parametrize(
    ("text", "kind", "values"),
    [
        ('{"action": "IGNORE"}', "choice", ("IGNORE",)),
        ('{"actions": ["ls", {"name": "cd"}], "text": ""}', "plan", ("ls", "cd")),
        ("<actions><action>ls</action><action>cd</action></actions>", "plan", ("ls", "cd")),
        ("<actions></actions>", "plan", ()),
        ("A & B <b>", "text", ("A & B <b>",)),
        ("", "text", ("",)),
    ],
)
def test_finds_the_decision(text: str, kind: str, values: tuple[str, ...]) -> None:
    answer = parse_answer(text)
    assert (answer.kind, answer.values) == (kind, values)
    tokens, log_probabilities = answer.tokens(-1.5)
    assert "".join(tokens) == text
    assert math.fsum(log_probabilities) == pytest.approx(-1.5)


def test_json_stays_json_with_other_actions() -> None:
    answer = parse_answer('{"actions": ["ls"], "text": "ok"}').with_values(("say é", "cd"))
    assert get_decision_type("planning").parse(answer.text)["actions"] == ["say é", "cd"]
