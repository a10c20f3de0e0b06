from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reasoning.decision_types import DECISION_TYPES
from reasoning.errors import UnparseableAnswer

should_respond, planning, coding = (DECISION_TYPES[name] for name in ("should_respond", "planning", "coding"))
LABELS = should_respond.labels
any_text = st.text(st.characters())
pieces = [*"<>/&;!`[]{}\"' \n,:abc", "<action>", "</response>", "]]>", "&amp;", "```", "<think>", "</think>"]
markup = st.lists(st.sampled_from(pieces)).map("".join)
texts = any_text | markup
names = texts.map(str.strip).filter(lambda s: s and "," not in s and len(s.splitlines()) == 1)


@given(st.fixed_dictionaries({"action": st.sampled_from(LABELS)}, optional={"reasoning": texts}))
def test_a_label_is_parsed_as_it_was_formatted(decision: dict[str, Any]) -> None:
    decision = should_respond.normalize(decision)
    assert should_respond.parse(should_respond.format_answer(decision)) == decision


@given(texts, st.sampled_from(["RESPOND", " ignore\n", "NONE", "", "STOP</action>"]))
def test_what_stands_around_an_answer_does_not_change_it(reasoning: str, action: str) -> None:
    text = f"<response><reasoning>{reasoning}</reasoning><action>{action}</action></response>"
    found = []
    for completion in (text, f"Well. {text}"):  # the second one takes the general parser
        try:
            found.append(should_respond.parse(completion))
        except UnparseableAnswer as error:
            found.append({"error": str(error)})
    assert found[0] == found[1]


@given(
    st.fixed_dictionaries({"thought": texts, "actions": st.lists(names), "providers": st.lists(names), "text": texts})
)
def test_a_plan_is_parsed_as_it_was_formatted(decision: dict[str, Any]) -> None:
    try:
        decision = planning.normalize(decision)
    except UnparseableAnswer:
        assume(False)  # a name that is markup, which no action has
    assert planning.parse(planning.format_answer(decision)) == decision


@given(st.fixed_dictionaries({"code": texts, "explanation": texts, "language": st.sampled_from(["", "python", "c++"])}))
def test_code_is_parsed_as_it_was_formatted(decision: dict[str, Any]) -> None:
    assume(decision["code"].strip())
    try:
        decision = coding.normalize(decision)
    except UnparseableAnswer:
        assume(False)  # an explanation that ends inside a thought
    text = coding.format_answer(decision)
    assert coding.parse(text) == decision


ARGUMENTS = st.dictionaries(texts, st.recursive(st.none() | st.booleans() | texts, st.lists, max_leaves=4), max_size=3)


@given(texts, st.lists(st.fixed_dictionaries({"name": names, "arguments": ARGUMENTS}), max_size=3))
def test_a_turn_is_parsed_as_it_was_formatted(text: str, calls: list[dict[str, Any]]) -> None:
    try:
        turn = coding.normalize({"text": text, "tool_calls": calls})
    except UnparseableAnswer:
        assume(False)
    prompt = [{"role": "user", "content": "a coding tool's"}]
    try:
        completion = coding.format_answer(turn)
    except UnparseableAnswer:
        assume(False)  # a lone surrogate in the arguments
    found = coding.parse_reply(completion, prompt)
    assert found == turn or (not calls and found == coding.parse(completion))


def test_turns_are_the_answers_of_other_prompts_than_ours() -> None:
    call = '<tool_call>\n{"name":"Bash","arguments":{"command":"echo </tool_call>"}}\n</tool_call>'
    other = [{"role": "system", "content": "You are a coding agent."}, {"role": "user", "content": "go"}]
    turn = {"text": "I look.", "tool_calls": [{"name": "Bash", "arguments": {"command": "echo </tool_call>"}}]}
    assert coding.parse_reply(f"I look.\n{call}", other) == turn
    assert coding.format_answer(turn) == "I look.\n" + call.replace("echo <", "echo \\u003c")
    assert coding.parse_reply("All done.", other) == {"text": "All done.", "tool_calls": []}
    assert coding.parse_reply("So:\n```py\nx\n```", other) == coding.parse("So:\n```py\nx\n```")
    for completion in ("All done.", call):
        with pytest.raises(UnparseableAnswer):
            coding.parse_reply(completion, coding.render({"prompt": "sort"}))
    for completion in (
        "",
        "<tool_call>{</tool_call>",
        "<tool_call>\n{}\n</tool_call>",
        '<tool_call>{"name": "x"',
        "<think>x</think>",
    ):
        with pytest.raises(UnparseableAnswer):
            coding.parse_reply(completion, other)


@given(texts)
def test_no_text_but_an_answer_gives_a_decision(text: str) -> None:
    for kind in (should_respond, planning, coding):
        try:
            found = kind.parse(text)
        except UnparseableAnswer:
            continue
        assert kind is coding and found["code"]  # a fenced block is an answer; the others have a form


@pytest.mark.parametrize(
    "completion",
    [
        "<response><action>STOP</action></response>",
        "Sure!\n<response>\n <reasoning>a < b</reasoning>\n <action> stop </action>\n</response> Bye",
        "```xml\n<response><action>Stop</action></response>\n```",
        "<response><action><![CDATA[STOP]]></action></response>",
        "<RESPONSE><Action>STOP</Action></RESPONSE>",
        "<think>maybe <response><action>IGNORE</action></response></think><response><action>STOP</action></response>",
        "<response><action>ST&#79;P</action></response>",
        '{"action": "STOP"}',
        'Here: ```json\n{"reasoning": "x {y}", "action": "stop"}\n```',
        'I think {so}. {"action":"STOP"}',
    ],
)
def test_what_models_write_around_a_label_is_accepted(completion: str) -> None:
    assert should_respond.parse(completion)["action"] == "STOP"


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "STOP",
        "<action>STOP</action>",
        "<response><action>STOP</action>",
        "<response></response>",
        "<response><action></action></response>",
        "<response><action>MAYBE</action></response>",
        "<response><action>RESPOND|IGNORE|STOP</action></response>",
        "<response><action>STOP</action><action>IGNORE</action></response>",
        '{"action": null}',
        '{"action": ["STOP"]}',
        '{"actions": "STOP"}',
        "[" * 100_000,
        "{" * 2_000,
    ],
)
def test_what_is_no_label_is_refused(completion: str) -> None:
    with pytest.raises(UnparseableAnswer):
        should_respond.parse(completion)


def test_plans_are_parsed_in_their_order() -> None:
    text = "<thought>t &lt; u</thought><actions>REPLY, search , REPLY</actions><text>Hi &amp; bye</text>"
    expected = {"thought": "t < u", "actions": ["REPLY", "search", "REPLY"], "providers": [], "text": "Hi & bye"}
    assert planning.parse(f"<response>{text}</response>") == expected
    assert planning.parse('{"actions": ["A", "B"]}')["actions"] == ["A", "B"]
    assert planning.parse("<response><actions/></response>")["actions"] == []


def test_a_plan_may_only_hold_actions_of_its_context() -> None:
    context = {"actions": [{"name": "Reply"}, {"name": "SEARCH"}]}
    text = "<response><actions>REPLY, search</actions></response>"
    assert planning.parse(text, context)["actions"] == ["Reply", "SEARCH"]
    with pytest.raises(UnparseableAnswer, match="'FLY' is not among"):
        planning.parse("<response><actions>REPLY, FLY</actions></response>", context)


@pytest.mark.parametrize("bad", ["", "<response><thought>x</thought></response>", '{"actions": 3}', '{"actions": [1]}'])
def test_what_is_no_plan_is_refused(bad: str) -> None:
    with pytest.raises(UnparseableAnswer):
        planning.parse(bad)


@pytest.mark.parametrize(
    "bad", ["no code", "```py\nnever closed", "```\na\n```\nand\n```\nb\n```", "```\n\n```", '{"code": 3}', "`x`"]
)
def test_what_is_no_code_is_refused(bad: str) -> None:
    with pytest.raises(UnparseableAnswer):
        coding.parse(bad)


def test_code_comes_with_its_explanation_and_language() -> None:
    found = coding.parse("First.\n\n```python title=x\r\nx = 1\n```\nLast.")
    assert found == {"code": "x = 1", "explanation": "First.\n\nLast.", "language": "python"}
    assert coding.parse('{"code": "x", "language": "c"}') == {"code": "x", "explanation": "", "language": "c"}
