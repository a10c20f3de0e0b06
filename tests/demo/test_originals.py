from __future__ import annotations

import pytest

from demo.originals import decide_planning, decide_should_respond


def said(*lines: str) -> dict[str, object]:
    messages = [dict(zip(("speaker", "text"), line.split(": ", 1), strict=True)) for line in lines]
    return {"agent_name": "Nova", "messages": messages}


@pytest.mark.parametrize(
    ("context", "action"),
    [
        (said("Ann: what do you think, nova?"), "RESPOND"),
        (said("Ann: hi", "Nova: hello", "Ann: how are you"), "RESPOND"),
        (said("Ann: hi", "Nova: hello", "Ann: so", "Nova: yes", "Bo: anyone seen my keys"), "IGNORE"),
        (said("Ann: hi", "Nova: hello", "Bo: a", "Cy: b", "Bo: c", "Ann: me again"), "IGNORE"),
        (said("Ann: innovation"), "IGNORE"),
    ],
)
def test_should_respond(context: dict[str, object], action: str) -> None:
    assert decide_should_respond(context)["action"] == action


def test_planning_matches_words_of_names_and_descriptions() -> None:
    actions = [
        {"name": "REPLY", "description": "Answer in words."},
        {"name": "lockDoors", "description": "Locks the doors of the vehicle."},
        {"name": "get_stock_info", "description": "Get the details of a stock."},
    ]
    context = said("User: please lock all doors") | {"actions": actions}
    assert decide_planning(context)["actions"] == ["lockDoors"]
    assert decide_planning(said("User: hmm") | {"actions": actions})["actions"] == ["REPLY"]
    assert decide_planning(said("User: hmm") | {"actions": actions[1:]})["actions"] == []
