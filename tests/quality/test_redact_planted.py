"""What redaction must find and what it must leave, planted in many contexts; and that it takes linear time."""

from __future__ import annotations

import base64
import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.redaction.redact import redact
from tests.quality.planted import STAYS, TELLING, draw_negatives, draw_positives, examples, is_gone


@pytest.mark.parametrize(("name", "example", "near_miss"), list(examples()), ids=lambda value: str(value)[:24])
def test_every_rule_finds_its_example_and_leaves_its_near_miss(name, example, near_miss):
    for text in (example, f"use {example}, please", json.dumps({"a": json.dumps({"b": f"x\n{example}\n"})})):
        clean, counts = redact(text)
        assert example not in clean and "[SECRET]" in clean and counts["secret"] >= 1, name
    assert redact(f"use {near_miss} please")[0] == f"use {near_miss} please"


def test_recall_of_what_is_planted():
    kinds, missed, total = set(), [], 0
    for kind, text, value in draw_positives(random.Random(11), each=4):
        clean, _ = redact(text)
        kinds.add(kind)
        total += 1
        if not is_gone(text, clean, value):
            missed.append((kind, text, clean))
    assert len(kinds) >= 40
    assert len(missed) <= 0.01 * total, missed[:5]


def test_precision_on_what_looks_like_it():
    changed, total = [], 0
    for kind, text in draw_negatives(random.Random(12), each=25):
        clean, _ = redact(text)
        total += 1
        if clean != text:
            changed.append((kind, text, clean))
    assert len(STAYS) >= 40
    assert len(changed) <= 0.005 * total, changed[:5]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@given(_VALUES, st.sampled_from(sorted(TELLING)), st.integers(0, 2**32), st.integers(0, 3), st.booleans())
def test_json_stays_json_at_any_depth(value, kind, seed, depth, ascii_only):
    secret = TELLING[kind](random.Random(seed))
    text = json.dumps({"value": value, "text": f"it is\n{secret}\nhere", "password": [secret]}, ensure_ascii=ascii_only)
    for _ in range(depth):
        text = json.dumps({"arguments": text}, ensure_ascii=ascii_only)
    clean, counts = redact(text)
    assert counts
    parsed = json.loads(clean)
    for _ in range(depth):
        parsed = json.loads(parsed["arguments"])
    assert secret not in parsed["text"]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ('{"card":4111111111111111}', '{"card":"[CARD]"}'),
        ('{"cards": [4111111111111111, 1, 5500005555555559]}', '{"cards": ["[CARD]", 1, "[CARD]"]}'),
        ('{"a":"{\\"card\\": 4111111111111111}"}', '{"a":"{\\"card\\": \\"[CARD]\\"}"}'),
        ('{"password": 12345}', '{"password": "[SECRET]"}'),
        ('{"phone": 4155552671}', '{"phone": "[PHONE]"}'),
        ('{"password": "ab\\"cd"}', '{"password": "[SECRET]"}'),
        ('{"content":"DB_PASSWORD=\\"hunter2-0000\\"\\n"}', '{"content":"DB_PASSWORD=\\"[SECRET]\\"\\n"}'),
    ],
)
def test_values_of_calls_are_replaced_by_strings(text, clean):
    assert redact(text)[0] == clean


@given(st.text(), st.sampled_from(["password=", "a@b.c ", "0x", "sk-", '{"token": "', "\\", "4111 1111 "]))
def test_redacting_twice_changes_nothing_more_of_any_text(text, begin):
    once, _ = redact(begin + text)
    assert redact(once)[0] == once


def _seconds(text: str) -> float:
    begun = time.process_time()
    redact(text)
    return time.process_time() - begun


@pytest.mark.parametrize(
    "pump",
    ["a", "0", "1 ", "a@", "a@b.", "http://u:p@", 'password="', "token: ", "\\", '\\"', "\\n", "eyJ", "sk-", "1.1.1.1 ",
     "a:b:", "-----BEGIN PRIVATE" + " KEY-----", "GB82 ", "mysql -p ", "key ",
     "Cookie: a=bbbb; ", "abandon ", '{"a":', "1//0",
     "(415) ", "\ud800", "é", "password: |\n", "\n", "0 ", "+1"],
)  # fmt: skip
def test_time_grows_with_the_length(pump):
    for last in (False, False, True):  # the machine may be busy
        short, long = (_seconds(pump * (size // len(pump))) for size in (20_000, 80_000))
        if long < max(9 * short, 0.4):  # the square would be 16 times
            break
        assert not last, (short, long)


def test_a_megabyte_of_base64_takes_no_half_an_hour():
    picture = base64.b64encode(random.Random(3).randbytes(786_432)).decode()
    begun = time.process_time()
    assert redact(json.dumps({"image": picture})) == (json.dumps({"image": picture}), {})
    assert time.process_time() - begun < 1.0
