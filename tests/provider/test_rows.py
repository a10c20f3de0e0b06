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


def test_a_good_file_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD) + "\n")
    checked = check_rows(path)
    assert (checked.rows, checked.bytes) == (2, path.stat().st_size)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps({**GOOD, "metadata": {}}), "only 'messages' is allowed"),
        (json.dumps({"messages": [user(), {**assistant(), "name": "x"}]}), r"message 1: unknown keys \['name'\]"),
        (json.dumps({"messages": [{"content": "q"}, assistant()]}), "message 0: role None is not one of"),
        (json.dumps({"messages": [user(), assistant(), assistant()]}), "message 2: role is 'assistant', expected user"),
        ('{"messages": [], "weight": NaN}', "NaN is not JSON"),
        ('{"messages": [], "messages": []}', "a key stands twice"),
        ("[1]", "not an object"),
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5_000, "integer string conversion"),
        ("\ufeff" + json.dumps(GOOD), "byte order mark"),
        (json.dumps({"messages": [user("x" * 200), assistant()]}), "201 characters, at most 150"),
    ],
)
def test_bad_rows_are_named_with_their_place(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InvalidDataset, match=message) as caught:
        check_rows(path, max_characters=150)
    assert "train.jsonl, line 1: " in str(caught.value)


def test_the_line_is_named_and_an_empty_file_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({"text": "t"}) + "\n")
    with pytest.raises(InvalidDataset, match="line 2: keys are"):
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
