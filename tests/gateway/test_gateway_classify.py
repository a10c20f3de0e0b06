"""What is coding, and what only looks like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.coding.classify import WEIGHTS, load_classifier, signals
from gateway.errors import GatewayConfigError

CLASSIFY = load_classifier(None)
CLI = {b"user-agent": b"claude-cli/2.1.330 (external, cli)"}
TOOLS = [{"name": name} for name in ("Bash", "Edit", "Read", "WebFetch")]


def asks(content: Any, **fields: Any) -> dict[str, Any]:
    return {"max_tokens": 100, "messages": [{"role": "user", "content": content}], **fields}


CODING: list[tuple[dict[str, Any], dict[bytes, bytes]]] = [
    (asks("hi", tools=TOOLS), CLI),
    (asks("hello", tools=[{"name": "read_file"}, {"name": "str_replace_based_edit_tool"}]), {}),
    (asks("Write a function that reverses a list"), {}),
    (asks("Please fix the bug in parser.rs"), {}),
    (asks("Implement quicksort in Python"), {}),
    (asks("Refactor this TypeScript module into two"), {}),
    (asks("Generate unit tests for it"), {}),
    (asks("What is wrong here?\n```python\ndef f(:\n```", system="You are an expert programmer."), {}),
    (
        asks("Act on it", system="Act as an expert software developer. You know the codebase."),
        {b"user-agent": b"aider/0.86"},
    ),
    (
        asks(
            [
                {"type": "text", "text": "<system-reminder>x</system-reminder>"},
                {"type": "text", "text": "add a regex to it"},
            ]
        ),
        {},
    ),
    (asks("Debug this C++ program"), {}),
    (asks("write hello.py, a script that greets"), {}),
]
OTHER: list[tuple[dict[str, Any], dict[bytes, bytes]]] = [
    (asks("Can I trust you?"), {}),  # the original's defect: "trust" holds "rust"
    (asks("I trust that the code of conduct is clear"), {}),
    (asks("What is the capital of France?"), {}),
    (asks("Write a poem about Python"), {}),
    (asks("Write a story in which a class of functions meets a bug"), {}),
    (asks("What is the dress code?"), {}),
    (asks("Explain recursion"), {}),
    (asks("Is Java an island?"), {}),
    (asks("Add milk to my list", tools=[{"name": "add_item"}, {"name": "search"}]), {}),
    (asks("fix the bug", output_config={"format": {"type": "json_schema", "schema": {}}}, tools=TOOLS), CLI),
    (asks("quota", max_tokens=1), CLI),
    (asks("Summarise this conversation in five words"), CLI),
    (asks("She wrote: go, swift as rust"), {}),
    (asks([]), {}),
]


@pytest.mark.parametrize(("body", "headers"), CODING)
def test_coding(body: dict[str, Any], headers: dict[bytes, bytes]) -> None:
    verdict = CLASSIFY(body, headers)
    assert verdict.coding, verdict


@pytest.mark.parametrize(("body", "headers"), OTHER)
def test_not_coding(body: dict[str, Any], headers: dict[bytes, bytes]) -> None:
    verdict = CLASSIFY(body, headers)
    assert not verdict.coding, verdict


def test_a_tool_loop_stays_coding_whatever_its_results_say() -> None:
    turns = [
        {"role": "user", "content": "fix the bug"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "Bash", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "fine"}]},
    ]
    assert CLASSIFY({"messages": turns, "tools": TOOLS}, CLI).coding


def test_header_decides() -> None:
    assert CLASSIFY(asks("hi"), {b"x-reasoning-coding": b"on"}).coding
    assert not CLASSIFY(asks("fix the bug", tools=TOOLS), {b"x-reasoning-coding": b"off"}).coding


def test_every_signal_has_a_weight_and_a_line_in_the_table() -> None:
    from gateway.coding import classify

    for name in WEIGHTS:
        assert f"`{name}`" in str(classify.__doc__)


def test_learned_weights(tmp_path: Path) -> None:
    file = tmp_path / "weights.json"
    file.write_bytes(orjson.dumps({"bias": -1.0, "weights": {"coding_tools": 0.5}}))
    learned = load_classifier(file, threshold=0.0)
    assert not learned(asks("fix the bug", tools=TOOLS), CLI).coding
    file.write_bytes(orjson.dumps({"weights": {"vibes": 1}}))
    with pytest.raises(GatewayConfigError, match="vibes"):
        load_classifier(file)
    with pytest.raises(GatewayConfigError, match="no classifier"):
        load_classifier(tmp_path / "none.json")


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda v: (
        st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "name"]), v)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["messages", "system", "tools", "max_tokens", "output_config"]), _values))
def test_any_body_is_classified(body: dict[str, Any]) -> None:
    signals(body, {})
