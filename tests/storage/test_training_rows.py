"""One check of the rows of a fine-tuning file, for the export and for the upload."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.errors import InvalidDataset
from provider.rows import check_rows
from storage.training_rows import find_line_fault, find_row_fault

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
def test_rows_that_are_fit(row):
    assert find_row_fault(row) is None


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ([], "not an object"),
        (_row(USER, ASSISTANT) | {"metadata": {}}, "only 'messages'"),
        (_row(USER, ASSISTANT) | {"text": "x"}, "only 'messages'"),
        ({"prompt": "x", "completion": "y"}, "only 'messages'"),
        (_row(), "at least one message"),
        (_row(USER), "last message is not"),
        (_row(SYSTEM), "last message is not"),
        (_row(USER, ASSISTANT, USER), "last message is not"),
        (_row(USER, USER, ASSISTANT), "expected "),
        (_row(ASSISTANT), "expected "),
        (_row(SYSTEM, ASSISTANT), "expected "),
        (_row(USER, SYSTEM, ASSISTANT), "expected "),
        (_row(USER, ASSISTANT, ASSISTANT), "expected "),
        (_row(SYSTEM, SYSTEM, USER, ASSISTANT), "expected "),
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
def test_faults_are_named(row, fault):
    assert fault in (find_row_fault(row) or "")
    line_fault = find_line_fault(json.dumps(row).encode()) or ""
    assert fault in line_fault or line_fault == "NaN is not JSON"


# Rows on which the two checks of before disagreed, or that both took. Now neither caller takes one.
ODD_ROWS = {
    "a lone surrogate": _row(USER, {"role": "assistant", "content": "\ud800"}),
    "an empty system message": _row({"role": "system", "content": ""}, USER, ASSISTANT),
    "a weight on the user's message": _row(USER | {"weight": 1}, ASSISTANT),
    "a last message without weight": _row(USER, ASSISTANT | {"weight": 0}),
    "a weight of the row": _row(USER, ASSISTANT) | {"weight": 1},
    "tools": _row(USER, ASSISTANT) | {"tools": []},
    "reasoning": _row(USER, ASSISTANT | {"reasoning": "so"}),
    "a tool's message": _row(USER, ASSISTANT, {"role": "tool", "content": "7"}, ASSISTANT),
    "a call without content": _row(USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}),
    "another format": {"prompt": "p", "completion": "c"},
    "a role that is a list": _row({"role": [], "content": "x"}, ASSISTANT),
}


@pytest.mark.parametrize("row", ODD_ROWS.values(), ids=ODD_ROWS)
def test_odd_rows_are_refused_by_export_and_upload(tmp_path, row):
    assert find_row_fault(row)
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(InvalidDataset, match="line 1") as caught:
        check_rows(path)
    str(caught.value).encode()


MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", None, []]), "content": st.text(max_size=3)},
    optional={"weight": st.sampled_from([0, 1, 2, True, 1.0, None]), "\ud800": st.none()},
)
VALUES = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.none())
NEARLY_FIT = st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=4)}, optional={"tools": VALUES})
PAIRS = st.lists(
    st.tuples(st.text(st.characters(), min_size=1), st.text(st.characters(categories=["Cs", "L"]), min_size=1))
)


@given(row=NEARLY_FIT | VALUES | PAIRS.map(lambda pairs: _row(*_conversation(pairs))))
def test_export_and_upload_agree_on_every_row(tmp_path_factory: pytest.TempPathFactory, row: Any):
    path = tmp_path_factory.getbasetemp() / "any-row.jsonl"
    path.write_text(json.dumps(row) + "\n")
    try:
        check_rows(path)
        accepted = True
    except InvalidDataset:
        accepted = False
    assert accepted == (find_row_fault(row) is None)


def _conversation(pairs):
    for question, answer in pairs:
        yield {"role": "user", "content": question}
        yield {"role": "assistant", "content": answer}
