from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.features.addressee import transcript_features
from learners.transcript import MAX_LINES, Action, SpokenLine, Transcript, message_text, parse_transcript
from reasoning.decision_types import get_decision_type

NAMES = st.from_regex(r"[A-Za-zÀ-ÿ][A-Za-z0-9_' ]{0,20}[a-z]", fullmatch=True)
TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=80)


@given(st.lists(st.tuples(NAMES, TEXTS), min_size=2, max_size=12))
def test_reads_back_what_the_client_renders_and_no_text_forges_a_speaker(said: list[tuple[str, str]]) -> None:
    context = {"agent_name": "Nova", "messages": [{"speaker": speaker, "text": text} for speaker, text in said]}
    transcript = parse_transcript(get_decision_type("should_respond").render(context))
    assert [line.speaker for line in transcript.lines] == [" ".join(speaker.split()) for speaker, _ in said]
    assert ["".join(line.text.split()) for line in transcript.lines] == ["".join(text.split()) for _, text in said]
    assert transcript.agent == "Nova"


def test_reads_the_actions_of_a_plan() -> None:
    actions = [{"name": "cd", "description": "Change: the folder."}, {"name": "get_stock_info", "description": ""}]
    context = {
        "agent_name": "Nova",
        "messages": [{"speaker": "User", "text": "- rm: not on offer"}],
        "actions": actions,
    }
    transcript = parse_transcript(get_decision_type("planning").render(context))
    assert transcript.actions == (Action("cd", "Change: the folder."), Action("get_stock_info", ""))
    assert transcript.last == SpokenLine("User", "- rm: not on offer")


@pytest.mark.parametrize(
    ("system", "agent"),
    [
        ("You are Nova.", "Nova"),
        ("You are an assistant named Max.", "Max"),
        ("Decide whether Ada should answer.", "Ada"),
        ("The room's bot goes by the name of zed; zed is shy.", "zed"),
        ("Answer briefly.", None),
    ],
)
def test_finds_on_whose_behalf_it_is_asked(system: str, agent: str | None) -> None:
    names = ["Nova", "Max", "Ada", "zed", "Bo"]
    prompt = "\n".join(f"{name}: hello" for name in names)
    transcript = parse_transcript([{"role": "system", "content": system}, {"role": "user", "content": prompt}])
    assert transcript.agent == agent


def test_chat_turns_are_lines_when_there_is_no_transcript() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "book a flight"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "book_flight", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "done", "tool_call_id": "1"},
        {"role": "user", "content": "thanks"},
    ]
    tools = [{"type": "function", "function": {"name": "book_flight", "description": "Books."}}]
    transcript = parse_transcript(messages, tools)
    assert [line.speaker for line in transcript.lines] == ["user", "assistant", "tool", "user"]
    assert transcript.lines[1].text == message_text(messages[1]) == "book_flight"
    assert transcript.agent == "assistant"
    assert transcript.actions == (Action("book_flight", "Books."),)


def test_keeps_the_newest_lines_of_a_long_transcript() -> None:
    prompt = "\n".join(f"P{i % 7}: line {i}" for i in range(5 * MAX_LINES))
    transcript = parse_transcript([{"role": "user", "content": prompt}])
    assert len(transcript.lines) == MAX_LINES
    assert transcript.last.text == f"line {5 * MAX_LINES - 1}"


@given(
    st.lists(st.builds(SpokenLine, NAMES | st.just("Nova"), TEXTS), max_size=40), st.sampled_from([None, "Nova", "Zed"])
)
def test_features_are_always_the_same_finite_numbers(lines: list[SpokenLine], agent: str | None) -> None:
    features = transcript_features(Transcript(tuple(lines), agent, ()))
    assert list(features) == list(transcript_features(Transcript((), None, ())))
    assert all(math.isfinite(value) for value in features.values())


def test_features_tell_the_agents_partner_from_a_bystander() -> None:
    talk = [
        SpokenLine("Ann", "a?"),
        SpokenLine("Nova", "b"),
        SpokenLine("Bo", "c"),
        SpokenLine("Ann", "d"),
        SpokenLine("Cy", "e"),
        SpokenLine("Nova", "f"),
    ]
    partner = transcript_features(Transcript((*talk, SpokenLine("Ann", "g")), "Nova", ()))
    bystander = transcript_features(Transcript((*talk, SpokenLine("Bo", "g")), "Nova", ()))
    assert partner["alternation"] > bystander["alternation"]
    assert partner["agent_follows_speaker"] > bystander["agent_follows_speaker"]
    assert partner["previous_is_agent"] == bystander["previous_is_agent"] == 1
