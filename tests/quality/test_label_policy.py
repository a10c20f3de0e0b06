from __future__ import annotations

import random
from datetime import timedelta

import pytest

from quality.dataset.export import export_dataset
from quality.dataset.label_policy import LabelPolicy, OutcomeRule, load_label_policy
from quality.dataset.manifest import read_rows
from quality.dataset.statistics import summarize_log
from quality.errors import InsufficientData, LabelPolicyError
from quality.settings import ExportSettings
from reasoning.ids import uuid7
from reasoning.records import Decision, Feedback
from tests.quality.conftest import NOW
from tests.quality.log import START, Turn, conversations, land, records, sentence

RULES = (OutcomeRule("helpful", ">=", 0.5),)


def _judged(turn: Turn, value: bool, *, metric: str = "helpful", of: str = "served") -> list[Decision | Feedback]:
    """A turn with feedback for the answer that was served, or for that of a side."""
    written = records(turn)
    target = next(r for r in written if isinstance(r, Decision) and (r.served if of == "served" else r.source == of))
    ts = turn.ts + timedelta(minutes=1)
    given = Feedback(feedback_id=uuid7(ts), ts=ts, metric=metric, value=value, decision_id=target.decision_id)
    return [*written, given]


def _export(data, policy=None, **settings):
    return export_dataset(data, "should_respond", ExportSettings(**settings), now=NOW, policy=policy)


def _taught(manifest):
    splits = ("train", "validation", "holdout")
    return {row.decision_id: row for split in splits for row in read_rows(manifest.path, split)}


def _right_and_wrong(tmp_path):
    """A log without demonstrations, where feedback calls the fallback's answers right or wrong, as they are."""
    turns, told = conversations(100), []
    for turn in turns:
        told.append(_judged(turn, turn.original == turn.right))
        told[-1] = [r for r in told[-1] if not (isinstance(r, Feedback) and r.kind == "demonstration")]
    data = tmp_path / "data"
    land(data, [[record for batch in told for record in batch]])
    wrong = {str(batch[0].decision_id) for batch in told if batch[-1].value is False}
    return data, wrong, len(turns)


def test_an_answer_that_feedback_called_wrong_is_never_taught(tmp_path):
    data, wrong, questions = _right_and_wrong(tmp_path)
    manifest = _export(data)
    assert len(wrong) > 100 and manifest.dropped["ruled_out"] == len(wrong)
    assert not wrong & set(_taught(manifest))
    assert set(manifest.label_sources) == {"original"}
    (statistics,) = summarize_log(data, now=NOW)
    assert statistics.label_sources == {"original": questions - len(wrong), "ruled_out": len(wrong)}
    assert statistics.verdict.rows == questions - len(wrong)


def test_a_declared_outcome_makes_a_label(tmp_path):
    data, wrong, _ = _right_and_wrong(tmp_path)
    manifest = _export(data, LabelPolicy(RULES, confirms=True))
    assert manifest.label_sources == {"outcome": manifest.rows}
    assert manifest.dropped["ruled_out"] == len(wrong)
    assert manifest.query["label_policy"]["outcomes"] == ["helpful >= 0.5"]


def test_outcomes_judge_the_answer_that_they_were_given_for(tmp_path):
    rng = random.Random(3)

    def turn(index: int, original: str, custom: str | None = None, served: str = "original") -> Turn:
        return Turn(
            ts=START + timedelta(days=2, seconds=index),
            episode=f"judged-{index}",
            context={"agent_name": "Ada", "messages": [{"speaker": "bob", "text": sentence(rng)}]},
            original={"action": original},
            custom=None if custom is None else {"action": custom},
            served=served,
        )

    batches = [
        _judged(turn(0, "RESPOND", "IGNORE", "custom"), False),  # the model was wrong, the fallback said otherwise
        _judged(turn(1, "RESPOND", "RESPOND", "custom"), False),  # both gave the answer that was wrong
        _judged(turn(2, "RESPOND", "IGNORE", "custom"), True),  # the model was right, the fallback was not
        _judged(turn(3, "RESPOND", "IGNORE", "original"), True, of="custom"),  # a shadow answer was called right
        _judged(turn(4, "RESPOND"), False, metric="unrelated"),
    ]
    demonstrated = turn(5, "RESPOND")
    demonstrated.right = {"action": "RESPOND"}
    batches.append(_judged(demonstrated, False))  # a demonstration outranks what feedback says
    data = tmp_path / "data"
    land(data, [[r for turn in conversations(60) for r in records(turn)], *batches])

    def by_index(policy):
        rows = _taught(_export(data, policy, label_sources=["demonstration", "outcome", "original"])).values()
        labels = {row.episode: (row.label["action"], row.label_source) for row in rows}
        return [labels.get(f"judged-{index}") for index in range(6)]

    original, demonstration = ("RESPOND", "original"), ("RESPOND", "demonstration")
    assert by_index(LabelPolicy()) == [original, None, original, original, original, demonstration]
    confirmed = ("IGNORE", "outcome")
    assert by_index(LabelPolicy(RULES, confirms=True)) == [
        original,
        None,
        confirmed,
        confirmed,
        original,
        demonstration,
    ]


@pytest.mark.parametrize(
    ("conflicts", "kept", "dropped"),
    [
        ("latest", ["IGNORE"], {"contradictory": 2}),
        ("majority", ["RESPOND"], {"duplicate": 1, "contradictory": 1}),
        ("drop", [], {"contradictory": 3}),
    ],
)
def test_conflicting_labels_of_one_prompt(data, conflicts, kept, dropped):
    turns = [
        Turn(
            ts=START + timedelta(days=2, seconds=index),
            episode=f"same-{index}",
            context={"agent_name": "Ada", "messages": [{"speaker": "bob", "text": "do you copy?"}]},
            original={"action": "IGNORE"},
            right={"action": right},
        )
        for index, right in enumerate(["RESPOND", "RESPOND", "IGNORE"])
    ]
    land(data, [[record for turn in turns for record in records(turn)]])
    manifest = _export(data, LabelPolicy(conflicts=conflicts))
    assert manifest.dropped == dropped
    labels = [row.label["action"] for row in _taught(manifest).values() if row.episode.startswith("same-")]
    assert labels == kept


def test_the_manifest_says_how_removing_rows_shifted_the_answers(data):
    text = sentence(random.Random(1), 60)
    turns = [
        Turn(
            ts=START + timedelta(days=2, seconds=index),
            episode=f"like-{index}",
            context={"agent_name": "Ada", "messages": [{"speaker": "bob", "text": f"{text} {index}"}]},
            original={"action": "IGNORE"},
            right={"action": "RESPOND"},
        )
        for index in range(5)
    ]
    land(data, [[record for turn in turns for record in records(turn)]])
    manifest = _export(data)
    answers = manifest.answers
    assert manifest.dropped == {"near_duplicate": 4}
    assert answers["labelled"]["RESPOND"] - answers["distinct"]["RESPOND"] == 4
    assert answers["kept"] == answers["distinct"] and sum(answers["labelled"].values()) == 605


def test_a_policy_is_read_from_the_file(tmp_path):
    file = tmp_path / "reasoning.toml"
    assert load_label_policy("should_respond", file) == LabelPolicy()
    file.write_text('[labels.should_respond]\noutcomes = ["stars >= 4", "angry<1"]\nconflicts = "majority"\n')
    policy = load_label_policy("should_respond", file)
    assert policy == LabelPolicy((OutcomeRule("stars", ">=", 4), OutcomeRule("angry", "<", 1)), True, "majority")
    assert load_label_policy("planning", file) == LabelPolicy()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("outcome = []", "did you mean outcomes"),
        ('conflicts = "newest"', "known are latest, majority, drop"),
        ('outcomes = "helpful >= 1"', "is no list"),
        ('outcomes = ["helpful = 1"]', "write it as"),
        ('outcomes = ["a\' OR 1=1 >= 1"]', "write it as"),
    ],
)
def test_a_policy_that_cannot_be_used(tmp_path, text, message):
    file = tmp_path / "reasoning.toml"
    file.write_text(f"[labels.should_respond]\n{text}\n")
    with pytest.raises(LabelPolicyError, match=message):
        load_label_policy("should_respond", file)


def test_a_log_of_wrong_answers_only_is_not_ready(tmp_path):
    turns = conversations(60, labelled=False)
    data = tmp_path / "data"
    land(data, [[record for turn in turns for record in _judged(turn, False, metric="correct")]])
    with pytest.raises(InsufficientData, match="ruled_out 300"):
        _export(data)
    (statistics,) = summarize_log(data, now=NOW)
    assert statistics.verdict.level == "Insufficient"
