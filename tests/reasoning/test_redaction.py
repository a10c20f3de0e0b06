"""Redacted prompts, and the way back from an answer: numbers, restoring, streams, the cache."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.errors import UnparseableAnswer, Unredactable
from reasoning.redaction import prompts
from reasoning.redaction.placeholders import RedactedPrompt, StreamRestorer
from reasoning.redaction.prompts import FindingsCache, is_cached, redact_answer, redact_prompt
from reasoning.redaction.redact import Finding, find_private, redact

ANN, BOB = "ann@example.org", "bob@example.org"


def ask(*contents: str) -> RedactedPrompt:
    return redact_prompt([{"role": "user", "content": content} for content in contents])


def texts(prompt: RedactedPrompt) -> list[str]:
    return [message["content"] for message in prompt.messages]


def test_equal_values_have_one_number_throughout_a_conversation():
    prompt = ask(f"{ANN} wrote to {BOB} from 203.0.113.9", f"answer {BOB}, then {ANN}")
    assert texts(prompt) == ["[EMAIL_1] wrote to [EMAIL_2] from [IP_1]", "answer [EMAIL_2], then [EMAIL_1]"]
    assert prompt.originals == {"[EMAIL_1]": ANN, "[EMAIL_2]": BOB, "[IP_1]": "203.0.113.9"}
    assert prompt.counts == {"email": 4, "ip": 1}


def test_a_longer_conversation_begins_with_the_same_bytes():
    contents = [f"turn {n}: mail {ANN if n % 2 else BOB} about 203.0.113.{n}" for n in range(8)]
    for length in range(1, len(contents)):
        assert texts(ask(*contents[:length])) == texts(ask(*contents))[:length]


def test_a_placeholder_that_the_prompt_has_already_is_nobodys():
    """Someone in the chat writes one, so that the model copies it and another person's value is put in its place."""
    prompt = ask(f"I am {ANN}", "send it to [EMAIL_1] and [EMAIL_2]")
    assert texts(prompt) == ["I am [EMAIL_3]", "send it to [EMAIL_1] and [EMAIL_2]"]
    assert prompt.restore_decision({"to": "[EMAIL_1]", "cc": "[EMAIL_3]"}) == {"to": "[EMAIL_1]", "cc": ANN}


def test_no_two_values_share_a_placeholder():
    prompt = ask(f"I am {ANN}, not [EMAIL_1] or [EMAIL_2]")
    assert redact_answer(prompt, f"{BOB} and {ANN} and eve@example.org")[0] == "[EMAIL_4] and [EMAIL_3] and [EMAIL_5]"


def test_an_answer_is_redacted_with_the_placeholders_of_its_prompt():
    prompt = ask(f"I am {ANN}")
    assert redact_answer(prompt, f"{BOB} knows {ANN}") == ("[EMAIL_2] knows [EMAIL_1]", {"email": 2})
    assert prompt.originals == {"[EMAIL_1]": ANN}


@pytest.mark.parametrize(
    ("decision", "restored"),
    [
        ({"action": "RESPOND", "reasoning": "[EMAIL_1] asked"}, {"action": "RESPOND", "reasoning": f"{ANN} asked"}),
        ({"text": "I wrote to [EMAIL_7]", "actions": []}, {"text": "I wrote to [EMAIL_7]", "actions": []}),
        (
            {
                "tool_calls": [
                    {"name": "send", "arguments": {"to": ["[EMAIL_1]"], "n": 1, "deep": {"x": "<[EMAIL_1]>"}}}
                ]
            },
            {"tool_calls": [{"name": "send", "arguments": {"to": [ANN], "n": 1, "deep": {"x": f"<{ANN}>"}}}]},
        ),
        ({"code": "packet[IP].src, table[EMAIL]"}, {"code": "packet[IP].src, table[EMAIL]"}),
        ({"code": None, "language": ""}, {"code": None, "language": ""}),
    ],
)
def test_values_are_put_back_into_a_decision(decision, restored):
    assert ask(f"I am {ANN}").restore_decision(decision) == restored


@pytest.mark.parametrize(
    "decision",
    [
        {"text": "", "tool_calls": [{"name": "send", "arguments": {"to": "[EMAIL_2]"}}]},
        {"actions": [{"name": "SEND", "params": {"to": "to: [EMAIL_2]"}}]},
        {"actions": [{"name": "SEND", "params": {"[EMAIL_2]": 1}}]},
        {"code": "send('[EMAIL]')"},  # of a model that was trained before placeholders had numbers
        {"code": "key = '[SECRET_1]'"},  # in the prompt it stood with escapes
    ],
)
def test_a_decision_that_acts_on_a_value_that_is_not_known_is_none(decision):
    prompt = ask(f"I am {ANN}", r'{"password": "a\\b\"c"}')
    assert texts(prompt)[1] == '{"password": "[SECRET_1]"}' and prompt.originals["[SECRET_1]"] is None
    with pytest.raises(UnparseableAnswer, match="stands for no value"):
        prompt.restore_decision(decision)


def test_a_value_that_stands_plainly_once_can_be_put_back():
    prompt = ask(r'{"password": "x\"y-12345"}', "password='x\"y-12345'")
    assert prompt.originals == {"[SECRET_1]": 'x"y-12345'}


def test_what_cannot_be_cleaned_is_refused(monkeypatch):
    monkeypatch.setattr(prompts, "find_private", lambda text, region: (Finding(0, 1, "phone"),))
    with pytest.raises(Unredactable):
        ask("never clean")


VALUES = [ANN, BOB, "203.0.113.9", "+44 20 7946 0958", "4111 1111 1111 1111", "password=hunter2-x"]
WORDS = st.sampled_from([*VALUES, "[EMAIL_1]", "[IP]", "and", "\n", '"', "\\", "{", "}", "[", "]", " ", ": ", "é", "x"])


@given(st.lists(st.lists(WORDS, max_size=12).map(" ".join), min_size=1, max_size=4))
def test_restoring_gives_the_prompt_back_and_redacting_twice_changes_nothing(contents):
    prompt = ask(*contents)
    again = redact_prompt(prompt.messages)
    assert again.messages == prompt.messages and again.counts == {}
    for before, after in zip(contents, texts(prompt), strict=True):
        restored, unknown = prompt.restore_text(after)
        if not unknown and '"' not in before:
            assert restored == before


@given(st.lists(WORDS, max_size=14).map("".join), st.lists(st.integers(0, 60), max_size=8), st.booleans())
def test_a_stream_is_restored_as_the_whole_is(text, cuts, json):
    prompt = RedactedPrompt(
        [], {"[EMAIL_1]": 'a"b', "[EMAIL_12]": ANN, "[SECRET_1]": None}, frozenset({"[PHONE_1]"}), {}
    )
    text += "[EMAIL_1][EMAIL_12] [EMAIL_123 [SECRET_1] [PHONE_1] x[IP] [IP] [EMAI"
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    stream = StreamRestorer(prompt, json=json)
    out = "".join(stream.feed(text[a:b]) for a, b in itertools.pairwise(places)) + stream.finish()
    whole, unknown = prompt.restore_text(text)
    assert stream.unknown == unknown
    if not json:
        assert out == whole
    else:
        assert out == StreamRestorer(prompt, json=True).feed(text + "]")[:-1]


def test_a_stream_holds_back_only_what_may_become_a_placeholder():
    stream = StreamRestorer(RedactedPrompt([], {"[EMAIL_1]": ANN}))
    assert stream.feed("hello ") == "hello "
    assert stream.feed("[") == "" and stream.feed("EMAIL") == "" and stream.feed("_1") == ""
    assert stream.feed("], a[") == f"{ANN}, a"
    assert stream.feed("0] and [EMAIL_" + "1" * 7) == "[0] and [EMAIL_" + "1" * 7
    assert stream.feed("[SECRETS") == "[SECRETS" and stream.feed("[[[") == "[[" and stream.finish() == "["


def test_values_are_written_into_json_as_its_strings_have_them():
    prompt = RedactedPrompt([], {"[SECRET_1]": 'line "one"\n\\two'})
    stream = StreamRestorer(prompt, json=True)
    pieces = [stream.feed(piece) for piece in ('{"content": "key: [SEC', "RET_1", ']."', "}")]
    assert orjson.loads("".join(pieces) + stream.finish()) == {"content": 'key: line "one"\n\\two.'}


def test_findings_are_those_of_the_text_itself():
    rng = random.Random(3)
    pieces: list[Any] = [*VALUES, "plain words", '{"card": 4111111111111111}', r"{\"password\": \"abc-123-x\"}", "\n"]
    for _ in range(300):
        text = " ".join(rng.choices(pieces, k=6))
        found = find_private(text)
        rebuilt, done = "", 0
        for start, end, kind, quote in found:
            assert done <= start <= end
            rebuilt += f"{text[done:start]}{quote}[{kind.upper()}]{quote}"
            done = end
        assert rebuilt + text[done:] == redact(text)[0]


def test_more_values_than_there_are_numbers_are_refused(monkeypatch):
    monkeypatch.setattr(prompts, "MAX_NUMBER", 2)
    assert texts(ask(f"{ANN} {BOB}")) == ["[EMAIL_1] [EMAIL_2]"]
    with pytest.raises(Unredactable, match="more than 2 values"):
        ask(f"{ANN} {BOB} eve@example.org")


@pytest.mark.parametrize(
    "pump", [f"{ANN} ", "[EMAIL_1] ", "[", "password=[SECRET_1] ", "{n}@ex.org ", "[EMAIL_{n}] ", "p: |\n  {n}"]
)
def test_redacting_and_restoring_take_time_in_proportion_to_the_text(pump):
    def seconds(size: int, number: int) -> float:
        text = f"{number} " + "".join(pump.replace("{n}", str(n)) for n in range(size // len(pump))) + ANN
        begun = time.process_time()
        prompt = ask(text)
        stream = StreamRestorer(prompt)
        restored = prompt.restore_text(texts(prompt)[0])[0]
        assert "".join([stream.feed(texts(prompt)[0]), stream.finish()]) == restored == text
        return time.process_time() - begun

    # The best of three: a collection of a long test run's garbage takes longer than this. Measured again where that
    # is not enough, on a machine with much to do: what grows with the square takes four times as long each time.
    for _ in range(3):
        short, long = (min(seconds(size, number) for number in range(3)) for size in (1 << 14, 1 << 15))
        if long < 3 * max(short, 0.03):
            break
    else:
        pytest.fail(f"twice the text takes {short:.3f} s, then {long:.3f} s")


def test_a_content_that_was_seen_costs_a_digest(monkeypatch):
    calls = []
    monkeypatch.setattr(prompts, "_cache", FindingsCache(10_000))
    monkeypatch.setattr(prompts, "find_private", lambda text, region: calls.append(text) or find_private(text, region))
    beginning = "x" * 300 + f" {ANN}"
    ask(beginning)
    assert is_cached(beginning, "US") and not is_cached(beginning, "GB")
    before = len(calls)
    assert texts(ask(beginning, "and now?"))[0].endswith("[EMAIL_1]")
    assert calls[before:] == ["and now?"]


def test_the_cache_is_bounded_and_keeps_no_text():
    cache = FindingsCache(2_000)
    for n in range(100):
        cache.get(f"{n}", "US", lambda text, region: (Finding(0, 1, "email"),))
    assert cache.bytes <= 2_000 and cache.has("99", "US") and not cache.has("0", "US")
    assert all(isinstance(key, bytes) and len(key) == 20 for key in cache._entries)
