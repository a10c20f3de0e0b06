"""Candidates are evaluated on the bytes that they are asked when they serve, and by what an agent would get."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import together

import storage
from pipeline.evaluation import read_decision, redact_questions
from provider.completions import complete_many
from provider.port import Sampling
from provider.together.adapter import TogetherProvider
from quality.dataset.manifest import read_rows
from quality.evaluation.evaluate import is_right
from reasoning.decision_types import get_decision_type
from reasoning.redaction.prompts import redact_prompt
from tests.quality.conftest import NOW
from tests.quality.log import land, records
from tests.quality.test_dataset import _export, _special
from tests.reasoning.conftest import ModelServer, says, server

__all__ = ["server"]  # a fixture


def test_a_candidate_is_asked_what_it_will_be_asked_when_it_serves(data: Path, server: ModelServer) -> None:
    turns = [
        _special(n, f"turn {n}: mail ann{n}@example.org or bob@example.org, from 203.0.113.{n}") for n in range(40)
    ]
    for n, turn in enumerate(turns):
        turn.ts = NOW - timedelta(hours=2) + timedelta(seconds=n)
        turn.original = {"action": "IGNORE", "reasoning": "bob@example.org is not Ada"}
    land(data, [[record for turn in turns for record in records(turn)]])
    questions = read_rows(_export(data).path, "holdout")
    special = [row for row in questions if "[EMAIL_1]" in str(row.messages)]
    assert len(special) == 40
    with storage.connect(data) as con:
        logged = {str(i): m for i, m in con.execute("SELECT decision_id, messages FROM decisions").fetchall()}
    kind = get_decision_type("should_respond")
    prompts = redact_questions(special, "US")
    server.answer = says("<response><reasoning>[EMAIL_1] asks</reasoning><action>RESPOND</action></response>")
    answers = complete_many(
        TogetherProvider(together.Together(api_key="local", base_url=f"{server.url}/v1")),
        "acme/small",
        [prompt.messages for prompt in prompts],
        Sampling(max_tokens=64),
        concurrency=1,
    )
    for row, request, prompt, answer in zip(special, server.requests, prompts, answers, strict=True):
        served = redact_prompt(logged[row.decision_id])  # what an agent's client sends (tests/reasoning)
        assert request.json["messages"] == served.messages == row.messages
        assert "example.org" not in str(row.messages) and "203.0.113" not in str(row.messages)
        assert row.original == {"action": "IGNORE", "reasoning": "[EMAIL_2] is not Ada"}
        assert is_right(kind, row.label, read_decision(kind, prompt, answer.text))


@pytest.mark.parametrize(("code", "right"), [("send('[EMAIL_1]')", True), ("send('[EMAIL_2]')", False)])
def test_an_answer_that_would_be_the_fallbacks_is_wrong(code: str, right: bool) -> None:
    kind = get_decision_type("coding")
    row = redact_prompt(kind.render({"prompt": "mail ann@example.org"}))  # as the holdout has it
    decision = read_decision(kind, redact_prompt(row.messages), f"```\n{code}\n```")
    assert (decision is not None) == right
