from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.config import load_config
from reasoning.decision_types import DECISION_TYPES, get_decision_type
from reasoning.errors import InvalidContext, UnknownDecisionType
from reasoning.formats.transcript import clean_name, clean_text

should_respond, planning, coding = (DECISION_TYPES[name] for name in ("should_respond", "planning", "coding"))
CONTEXT = {"agent_name": "Bot", "messages": [{"speaker": "Ann", "text": "hi\nthere"}, {"speaker": "Bot", "text": "yo"}]}
any_text = st.text(st.characters())
breaks = st.lists(st.sampled_from(["\n", "\r", "\x0b", "\x1c", "\x85", "\u2028", "Ann: ", "  ", "x"])).map("".join)
speakers = (any_text | breaks).filter(lambda name: bool(clean_name(name)))
messages = st.lists(st.fixed_dictionaries({"speaker": speakers, "text": any_text | breaks}), min_size=1, max_size=9)


def test_the_prompt_of_should_respond_has_its_documented_shape() -> None:
    system, user = should_respond.render(CONTEXT)
    assert system == {
        "role": "system",
        "content": "You are Bot.\n"
        "Decide whether you answer the last message of the conversation.\n"
        "RESPOND: answer it. IGNORE: stay silent. STOP: leave, because you were asked to be quiet.\n"
        "Answer with XML and nothing else:\n"
        "<response><reasoning>optional, one sentence</reasoning><action>RESPOND|IGNORE|STOP</action></response>",
    }
    assert user == {
        "role": "user",
        "content": "Ann: hi\n  there\nBot: yo\n\nShould Bot respond to the last message?",
    }


def test_the_prompt_of_planning_lists_the_actions() -> None:
    system, user = planning.render({**CONTEXT, "actions": [{"name": "GO", "description": "far\naway"}, {"name": "B"}]})
    lines = system["content"].split("\n")
    assert lines[0] == "You are Bot."
    assert lines[lines.index("Actions:") + 1 :][:2] == ["- GO: far away", "- B: "]
    assert user["content"].endswith("\n\nWhich actions should Bot take?")


def test_the_prompt_of_coding_holds_the_task() -> None:
    _, user = coding.render({"prompt": "sum\na list", "language": "python", "context": "def f():\n  pass"})
    assert user["content"] == "Language: python\nContext:\n  def f():\n    pass\nTask: sum\n  a list"


@given(any_text.filter(lambda name: bool(clean_name(name))), messages)
def test_no_text_forges_a_speaker(agent_name: str, spoken: list[dict[str, str]]) -> None:
    _, user = should_respond.render({"agent_name": agent_name, "messages": spoken})
    transcript, _, question = user["content"].rpartition("\n\n")
    read: list[tuple[str, list[str]]] = []
    for line in transcript.splitlines():  # the strictest reading: every separator of Unicode is a line break
        if line.startswith("  "):
            read[-1][1].append(line[2:])
        else:
            name, _, text = line.partition(":")
            read.append((name, [text[1:]]))
    assert [name for name, _ in read] == [clean_name(m["speaker"]) for m in spoken]
    assert [lines for _, lines in read] == [clean_text(m["text"]).splitlines() or [""] for m in spoken]
    assert "\n" not in question
    user["content"].encode()


def test_only_the_latest_messages_are_shown() -> None:
    spoken = [{"speaker": "Ann", "text": str(i)} for i in range(80)]
    _, user = should_respond.render({"agent_name": "Bot", "messages": spoken})
    assert user["content"].splitlines()[0] == "Ann: 30"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"agent_name": None}, 'context["agent_name"]'),
        ({"agent_name": " \n"}, "is empty"),
        ({"messages": []}, 'context["messages"]'),
        ({"messages": "hi"}, 'context["messages"]'),
        ({"messages": [{"speaker": "A"}]}, r'context["messages"][0]'),
        ({"messages": [{"speaker": "A", "text": "x"}, {"speaker": "", "text": "x"}]}, r'["messages"][1]["speaker"]'),
        ({"messages": [{"speaker": "A", "text": 3}]}, "both of them text"),
        ({"actions": []}, 'context["actions"]'),
        ({"actions": [{"name": "a, b"}]}, r'context["actions"][0]["name"]'),
        ({"actions": ["GO"]}, r'context["actions"][0]["name"]'),
    ],
)
def test_a_context_that_lacks_something_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidContext) as caught:
        planning.render({**CONTEXT, "actions": [{"name": "GO"}], **changes})
    assert named in str(caught.value)


@pytest.mark.parametrize("context", [None, [], "x", {}, {"prompt": ""}, {"prompt": 3}])
def test_code_needs_a_prompt(context: Any) -> None:
    with pytest.raises(InvalidContext, match="context"):
        coding.render(context)


def test_an_unknown_type_names_the_mend() -> None:
    with pytest.raises(UnknownDecisionType, match=r"'vote'; known: should_respond, .*\[decision_types.vote\]"):
        get_decision_type("vote")


def test_a_declared_type_asks_and_parses_its_labels(tmp_path: Any) -> None:
    (tmp_path / "reasoning.toml").write_text(
        '[decision_types.moderate]\ntier = "medium"\nlabels = ["Allow", "Remove it"]\nmax_messages = 1\n'
        'instruction = "Judge as {agent_name}."\nquestion = "What does {agent_name} do?"\n'
        "[decision_types.should_respond]\nmax_tokens = 64\ntemperature = 0\n"
    )
    config = load_config(path=tmp_path / "reasoning.toml", env={})
    moderate = get_decision_type("moderate", config)
    assert moderate.tier == "medium" and moderate.max_tokens == 256
    system, user = moderate.render(CONTEXT)
    assert "Judge as Bot." in system["content"] and "<action>Allow|Remove it</action>" in system["content"]
    assert user["content"] == "Bot: yo\n\nWhat does Bot do?"
    assert moderate.parse("<response><action>remove IT</action></response>") == {"action": "Remove it"}
    assert moderate.format_answer("allow") == "<response><action>Allow</action></response>"
    assert get_decision_type("should_respond", config).max_tokens == 64
    assert get_decision_type("should_respond").max_tokens == 512
