"""Rows of a training file: what the service rejects or misreads never leaves this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.errors import InvalidDataset
from provider.rows import check_rows


def user(text: str = "q") -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str = "a") -> dict[str, Any]:
    return {"role": "assistant", "content": text}


GOOD = {"messages": [user(), assistant()]}
TOOL_CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}


@pytest.mark.parametrize(
    ("row", "format"),
    [
        (GOOD, "conversation"),
        (
            {
                "messages": [
                    {"role": "system", "content": ""},
                    user(),
                    {**assistant(), "weight": 0},
                    user(),
                    assistant(),
                ]
            },
            "conversation",
        ),
        ({"messages": [user(), TOOL_CALL, {"role": "tool", "content": "7"}, assistant()], "tools": []}, "conversation"),
        ({"messages": [user(), {**assistant(), "reasoning": "so"}], "weight": 0.5}, "conversation"),
        ({"prompt": "p", "completion": "c"}, "instruction"),
        ({"text": "t"}, "text"),
        (
            {"input": {"messages": [user()]}, "preferred_output": [assistant()], "non_preferred_output": [assistant()]},
            "preference",
        ),
    ],
)
def test_good_rows(tmp_path: Path, row: dict[str, Any], format: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row) + "\n")
    checked = check_rows(path)
    assert (checked.format, checked.rows, checked.bytes) == (format, 1, path.stat().st_size)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps({**GOOD, "metadata": {}}), "a key that the service rejects: metadata"),
        (json.dumps({"messages": [user(), {**assistant(), "name": "x"}]}), r"messages\[1\] has a key .* name"),
        (json.dumps({"messages": [{"content": "q"}, assistant()]}), r"messages\[0\]\.role is None"),
        (json.dumps({"messages": [user(), assistant(), assistant()]}), "assistant is followed by assistant"),
        (json.dumps({"messages": [user(), user(), assistant()]}), "user is followed by user"),
        (json.dumps({"messages": [assistant()]}), "nobody is followed by assistant"),
        (json.dumps({"messages": [user()]}), "ends with user"),
        (json.dumps({"messages": [user(), assistant(), {"role": "system", "content": "s"}]}), "only be the first"),
        (json.dumps({"messages": [{"role": "tool", "content": "7"}, assistant()]}), "answers an assistant"),
        (json.dumps({"messages": []}), "messages is empty"),
        (json.dumps({"messages": "q"}), "messages is not a list"),
        (json.dumps({"messages": [user(), {**assistant(), "weight": 2}]}), "weight is 2; it is 0 or 1"),
        (json.dumps({"messages": [user(), {**assistant(), "weight": True}]}), "weight is True"),
        (json.dumps({"messages": [user(), assistant("  ")]}), r"messages\[1\]\.content is empty"),
        ('{"messages": [], "weight": NaN}', "NaN is not JSON"),
        ('{"text": "a", "text": "b"}', "a key twice"),
        (json.dumps({"prompt": "p"}), "completion is missing"),
        (json.dumps({"text": "t", "weight": -1}), "a number from 0"),
        (json.dumps({"question": "?"}), "neither messages"),
        (
            json.dumps(
                {"input": {"messages": [user()]}, "preferred_output": [user()], "non_preferred_output": [assistant()]}
            ),
            "one assistant message",
        ),
        ("[1]", "is not a JSON object"),
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("\ufeff" + json.dumps(GOOD), "byte order mark"),
        (json.dumps({"messages": [user("x" * 200), assistant()]}), "214 characters; the longest row"),
    ],
)
def test_bad_rows_are_named_with_their_place(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InvalidDataset, match=message) as caught:
        check_rows(path, max_characters=150)
    assert "train.jsonl, line 1: " in str(caught.value)


def test_a_file_has_one_format_and_a_row(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({"text": "t"}) + "\n")
    with pytest.raises(InvalidDataset, match="line 2: is text data in a file of conversation data"):
        check_rows(path)
    path.write_text("")
    with pytest.raises(InvalidDataset, match="is empty"):
        check_rows(path)
    path.write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(InvalidDataset, match="is not UTF-8"):
        check_rows(path)
    with pytest.raises(InvalidDataset, match="No such file"):
        check_rows(tmp_path / "none.jsonl")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.sampled_from(["user", "assistant", "system"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "weight", "text", "tools"]) | st.text(), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(row=JSON)
def test_any_json_is_judged_and_none_crashes(tmp_path_factory: pytest.TempPathFactory, row: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps(row) + "\n")
    try:
        check_rows(path)
    except InvalidDataset:
        return
    assert "NaN" not in path.read_text()
