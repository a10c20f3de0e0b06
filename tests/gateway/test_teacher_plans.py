"""Plans as elizaOS's models write them: what they name, or no label."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.decisions.prompts import ELIZA_KINDS, read_decision, recognise
from reasoning.decision_types import DECISION_TYPES
from reasoning.errors import UnparseableAnswer

planning, should_respond = DECISION_TYPES["planning"], DECISION_TYPES["should_respond"]
CONTEXT = {"actions": [{"name": name} for name in ("REPLY", "SEND_MESSAGE", "RUN_BUILD")]}
BOTH = ["REPLY", "SEND_MESSAGE"]


def xml(actions: str, beside: str = "") -> str:
    return f"<response><thought>t</thought><actions>{actions}</actions>{beside}<text>hi</text></response>"


READ: list[tuple[str, list[str]]] = [
    (xml("REPLY,SEND_MESSAGE"), BOTH),
    (xml("\n  REPLY\n  SEND_MESSAGE\n"), BOTH),
    (xml("- REPLY\n- SEND_MESSAGE"), BOTH),
    (xml("<action>REPLY</action><action>SEND_MESSAGE</action>"), BOTH),
    (xml("<action><name>REPLY</name></action>\n<action><name>SEND_MESSAGE</name></action>"), BOTH),
    (xml("<action><name>REPLY</name><params><to>Bob, Cy</to></params></action>"), ["REPLY"]),
    (xml('<action><name>SEND_MESSAGE</name><params>{"to": "Bob, Cy"}</params></action>'), ["SEND_MESSAGE"]),
    (xml("<action><name>REPLY</name>"), ["REPLY"]),
    (xml('["REPLY", "SEND_MESSAGE"]'), BOTH),
    (xml("['REPLY', 'SEND_MESSAGE']"), BOTH),
    (xml("[REPLY, SEND_MESSAGE]"), BOTH),
    (xml('[{"name": "REPLY", "params": {"name": "x"}}, {"name": "SEND_MESSAGE"}]'), BOTH),
    (xml('REPLY {"text": "a, b"}, SEND_MESSAGE {"to": ["Bob", "Cy"]}'), BOTH),
    (xml('REPLY <params>{"text": "a, b"}</params>, SEND_MESSAGE'), BOTH),
    (xml("SEND_MESSAGE<SEND_MESSAGE><to>Bob, Cy</to></SEND_MESSAGE>"), ["SEND_MESSAGE"]),
    (xml("SEND_MESSAGE", "<SEND_MESSAGE><text>at 5</text><actions>X</actions></SEND_MESSAGE>"), ["SEND_MESSAGE"]),
    (xml("SEND_MESSAGE", "<params><SEND_MESSAGE><text>at 5</text></SEND_MESSAGE></params>"), ["SEND_MESSAGE"]),
    (xml("reply, Send_Message"), BOTH),
    (xml('"REPLY", `SEND_MESSAGE`'), BOTH),
    (xml("REPLY", "<action>REPLY</action>"), ["REPLY"]),
    (xml("IGNORE"), []),
    (xml("NONE"), []),
    (xml("RESPOND"), ["REPLY"]),
    (xml(""), []),
    ("<response><thought>t</thought><actions/></response>", []),
    ('{"thought": "t", "actions": [{"name": "REPLY", "params": {"a": 1}}, {"name": "SEND_MESSAGE"}]}', BOTH),
    ('{"thought": "t", "actions": ["REPLY", "SEND_MESSAGE"]}', BOTH),
    ('{"actions": [{"action": "REPLY"}]}', ["REPLY"]),
    ('{"actions": "REPLY, SEND_MESSAGE"}', BOTH),
    ("thought: t\nactions[2]: REPLY,SEND_MESSAGE\ntext: hi", BOTH),
    ("thought: t\nactions: REPLY, SEND_MESSAGE\ntext: hi", BOTH),
    ('thought: "a: b"\nactions[2]:\n  - name: REPLY\n  - name: SEND_MESSAGE\n    params:\n      to: Bob', BOTH),
    ("actions[1]:\n  - name: SEND_MESSAGE\n    params:\n      to[2]:\n        - Bob\n        - Cy", ["SEND_MESSAGE"]),
    ("actions[2]:\n- name: REPLY\n- name: SEND_MESSAGE\n  params:\n    to: Bob\ntext: hi", BOTH),
    ("actions[2]:\n- REPLY\n- SEND_MESSAGE\n\ntext: hi", BOTH),
    ("actions[2]:\n    - REPLY\n    - SEND_MESSAGE\ntext: hi", BOTH),
    ("actions[0]: REPLY\nactions[1]: SEND_MESSAGE", BOTH),
    ("actions[1]: REPLY\nactions[2]: SEND_MESSAGE", BOTH),
    ('actions[0]: "REPLY"', ["REPLY"]),
    ("actions[1]: REPLY", ["REPLY"]),
    ("actions[2]{name,params}:\n  REPLY,x\n  SEND_MESSAGE,y\ntext: 42", BOTH),
    ('actions[2]: "REPLY","SEND_MESSAGE"', BOTH),
    ("```toon\nthought: t\nactions[1]: REPLY\n```", ["REPLY"]),
    ("actions[0]:\ntext: hi", []),
    ("thought: t\nactions:\n  - REPLY\ntext: hi", ["REPLY"]),
    ("actions:\n- REPLY\n- SEND_MESSAGE\ntext: hi", BOTH),
    ("actions:\n  - name: REPLY\n  - name: SEND_MESSAGE\n    params:\n      to: Bob\nproviders:\n- A", BOTH),
    ("TOON\nthought: t\nactions[1]: REPLY\ntext: hi", ["REPLY"]),
    ("toon:\n```toon\nactions:\n- REPLY\n```", ["REPLY"]),
    ("```\nTOON\nactions[1]: REPLY\n```", ["REPLY"]),
]
REFUSED = [
    xml("FLY_TO_MOON"),
    xml("REPLY, FLY_TO_MOON"),
    xml("REPLY, <action>SEND_MESSAGE</action>"),
    xml("REPLY", "<action>SEND_MESSAGE</action>"),
    xml("<action>REPLY"),
    xml("<action>REPLY</action><action><name>SEND_MESSAGE"),
    xml("<REPLY/><SEND_MESSAGE/>"),
    xml('["REPLY", "SEND_MESSAGE"'),
    xml('REPLY {"text": "a, b"'),
    xml("SEND_MESSAGE(to=Bob, text=hi)"),
    xml("REPLY</action>"),
    xml("REPLY, IGNORE"),
    xml("REPLY", "<actions>SEND_MESSAGE</actions>"),
    "<response><thought>t</thought><action>REPLY</action></response>",
    '{"actions": [{"params": {}}]}',
    '{"actions": [["REPLY"]]}',
    '{"actions": {"name": "REPLY"}}',
    "actions[3]: REPLY,SEND_MESSAGE",
    "actions[2]:\n  - name: REPLY",
    "actions[0]: REPLY\nactions[2]: SEND_MESSAGE",
    "actions[1]: REPLY\nactions[1]: SEND_MESSAGE",
    "actions[1]: FLY",
    "actions:\n  - REPLY\n  FLY",
    "actions:\n  - FLY",
    "actions:\n  - REPLY\nactions:\n  - SEND_MESSAGE",
    "actions:\n  - REPLY\n  - ",
    "Of TOON\nactions[1]: REPLY",
    'actions[1]: "REPLY',
    "thought: t\nand more\nactions[1]: REPLY",
    "actions: REPLY\nactions: SEND_MESSAGE",
    "I would rather not.",
]


@pytest.mark.parametrize(("text", "actions"), READ)
def test_what_a_plan_names_is_read(text: str, actions: list[str]) -> None:
    plan = read_decision("toon", text, planning, CONTEXT)
    assert plan["actions"] == actions
    assert planning.parse(planning.format_answer(plan), CONTEXT) == plan


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_understood_is_no_label(text: str) -> None:
    with pytest.raises(UnparseableAnswer):
        read_decision("toon", text, planning, CONTEXT)


@given(st.sampled_from([text for text, _ in READ]), st.integers(0, 200), st.integers(0, 12), st.text(max_size=3))
def test_a_plan_that_is_damaged_names_known_actions_or_none(text: str, at: int, size: int, new: str) -> None:
    damaged = text[:at] + new + text[at + size :]
    with suppress(UnparseableAnswer):
        plan = read_decision("toon", damaged, planning, CONTEXT)
        assert {*plan["actions"]} <= {"REPLY", "SEND_MESSAGE", "RUN_BUILD"}


def test_the_first_stage_of_todays_elizaos_is_read() -> None:
    flat: Any = '{"shouldRespond": "IGNORE", "thought": "t", "replyText": "", "contexts": []}'
    assert read_decision("json", flat, should_respond) == {"action": "IGNORE", "reasoning": "t"}
    older = '{"processMessage": "STOP", "plan": {"contexts": ["simple"]}}'
    assert read_decision("json", older, should_respond) == {"action": "STOP"}


UNITS = [
    "\n",
    " ",
    "\n ",
    "- **A",
    "- **A**: b\n",
    "## ",
    "# Conversation\n",
    "code_a",
    "<",
    "<code_a>",
    "name: A\n",
    "A, ",
]


@pytest.mark.parametrize("unit", UNITS)
def test_prompts_are_read_in_linear_time(unit: str) -> None:
    head = "<task>Generate dialog and actions for the character Ada.</task>\n<response>\n"
    head += "# Conversation\nAnn: hi\n\n# Available Actions\n"
    started = time.perf_counter()
    recognise(head + unit * (190_000 // len(unit)), ELIZA_KINDS, DECISION_TYPES)
    assert time.perf_counter() - started < 2  # seconds; a square takes a minute
    started = time.perf_counter()
    with suppress(UnparseableAnswer):
        read_decision("toon", "actions[1]: A\n" + unit * (190_000 // len(unit)), planning, CONTEXT)
    assert time.perf_counter() - started < 2
