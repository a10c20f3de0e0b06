"""Patterns of `[[gateway.prompts]]` are tried on what any client sends."""

from __future__ import annotations

import time

import pytest

from gateway.decisions.prompts import read_kinds, recognise
from gateway.errors import GatewayConfigError
from reasoning.decision_types import DECISION_TYPES

TABLE = {
    "decision_type": "should_respond",
    "match": r"(?P<agent>\w+)\s+must decide",
    "message": r"^(?P<speaker>[^:\n]+): (?P<text>.+)$",
}


def test_a_prompt_is_recognised_by_an_operators_patterns() -> None:
    kinds = read_kinds([TABLE], DECISION_TYPES)
    found = recognise("Nova must decide.\nZoë: Héllo, Nova?\nAda: Yes\n\nAnswer in JSON.", kinds, DECISION_TYPES)
    assert found is not None
    assert found.context["agent_name"] == "Nova"
    assert [m["speaker"] for m in found.context["messages"]] == ["Zoë", "Ada"]


@pytest.mark.parametrize("match", [TABLE["match"], r"(?P<agent>.+?) and .+ must decide", r"(?P<agent>(\w+\s?)+)!"])
@pytest.mark.parametrize("text", ["a" * 100_000, "and " * 25_000, " " * 100_000])
def test_an_operators_pattern_takes_linear_time(match: str, text: str) -> None:
    kinds = read_kinds([TABLE | {"match": match}], DECISION_TYPES)
    begun = time.process_time()
    recognise(text, kinds, DECISION_TYPES)
    assert time.process_time() - begun < 2.0  # `re` took 17 s for 40 KB of the first


@pytest.mark.parametrize("match", [r"(?=x)(?P<agent>\w+)", r"(?P<agent>\w+) (?P=agent)", r"(?P<agent>"])
def test_what_re2_cannot_do_is_refused_with_the_remedy(match: str) -> None:
    with pytest.raises(GatewayConfigError, match=r"match: .*RE2's syntax"):
        read_kinds([TABLE | {"match": match}], DECISION_TYPES)
