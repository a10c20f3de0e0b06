"""No input makes a parser take more than a few times as long for twice the length."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest

from reasoning.decision_types import DECISION_TYPES, questions_type
from reasoning.errors import UnparseableAnswer
from reasoning.formats.turns import parse_turn
from reasoning.questions import boolean, choice, question_set
from reasoning.serving.completion import Completion, measure_confidence, read_probabilities

QUESTIONS = questions_type(question_set({"team": choice(["pipes", "power"]), "urgent": boolean()}))


def _probabilities(text: str) -> Any:
    tokens = [text[i : i + 4] for i in range(0, len(text), 4)]
    completion = Completion(text, tokens, [-0.1] * len(tokens), alternatives=[{"a": -0.1}] * len(tokens))
    return read_probabilities(QUESTIONS, completion)


PARSERS: dict[str, Callable[[str], Any]] = {
    **{name: kind.parse for name, kind in DECISION_TYPES.items()},
    "turn": parse_turn,
    "questions": QUESTIONS.parse,
    "questions confidence": lambda text: measure_confidence("questions", Completion(text, [text], [0.0])),
    "questions probabilities": _probabilities,
    "label confidence": lambda text: measure_confidence("label", Completion(text, [text], [0.0])),
    "plan confidence": lambda text: measure_confidence("plan", Completion(text, [text], [0.0])),
}
UNITS = [
    *("{", '{"a":', '{"actions": ', "[", "<", "</", "<response>", "<response", "</response>", "<response ", "\n", " "),
    *("<action>", "</action>", "<action ", "<actions>", "<![CDATA[", "]]>", "```\n", "```", "~~~\n", "`", '"', "\\"),
    *("<tool_call>", "<tool_call>{", "</tool_call>", '<tool_call>{"a":"', "<think>", "</think>", "<think ", "[THINK]"),
    *("<thought>", "</thought>", "<thought></thought>", "\n<think>", "x </think> x", "<|channel|>analysis", "analysis"),
    *(
        '"action" : "',
        '"actions": [',
        "&amp;",
        "&",
        "a,",
        "- ",
        "A {",
        "<name>",
        "\n```a",
        "\n   ````",
        "\t",
        "\r\n",
        "]",
    ),
    *(
        "\n```\n<tool_call>",
        "{} ",
        '{"action":1}',
        '{"answers":{',
        '"team":',
        '[{"action":1},',
        '[{"action":1}',
        "assistantfinal",
        "<a></a>",
        "<a>",
        "<a/>",
        "1. ",
    ),
]
FRAMES = [
    ("", ""),
    ("<response>", "<action>STOP</action></response>"),
    ("<response><thought>t</thought><actions>", "</actions></response>"),
    ("```py\n", "\n```"),
]
SIZE, FACTOR, LONG = 4_000, 8, 0.1


def seconds(parse: Callable[[str], Any], text: str, times: int) -> float:
    """Of processor time: on a busy machine the clock on the wall says little."""
    best = float("inf")
    for _ in range(times):
        started = time.thread_time()
        with suppress(UnparseableAnswer):
            parse(text)
        best = min(best, time.thread_time() - started)
    return best


def slow_inputs(parsers: dict[str, Callable[[str], Any]], units: Sequence[str], frames: Any) -> list[str]:
    """The inputs that take more than three times as long as they are longer, and long at all."""
    found = []
    for name, parse in parsers.items():
        for begin, end in frames:
            for unit in units:
                small, large = (begin + unit * (size // len(unit)) + end for size in (SIZE, SIZE * FACTOR))
                if seconds(parse, large, 1) < LONG or (took := seconds(parse, large, 3)) < LONG:
                    continue
                if took > 3 * FACTOR * max(seconds(parse, small, 3), LONG / FACTOR / 8):
                    found.append(f"{name}: {begin!r} {unit!r} {end!r}: {took:.3f} s")
    return found


@pytest.mark.parametrize("name", PARSERS)
def test_parsers_grow_with_the_length_of_the_text(name: str) -> None:
    assert slow_inputs({name: PARSERS[name]}, UNITS, FRAMES) == []
