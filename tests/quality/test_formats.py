from __future__ import annotations

import pytest

from quality.formats import find_format_fault

SYSTEM = {"role": "system", "content": "be kind"}
USER = {"role": "user", "content": "hello"}
ASSISTANT = {"role": "assistant", "content": "hi"}


def _row(*messages):
    return {"messages": list(messages)}


@pytest.mark.parametrize(
    "row",
    [
        _row(USER, ASSISTANT),
        _row(SYSTEM, USER, ASSISTANT),
        _row(SYSTEM, USER, ASSISTANT, USER, ASSISTANT | {"weight": 1}),
        _row(USER, ASSISTANT | {"weight": 0}, USER, ASSISTANT),
    ],
)
def test_fit(row):
    assert find_format_fault(row) is None


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ([], "not an object"),
        (_row(USER, ASSISTANT) | {"metadata": {}}, "only 'messages'"),
        (_row(USER, ASSISTANT) | {"text": "x"}, "only 'messages'"),
        ({"prompt": "x", "completion": "y"}, "only 'messages'"),
        (_row(), "something in it"),
        (_row(USER), "last message is not"),
        (_row(SYSTEM), "last message is not"),
        (_row(USER, ASSISTANT, USER), "last message is not"),
        (_row(USER, USER, ASSISTANT), "must stand"),
        (_row(ASSISTANT), "must stand"),
        (_row(SYSTEM, ASSISTANT), "must stand"),
        (_row(USER, SYSTEM, ASSISTANT), "must stand"),
        (_row(USER, ASSISTANT, ASSISTANT), "must stand"),
        (_row(SYSTEM, SYSTEM, USER, ASSISTANT), "must stand"),
        (_row(USER, {"content": "x"}), "role None"),
        (_row({"role": "tool", "content": "x"}, ASSISTANT), "role 'tool'"),
        (_row(USER, {"role": "assistant", "content": None}), "not text"),
        (_row(USER, {"role": "assistant", "content": float("nan")}), "not text"),
        (_row(USER, {"role": "assistant", "content": " \n"}), "empty"),
        (_row(USER, {"role": "assistant", "content": "\ud800"}), "surrogate"),
        (_row(USER, ASSISTANT | {"weight": 2}), "not 0 or 1"),
        (_row(USER, ASSISTANT | {"weight": float("nan")}), "not 0 or 1"),
        (_row(USER, ASSISTANT | {"weight": True}), "not 0 or 1"),
        (_row(USER | {"weight": 1}, ASSISTANT), "not the assistant's"),
        (_row(USER, ASSISTANT | {"weight": 0}), "nothing to learn"),
        (_row(USER, ASSISTANT | {"name": "x"}), "unknown keys ['name']"),
        (_row(USER, "hi"), "not an object"),
    ],
)
def test_faults(row, fault):
    assert fault in (find_format_fault(row) or "")
