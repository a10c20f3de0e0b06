"""A demonstration that is no answer of its decision's type does not land."""

from __future__ import annotations

from pathlib import Path

import pytest

import storage
from reasoning import DecisionClient
from storage.log.land import land_decisions

CONTEXT = {"agent_name": "Ada", "messages": [{"speaker": "Bob", "text": "hi"}], "actions": [{"name": "REPLY"}]}


@pytest.mark.parametrize("landed_before", [True, False])
def test_landing_knows_the_type(tmp_path: Path, landed_before: bool) -> None:
    with DecisionClient(tmp_path) as client:
        decided = client.decide_should_respond(CONTEXT, lambda _: "STOP").decision_id
    if landed_before:
        land_decisions(tmp_path)
    with DecisionClient(tmp_path) as other:  # it did not take the decision
        assert other.demonstrate(decided, {"action": "IGNORE"})
        assert other.demonstrate(decided, {"actions": ["REPLY"]})
        assert other.feedback("good", True, decision_id=decided)
    report = land_decisions(tmp_path)
    assert (report.feedback, report.quarantined) == (2, {"demonstration": 1})
    label = "SELECT label, label_source FROM labelled_decisions"
    assert storage.sql(tmp_path, label).rows == [('{"action":"IGNORE"}', "demonstration")]
