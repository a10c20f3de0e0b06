"""A right label with decoration around the word is read; a call in another model's markup is never text."""

from __future__ import annotations

import pytest

from reasoning.decision_types import DECISION_TYPES, check_demonstration
from reasoning.errors import UnparseableAnswer
from reasoning.formats.label import parse_label
from reasoning.formats.turns import parse_turn

TYPE = DECISION_TYPES["should_respond"]


@pytest.mark.parametrize("word", ["IGNORE.", "**IGNORE**", '"IGNORE"', "`IGNORE`", "**ignore**.", "'IGNORE'."])
def test_a_decorated_label_is_read(word):
    assert TYPE.parse(f"<response><action>{word}</action></response>") == {"action": "IGNORE"}


def test_a_label_with_a_period_of_its_own_is_kept():
    assert parse_label("<response><action> a. </action></response>", ["A.", "B"]) == {"action": "A."}


def test_a_decorated_demonstration_is_refused():
    with pytest.raises(UnparseableAnswer):
        check_demonstration({"action": "**IGNORE**"}, [TYPE])


@pytest.mark.parametrize("word", ["NOT IGNORE", "IGNORE or RESPOND", "IGNORE?", "", "**", ".", "IGNORE, RESPOND"])
def test_other_words_are_no_label(word):
    with pytest.raises(UnparseableAnswer):
        TYPE.parse(f"<response><action>{word}</action></response>")


@pytest.mark.parametrize("mark", ['<invoke name="Bash">', '<antml:invoke name="Bash">'])
def test_a_call_in_invoke_markup_is_never_text(mark):
    with pytest.raises(UnparseableAnswer):
        parse_turn(f'I look. {mark}<parameter name="command">ls</parameter>')
