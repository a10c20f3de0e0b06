from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import orjson
import pytest
from scipy.stats import ttest_1samp
from sklearn import metrics as reference

from quality.errors import EvaluationError
from quality.evaluation.evaluate import Label, SourceAnswer, evaluate
from quality.evaluation.objectives import Objective
from quality.evaluation.promotion import judge
from quality.evaluation.thresholds import choose_threshold
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import last_evaluation, save_evaluation
from tests.quality.conftest import NOW

R, I = {"action": "RESPOND"}, {"action": "IGNORE"}  # noqa: E741


def _rows(
    episodes=60,
    turns=6,
    *,
    original=0.7,
    candidate=0.85,
    seed=1,
    confidence=True,
    cost=(0.0, 0.0),
    labels="demonstration",
):
    rng = random.Random(seed)
    rows, ours, theirs = [], [], []
    for episode in range(episodes):
        ease = rng.uniform(-0.15, 0.15)  # rows of an episode are alike
        for _ in range(turns):
            right, wrong = (R, I) if rng.random() < 0.4 else (I, R)
            rows.append(Label(right, str(episode), labels))
            hit = rng.random() < candidate + ease
            sure = rng.uniform(0.7, 1) if hit else rng.uniform(0.5, 0.8)
            ours.append(
                SourceAnswer(right if hit else wrong, sure if confidence else None, rng.uniform(20, 60), cost[1])
            )
            theirs.append(SourceAnswer(right if rng.random() < original + ease else wrong, None, 1.0, cost[0]))
    return rows, {"candidate": ours, "original": theirs}


def test_values_are_those_of_scikit_learn():
    labels, answers = _rows()
    evaluation = evaluate("should_respond", labels, answers)
    wanted = [label.decision["action"] for label in labels]
    for source, given in answers.items():
        actions = [answer.decision["action"] for answer in given]
        values = {name: estimate.value for name, estimate in evaluation.sources[source].metrics.items()}
        assert values["accuracy"] == pytest.approx(reference.accuracy_score(wanted, actions), abs=1e-6)
        assert values["balanced_accuracy"] == pytest.approx(
            reference.balanced_accuracy_score(wanted, actions), abs=1e-6
        )
        assert values["f1_respond"] == pytest.approx(reference.f1_score(wanted, actions, pos_label="RESPOND"), abs=1e-6)
    respond = [a.confidence if a.decision == R else 1 - a.confidence for a in answers["candidate"]]
    assert evaluation.sources["candidate"].metrics["auc"].value == pytest.approx(
        reference.roc_auc_score([action == "RESPOND" for action in wanted], respond), abs=1e-6
    )
    assert "auc" not in evaluation.sources["original"].metrics


def test_intervals_agree_with_students_t_over_episodes():
    labels, answers = _rows()
    evaluation = evaluate("should_respond", labels, answers)
    hits = np.array([a.decision == b.decision for a, b in zip(labels, answers["candidate"], strict=True)])
    other = np.array([a.decision == b.decision for a, b in zip(labels, answers["original"], strict=True)])
    # Episodes are of one length, so that the mean over rows is the mean of the episodes' means.
    per_episode = hits.reshape(60, 6).mean(axis=1) - other.reshape(60, 6).mean(axis=1)
    interval = ttest_1samp(per_episode, 0).confidence_interval()
    ours = evaluation.difference("candidate", "original", "accuracy")
    assert ours.value == pytest.approx(per_episode.mean(), abs=1e-6)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), abs=1e-5)
    assert ours.lower(0.025) == pytest.approx(ours.low, abs=1e-5)


def test_sources_without_a_difference_are_equal_within_what_was_not_seen():
    labels, answers = _rows(turns=1)
    same = {"candidate": answers["original"], "original": answers["original"]}
    found = evaluate("should_respond", labels, same).difference("candidate", "original", "accuracy")
    assert found.value == 0
    assert found.high == pytest.approx(3.7 / 60, abs=0.002)


def test_a_source_that_answered_a_part_is_compared_on_that_part():
    labels, answers = _rows(episodes=80, turns=5)
    few = [answer if i % 50 < 5 else None for i, answer in enumerate(answers["original"])]
    whole = {label.episode for label, answer in zip(labels, few, strict=True) if answer is not None}
    found = evaluate("should_respond", labels, answers | {"original": few})
    rows = [i for i, label in enumerate(labels) if label.episode in whole]
    part = {source: [given[i] for i in rows] for source, given in answers.items()}
    alone = evaluate("should_respond", [labels[i] for i in rows], part)
    here, there = (each.difference("candidate", "original") for each in (found, alone))
    assert here.value == there.value
    assert here.df == there.df == len(whole) - 1
    assert here.se == pytest.approx(there.se)
    assert "original answered 40 of 400 rows: differences to it are of those rows only." in found.notes


def test_more_than_a_thousand_episodes_are_left_out_in_groups():
    labels, answers = _rows(episodes=2500, turns=1, confidence=False)
    found = evaluate("should_respond", labels, answers).difference("candidate", "original", "accuracy")
    difference = [
        (a.decision == label.decision) - (b.decision == label.decision)
        for label, a, b in zip(labels, answers["candidate"], answers["original"], strict=True)
    ]
    assert found.se == pytest.approx(np.std(difference, ddof=1) / 50, rel=0.1)


def test_rows_of_one_episode_do_not_count_as_so_many():
    # The same ten episodes a hundred times over tell no more of other episodes than ten do.
    labels, answers = _rows(episodes=10, turns=1)
    many = [Label(label.decision, label.episode) for label in labels for _ in range(100)]
    repeated = {source: [answer for answer in given for _ in range(100)] for source, given in answers.items()}
    one = evaluate("should_respond", labels, answers, now=NOW).difference("candidate", "original")
    hundred = evaluate("should_respond", many, repeated, now=NOW).difference("candidate", "original")
    assert one == hundred


def test_figures_are_the_same_again_and_the_reverse_difference_is_the_opposite():
    labels, answers = _rows()
    first, second = (evaluate("should_respond", labels, answers, now=NOW) for _ in range(2))
    assert first.differences == second.differences
    there, back = first.difference("candidate", "original"), first.difference("original", "candidate")
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))


def test_a_failed_answer_is_wrong():
    labels, answers = _rows(candidate=2)
    assert evaluate("should_respond", labels, answers).sources["candidate"].metrics["accuracy"].value == 1
    answers["candidate"] = [SourceAnswer(None) if i % 4 == 0 else a for i, a in enumerate(answers["candidate"])]
    evaluation = evaluate("should_respond", labels, answers)
    assert evaluation.sources["candidate"].failed == 90
    assert evaluation.sources["candidate"].metrics["accuracy"].value == 0.75
    assert judge(evaluation).decision == "refuse"


def test_labels_of_the_originals_own_making_show_nothing():
    labels, answers = _rows(labels="original")
    evaluation = evaluate("should_respond", labels, answers)
    assert not evaluation.independent
    assert not judge(evaluation).promote
    mixed = [
        Label(label.decision, label.episode, "demonstration" if i < 200 else "original")
        for i, label in enumerate(labels)
    ]
    evaluation = evaluate("should_respond", mixed, answers)
    assert evaluation.independent
    assert evaluation.rows == 200
    assert "160 rows labelled by the original logic itself are left out" in evaluation.notes[0]


def test_planning_and_its_order():
    labels = [Label({"actions": ["a", "b"]}, str(i)) for i in range(4)]
    given = [["a", "b"], ["b", "a"], ["a"], None]
    answers = {"candidate": [SourceAnswer(None if plan is None else {"actions": plan}) for plan in given]}
    found = evaluate("planning", labels, answers).sources["candidate"].metrics
    assert found["exact_match"].value == 0.25
    assert found["set_f1"].value == pytest.approx((1 + 1 + 2 / 3 + 0) / 4, abs=1e-6)
    assert found["order"].value == pytest.approx((1 + 0.5) / 2)


def test_coding_goes_by_tests_where_there_are_any():
    labels = [Label({"code": "return 1", "explanation": "", "language": ""}, str(i)) for i in range(4)]
    same = {"code": "return 1", "explanation": "", "language": ""}
    evaluation = evaluate("coding", labels, {"candidate": [SourceAnswer(same)] * 4})
    assert evaluation.primary == "similarity"
    answers = {"candidate": [SourceAnswer(same, passed=i < 3) for i in range(4)]}
    evaluation = evaluate("coding", labels, answers)
    assert evaluation.primary == "passed"
    assert evaluation.sources["candidate"].metrics["passed"].value == 0.75


def test_latency_and_cost():
    labels, answers = _rows(cost=(0.002, 0.0005))
    result = evaluate("should_respond", labels, answers).sources["candidate"]
    assert result.cost_per_1000_usd == pytest.approx(0.5)
    assert 20 < result.latency_p50_ms < result.latency_p95_ms < 60


def test_weights_undo_unequal_chances():
    # Half of the rows are answered right; the right ones were asked nine times as often.
    labels = [Label(R, str(i)) for i in range(10)]
    answers = {"a": [SourceAnswer(R, weight=1 / 0.9)] * 9 + [SourceAnswer(I, weight=1 / 0.1)]}
    assert evaluate("should_respond", labels, answers).sources["a"].metrics["accuracy"].value == 0.5


@pytest.mark.parametrize(
    ("labels", "answers", "message"),
    [
        ([], {"a": []}, "nothing to evaluate"),
        ([Label(R, "1")], {}, "nothing to evaluate"),
        ([Label(R, "1")], {"a": []}, "'a' has 0 answers to 1 labels"),
        ([Label(R, "1")], {"a": [None]}, "'a' answered none"),
        ([Label({"action": "DANCE"}, "1")], {"a": [SourceAnswer(R)]}, "label 0 is no decision"),
    ],
)
def test_what_cannot_be_compared(labels, answers, message):
    with pytest.raises(EvaluationError, match=message):
        evaluate("should_respond", labels, answers)


def test_it_is_kept_in_the_ledger(tmp_path):
    labels, answers = _rows(episodes=25)
    evaluation = evaluate("should_respond", labels, answers, now=NOW, about={"model_id": "m"})
    with open_ledger(tmp_path / "data") as ledger:
        save_evaluation(ledger, evaluation.as_dict())
        save_evaluation(ledger, evaluation.as_dict())
        kept = last_evaluation(ledger, "m")
    assert kept.id == evaluation.evaluation_id
    assert kept.content == orjson.loads(orjson.dumps(evaluation.as_dict()))


# The verdict.


def test_better_is_promoted():
    labels, answers = _rows(original=0.6, candidate=0.85)
    verdict = judge(evaluate("should_respond", labels, answers))
    assert verdict.promote
    assert "better" in verdict.why


def test_worse_is_refused_and_the_rule_is_said_to_win():
    labels, answers = _rows(original=0.85, candidate=0.6)
    evaluation = evaluate("should_respond", labels, answers)
    assert judge(evaluation).decision == "refuse"
    assert any(
        note.startswith("The original wins over candidate in balanced_accuracy: -0.") for note in evaluation.notes
    )


def test_as_good_is_promoted_only_if_it_is_cheaper():
    labels, answers = _rows(cost=(0.002, 0.0005))
    answers["candidate"] = [
        SourceAnswer(b.decision, a.confidence, a.latency_ms, a.cost_usd)
        for a, b in zip(answers["candidate"], answers["original"], strict=True)
    ]
    verdict = judge(evaluate("should_respond", labels, answers))
    assert verdict.promote
    assert "cheaper" in verdict.why
    answers["original"] = [SourceAnswer(a.decision, None, 1.0, 0.0) for a in answers["original"]]
    assert judge(evaluate("should_respond", labels, answers)).decision == "keep"
    answers["original"] = [SourceAnswer(a.decision, None, 1.0, None) for a in answers["original"]]
    assert judge(evaluate("should_respond", labels, answers)).decision == "keep"


def test_little_evidence_promotes_nothing():
    labels, answers = _rows(episodes=15, turns=6, original=0.1, candidate=2)
    assert judge(evaluate("should_respond", labels, answers)).decision == "keep"
    labels, answers = _rows(episodes=30, turns=1, original=0.1, candidate=2)
    assert judge(evaluate("should_respond", labels, answers)).decision == "keep"


def test_a_doubtful_difference_keeps_things_as_they_are():
    labels, answers = _rows(episodes=25, turns=2, original=0.72, candidate=0.75, cost=(0.002, 0.0005))
    verdict = judge(evaluate("should_respond", labels, answers), margin=0.0)
    assert verdict.decision == "keep"
    assert "not proven" in verdict.why


def test_an_incumbent_is_to_be_beaten_and_the_original_too():
    labels, answers = _rows(original=0.95, candidate=0.8)
    answers["incumbent"] = [SourceAnswer(I if a.decision == R else R) for a in answers["candidate"]]
    evaluation = evaluate("should_respond", labels, answers)
    verdict = judge(evaluation)
    assert verdict.decision == "keep"
    assert "worse than the original" in verdict.why
    assert judge(evaluation, candidate="original", against="incumbent").promote


def test_judging_what_was_not_evaluated():
    labels, answers = _rows(episodes=5)
    evaluation = evaluate("should_respond", labels, answers)
    with pytest.raises(EvaluationError, match="'canary' was not evaluated"):
        judge(evaluation, candidate="canary")
    with pytest.raises(ValueError, match="margin"):
        judge(evaluation, margin=-1)


# The threshold.


def test_the_threshold_leaves_doubtful_questions_to_a_good_original():
    labels, answers = _rows(episodes=150, original=0.9, candidate=0.8)
    threshold = choose_threshold("should_respond", labels, answers["candidate"], answers["original"])
    assert 0.5 < threshold.chosen.min_confidence < 1
    assert threshold.chosen.quality > max(threshold.curve[0].quality, 0.9)
    coverage = [point.coverage for point in threshold.curve]
    assert coverage == sorted(coverage, reverse=True)
    assert coverage[0] == 1


def test_the_threshold_is_zero_where_the_original_is_no_help():
    labels, answers = _rows(episodes=100, original=0.3, candidate=0.9)
    answers["candidate"] = [replace(answer, confidence=0.9) for answer in answers["candidate"]]
    assert (
        choose_threshold("should_respond", labels, answers["candidate"], answers["original"]).chosen.min_confidence == 0
    )
    with pytest.raises(EvaluationError, match="as many answers"):
        choose_threshold("should_respond", labels, answers["candidate"][:-1], answers["original"])


def test_the_threshold_keeps_within_an_error_budget():
    labels, answers = _rows(episodes=120, candidate=0.8)
    found = choose_threshold(
        "should_respond", labels, answers["candidate"], answers["original"], Objective(error_budget=0.1)
    )
    assert found.chosen.errors_at_most <= 0.1
    before = found.curve[found.curve.index(found.chosen) - 1]
    assert before.errors_at_most > 0.1
    assert found.chosen.coverage < before.coverage
    assert f"answers {found.chosen.coverage:.0%} of the questions" in found.describe()
    impossible = Objective(error_budget=0.0)
    last = choose_threshold("should_respond", labels, answers["candidate"], answers["original"], impossible)
    assert last.chosen == last.curve[-1]
