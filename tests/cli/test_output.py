"""What commands print of values that are out of the ordinary."""

from __future__ import annotations

import json

import pytest

from cli.output import print_json, print_table, show


def test_control_characters_of_the_log_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["said"], [["\x1b[31mred\x07 \x9b2J\x00 two\nlines"]])
    shown = capsys.readouterr().out
    assert r"\x1b[31mred\x07 \x9b2J\x00 two" in shown
    assert not {"\x1b", "\x07", "\x9b", "\x00"} & set(shown)


def test_integers_of_128_bits_are_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_json([{"small": -(2**63), "large": 2**100}])
    assert json.loads(capsys.readouterr().out) == [{"small": -(2**63), "large": str(2**100)}]


def test_the_rows_within_a_report_are_a_table_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    show({"level": "ok", "budgets": [{"period": "day", "limit_usd": 25}]}, as_json=False, title="The guard")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["level", "ok"] in lines and ["Budgets"] in lines
    assert ["period", "limit", "usd"] in lines and ["day", "25"] in lines
