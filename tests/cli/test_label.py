"""Labelling in the terminal: what each key does, and what a terminal is shown of anyone's text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

import storage
from cli.label import Session, describe_question
from pipeline.labels import label_queue, label_writer
from reasoning.decision_types import get_decision_type
from storage.log.land import land_decisions
from tests.cli.test_commands import failure, reasoning
from tests.pipeline.test_labels import labels_of, write_questions

KIND = get_decision_type("should_respond")


def run(data: Path, keys: str, *, edited: str | None = None, limit: int | None = None) -> Session:
    """A session of these keys; then the labeller quits."""
    pressed: Iterator[str] = iter(keys + "q")
    with label_writer(data) as writer:
        session = Session(data, KIND, "ann", writer, lambda: next(pressed), lambda _: edited, lambda _: "too loud")
        session.shares = (0.0, 0.0)
        session.run(limit)
    land_decisions(data)
    return session


def test_keys_label_skip_explain_and_undo(tmp_path: Path):
    write_questions(tmp_path, 5)
    session = run(
        tmp_path, "2" + "a" + "w3" + "s" + "u" + "u1"
    )  # the skip is undone, then the label 3, given anew as 1
    assert session.given == 3
    assert sorted(labels_of(tmp_path).values()) == ["IGNORE", "RESPOND", "RESPOND"]
    log = storage.sql(tmp_path, "SELECT metric, value FROM feedback_log WHERE author = 'ann'").rows
    assert ("label_why", '"too loud"') in log


def test_a_reason_goes_with_its_own_question_only(tmp_path: Path):
    write_questions(tmp_path, 3)
    run(tmp_path, "ws" + "1" + "wu" + "1")  # the reason of what was skipped, and of what an undo left
    assert storage.sql(tmp_path, "SELECT value FROM feedback_log WHERE metric = 'label_why'").rows == []


def test_an_edit_is_the_label_and_what_is_no_answer_is_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_questions(tmp_path, 1)
    run(tmp_path, "e", edited="{")
    assert "not JSON" in capsys.readouterr().out
    run(tmp_path, "e", edited='{"action": "DANCE"}')
    assert "RESPOND|IGNORE|STOP" in capsys.readouterr().out
    assert labels_of(tmp_path) == {}
    run(tmp_path, "e", edited='{"action": "STOP", "reasoning": "asked to"}')
    assert list(labels_of(tmp_path).values()) == ["STOP"]


def test_it_ends_when_nothing_is_left_or_the_limit_is_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_questions(tmp_path, 3)
    assert run(tmp_path, "aaaa", limit=2).given == 2
    assert run(tmp_path, "aaaa").given == 1
    assert "Nothing is left to label." in capsys.readouterr().out


def test_text_of_the_log_does_not_steer_the_terminal(tmp_path: Path):
    write_questions(tmp_path, 1)
    (question,) = label_queue(tmp_path, "should_respond", "ann").questions
    question.messages = [{"role": "user", "content": "Eve: \x1b[2J\x1b]0;owned\x07"}]
    shown = "\n".join(describe_question(question, KIND, lines=None))
    assert "\x1b" not in shown and "\x07" not in shown and "\\x1b[2J" in shown


def test_without_a_terminal_it_says_what_programs_do(tmp_path: Path):
    write_questions(tmp_path, 1)
    assert "needs a terminal" in failure(reasoning("label", "should_respond", "--data", tmp_path))


def test_agreement_and_pairs_by_the_command(tmp_path: Path):
    write_questions(tmp_path, 2)
    run(tmp_path, "21")
    shown = reasoning("label", "should_respond", "--agreement", "--json", "--data", tmp_path)
    assert orjson.loads(shown.stdout)["shared"] == 0
    target = tmp_path / "pairs.jsonl"
    reasoning("label", "should_respond", "--pairs", target, "--data", tmp_path)
    (pair,) = map(orjson.loads, target.read_bytes().splitlines())
    assert "IGNORE" in pair["preferred_output"][0]["content"]
    assert target.stat().st_mode & 0o077 == 0
