"""What a model thought, began or quoted is no answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.decision_types import DECISION_TYPES
from reasoning.errors import UnparseableAnswer
from reasoning.serving.completion import Completion, check_whole

should_respond, planning, coding = (DECISION_TYPES[name] for name in ("should_respond", "planning", "coding"))
DRAFT = "<response><action>RESPOND</action></response>"
ANSWER = "<response><reasoning>Asked for silence</reasoning><action>IGNORE</action></response>"
OTHER_PROMPT = [{"role": "user", "content": "a coding tool's"}]
MARKS = [
    ("<think>", "</think>"),
    ("<THINK>\n", "\n</THINK>\n"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("analysisI see: ", "assistantfinal"),
]


@pytest.mark.parametrize(("begin", "end"), MARKS)
@pytest.mark.parametrize(
    "draft", [DRAFT, '{"action": "RESPOND"}', f"{DRAFT} no", "<response><action>RESP", '{"action"']
)
@pytest.mark.parametrize("answer", [ANSWER, '{"action": "IGNORE"}', f"```xml\n{ANSWER}\n```"])
def test_nothing_before_the_end_of_a_thought_counts(begin: str, end: str, draft: str, answer: str) -> None:
    assert should_respond.parse(f"{begin}{draft}{end}{answer}")["action"] == "IGNORE"
    if begin != "analysisI see: ":  # without its begin nothing marks the end of a leaked channel
        assert should_respond.parse(f"{draft}{end}\n\n{answer}")["action"] == "IGNORE"
    for open_thought in (f"{begin}{draft}", f"{begin}x{end}{answer}\n{begin}{draft}"):
        if open_thought.startswith("analysisI") and end in open_thought:
            continue
        with pytest.raises(UnparseableAnswer):
            should_respond.parse(open_thought)


@given(st.sampled_from(MARKS[:-1]), st.lists(st.sampled_from([DRAFT, '{"action":"RESPOND"}', " no, ", "\n", "{", "<"])))
def test_no_draft_in_a_thought_is_ever_the_answer(marks: tuple[str, str], pieces: list[str]) -> None:
    thought = "".join(pieces)
    assert should_respond.parse(f"{thought}{marks[1]}{ANSWER}")["action"] == "IGNORE"
    with pytest.raises(UnparseableAnswer):
        should_respond.parse(f"{marks[0]}{thought}")


@pytest.mark.parametrize(
    ("completion", "action"),
    [
        ('{"action":"RESPOND"}\nWait, correction:\n{"action":"IGNORE"}', "IGNORE"),
        (f"{DRAFT}\nNo:\n{ANSWER}", "IGNORE"),
        (f'{DRAFT}\nNo:\n{{"action": "IGNORE"}}', "IGNORE"),
        (f'{{"action": "RESPOND"}}\nNo:\n{ANSWER}', "IGNORE"),
        ('<response><reasoning>{"action": "RESPOND"}</reasoning><action>IGNORE</action></response>', "IGNORE"),
        ("<response><reasoning><action>RESPOND</action></reasoning><action>IGNORE</action></response>", "IGNORE"),
        ("<response><reasoning><![CDATA[</response>]]></reasoning><action>IGNORE</action></response>", "IGNORE"),
        ('{"action": "IGNORE", "reasoning": "</think> {\\"action\\": \\"RESPOND\\"}"}', "IGNORE"),
    ],
)
def test_the_last_answer_and_its_own_fields_count(completion: str, action: str) -> None:
    assert should_respond.parse(completion)["action"] == action


@pytest.mark.parametrize(
    "completion",
    [
        f"I could write {DRAFT}, but they asked for silence, so",
        'Perhaps {"action":"RESPOND"}? No, I had better',
        '<response><reasoning>Ada wrote {"action": "RESPOND"} which is an attempt to',
        f"{ANSWER}\nNo: <response><action>RESP",
        f"{ANSWER}\n<respon" + "se",
        '{"action": "IGNORE"}\n{"action": "RESP',
        '{"note": {"action": "RESPOND"}, "actio',
        '{"note": "a "b"", "x": {"action": "RESPOND"}}',
        '{"action": "IGNORE", "action": "RESPOND"}',
        '[{"action": "RESPOND"}',
        'Options: [{"action": "IGNORE"}, {"action": "RESPOND"}',
        '[ [{"action": "RESPOND"}]',
        '[{"action": "RESPOND"} or so]',
        '[{"action": "RESPOND"}, {"other": 1}',
        '[{"action": "RESPOND"}, 3]',
        f"<response><reasoning>he wrote {DRAFT}</reasoning><action>IGNORE</action></response>",
        "<response><reasoning><action>RESPOND</action></response> ha</reasoning><action>IGNORE</action></response>",
        "<response><reasoning>x</reasoning><action>RESPOND</action><reasoning>y</reasoning></response>",
        "<response><action>RESPOND<action>IGNORE</action></response>",
        "<response><reasoning><![CDATA[ <action>IGNORE</action></response>",
    ],
)
def test_what_is_begun_malformed_or_mentioned_is_no_answer(completion: str) -> None:
    with pytest.raises(UnparseableAnswer):
        should_respond.parse(completion)


@pytest.mark.parametrize("reason", ["length", "content_filter", "max_tokens", "abort", "SAFETY", "refusal"])
def test_a_cut_completion_is_no_answer(reason: str) -> None:
    with pytest.raises(UnparseableAnswer, match="was cut"):
        check_whole(Completion(ANSWER, finish_reason=reason), 512)
    for whole in (None, "stop", "eos", "STOP"):
        check_whole(Completion(ANSWER, finish_reason=whole), 512)


@pytest.mark.parametrize(
    "completion",
    [
        '[{"action": "IGNORE"}]',
        'Options: [{"action": "RESPOND"}, {"action": "IGNORE"}]',
        '[[{"action": "IGNORE"}], [{}]]',
        'As in [1]:\n{"action": "IGNORE"}',
        'Not [{"action": "RESPOND"}\nbut\n{"action": "IGNORE"}',
    ],
)
def test_an_answer_in_a_whole_list_or_behind_one_counts(completion: str) -> None:
    assert should_respond.parse(completion)["action"] == "IGNORE"


@given(
    st.lists(
        st.sampled_from([{"action": "RESPOND"}, {"action": "STOP", "reasoning": "[x]"}, {"other": [1, {}]}]), max_size=3
    ),
    st.integers(1, 3),
    st.sampled_from([None, 1]),
    st.sampled_from(["", "Options:\n", "As in [1]: "]),
    st.integers(1, 200),
)
def test_a_list_of_decisions_counts_whole_and_never_cut(
    others: list[dict[str, Any]], depth: int, indent: int | None, before: str, cut: int
) -> None:
    value: Any = [*others, {"action": "IGNORE"}]
    for _ in range(depth - 1):
        value = [value]
    text = json.dumps(value, indent=indent)
    assert should_respond.parse(before + text)["action"] == "IGNORE"
    with pytest.raises(UnparseableAnswer):
        should_respond.parse(before + text[: -min(cut, len(text) - 1)])


QUOTING = "<response><reasoning>They asked about `<think>`{}.</reasoning><action>IGNORE</action></response>"


@pytest.mark.parametrize("quoted", [QUOTING.format(""), QUOTING.format(" and `</think>`")])
@pytest.mark.parametrize(
    "around",
    [
        "{}\n\nLet me know.",
        "{}<|im_end|>",
        "**Answer:**\n```\n{}\n```",
        "<think>hm <response></think>{}",
        "hm</think>{}",
    ],
)
def test_a_mark_of_a_thought_quoted_in_the_reasoning_is_none(around: str, quoted: str) -> None:
    assert should_respond.parse(around.format(quoted))["action"] == "IGNORE"
    as_json = '{{"reasoning": "They asked about `<think>`.", "action": "IGNORE"}}'.format()
    assert should_respond.parse(around.format(as_json))["action"] == "IGNORE"


def test_a_quoted_mark_neither_ends_a_thought_nor_hides_one() -> None:
    for completion in (
        f"<think>I end with `</think>` {DRAFT}",
        f"`<think>` <think>{DRAFT}",
        f"`</think>`<think>{DRAFT}",
    ):
        with pytest.raises(UnparseableAnswer):
            should_respond.parse(completion)
    assert should_respond.parse(f"<think>I end with `</think>` {DRAFT}</think>{ANSWER}")["action"] == "IGNORE"


def test_marks_of_thoughts_in_code_are_code() -> None:
    code = 're.sub("<think>.*?</think>", "", text)\n</think>'
    found = coding.parse(f"Strip `</think>` so:\n```py\n{code}\n```")
    assert (found["code"], found["explanation"]) == (code, "Strip `</think>` so:")
    for thought in ("<think>```py\ndraft\n```\n</think>\n", "First:\n```py\ndraft\n```\nno</think>\n"):
        assert coding.parse(f"{thought}```py\n{code}\n```")["code"] == code
    turn: dict[str, Any] = coding.parse_reply("The </think> tag ends a thought.", OTHER_PROMPT)
    assert turn["text"] == "The </think> tag ends a thought."
    assert coding.parse_reply("hm</think>\n\nDone.", OTHER_PROMPT)["text"] == "Done."


@pytest.mark.parametrize(
    "completion",
    [
        "```py\ndraft </think>\n```py\nfinal\n```",
        "```py\nx\n```\nand\n```py\ny",
        "<think>\n```py\ndraft\n```",
        "Well.\n<think>\n```py\nx\n```",
    ],
)
def test_a_block_that_is_begun_in_a_draft_is_no_code(completion: str) -> None:
    with pytest.raises(UnparseableAnswer):
        coding.parse(completion)
