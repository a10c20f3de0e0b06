"""The three decisions that the demo shows first."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from demo.story import Told, headlines, pick_examples, print_story

BOTH = Told("should_respond", "Ada: Nova?", "RESPOND", "RESPOND", "RESPOND", rule_is_right=True, model_is_right=True)
RULE = replace(BOTH, right="IGNORE", rule="IGNORE", model_is_right=False)
MODEL = replace(BOTH, right="IGNORE", model="IGNORE", rule_is_right=False)


def test_examples_show_where_each_side_fails_and_differ_in_the_right_answer() -> None:
    other = replace(MODEL, right="RESPOND", rule="IGNORE", model="RESPOND")
    assert pick_examples([RULE, BOTH, other, MODEL]) == [other, BOTH, RULE]
    assert [one.model_is_right for one in pick_examples([RULE, BOTH, MODEL])] == [True, True, False]
    assert pick_examples([BOTH]) == [BOTH]
    assert pick_examples([]) == []


def test_headlines_count_by_type() -> None:
    told = [MODEL, MODEL, BOTH, RULE, replace(BOTH, decision_type="planning")]
    assert headlines(told) == [
        "should_respond: the model is right in 75 of 100, the rule in 50 (4 later decisions that both answered)",
        "planning: the model is right in 100 of 100, the rule in 100 (1 later decisions that both answered)",
    ]


def test_a_stranger_cannot_style_or_control_the_terminal() -> None:
    screen = io.StringIO()
    print_story([replace(BOTH, asked="[red]\x1b[2Jhello[/red]")], Console(file=screen, width=160))
    assert "hello[/red]" in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()
