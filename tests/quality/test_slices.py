"""Slices of an evaluation and its model card: a planted weakness is found, chance is not, and no text is kept."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import orjson

from quality.evaluation.evaluate import Label, SourceAnswer, evaluate
from quality.evaluation.model_card import as_markdown, find_examples, make_card, read_card
from quality.evaluation.slices import Facets, describe_worst, detect_languages, find_slices
from reasoning.decision_types import get_decision_type

KIND = get_decision_type("should_respond")
START = datetime(2026, 11, 1, tzinfo=UTC)
ENGLISH = "What do you think about the weather in the north today?"
GERMAN = "Was haltet ihr heute eigentlich von dem Wetter im Norden?"


def exam(seed: int = 0, *, right_in_german: float = 0.9, rows: int = 600):
    """Labels, answers and facets: the model is right in nine of ten cases, the original in eight."""
    draw = np.random.default_rng(seed)
    labels, candidate, original, facets = [], [], [], []
    for n in range(rows):
        german = n % 3 == 0
        truth, wrong = draw.permutation(["RESPOND", "IGNORE"])
        share = right_in_german if german else 0.9
        labels.append(Label({"action": str(truth)}, f"e{n // 2}-{german}", "demonstration"))
        candidate.append(SourceAnswer({"action": str(truth if draw.random() < share else wrong)}))
        original.append(SourceAnswer({"action": str(truth if draw.random() < 0.8 else wrong)}))
        text = (GERMAN if german else ENGLISH) * (1 + n % 4)
        facets.append(
            Facets(agent=("robin", "wren")[n // 2 % 2], speakers=1 + n % 4, text=text, ts=START + timedelta(hours=n))
        )
    return labels, {"candidate": candidate, "original": original}, facets


def test_a_planted_weakness_is_named_as_the_worst_slice() -> None:
    slices = find_slices(KIND, *exam(right_in_german=0.45))
    worst = slices[0]
    assert (worst.facet, worst.value, worst.is_worse) == ("language", "de", True)
    assert worst.difference.value < -0.2 and worst.p_value < 0.01
    assert "worst is language de" in describe_worst(slices)
    assert {each.facet for each in slices} >= {"agent", "speakers", "language", "length"}


def test_slices_of_a_model_that_is_no_worse_anywhere_are_rarely_called_worse() -> None:
    """Uncorrected, one of some twenty slices is below 0.05 in about every second evaluation."""
    wrong = uncorrected = 0
    for seed in range(6):
        labels, answers, facets = exam(seed, rows=240)
        theirs, other, _ = exam(seed + 100, rows=240)
        right = [each.decision == label.decision for each, label in zip(other["original"], theirs, strict=True)]
        flip = {"RESPOND": "IGNORE", "IGNORE": "RESPOND"}
        answers["candidate"] = [
            SourceAnswer({"action": label.decision["action"] if is_right else flip[label.decision["action"]]})
            for label, is_right in zip(labels, right, strict=True)
        ]
        slices = find_slices(KIND, labels, answers, facets)
        wrong += any(each.is_worse for each in slices)
        uncorrected += any(each.p_value / len(slices) < 0.05 for each in slices)
    assert wrong <= 1 < uncorrected


def test_too_small_slices_and_facets_of_one_value_are_left_out() -> None:
    labels, answers, facets = exam(rows=60)
    facets = [replace(each, agent="robin") for each in facets]
    found = find_slices(KIND, labels, answers, facets)
    assert all(each.rows >= 20 and each.episodes >= 10 for each in found)
    assert "agent" not in {each.facet for each in found}
    assert describe_worst([]) == "No slice has 20 rows of 10 episodes."


def test_the_language_of_a_text_is_told_and_of_a_short_one_not() -> None:
    assert detect_languages([ENGLISH, GERMAN, "lol ok"]) == ["en", "de", None]


def test_a_card_counts_wins_and_losses_keeps_no_text_and_is_read_back() -> None:
    labels, answers, facets = exam(right_in_german=0.45)
    evaluation = evaluate(KIND, labels, answers, about={"model_id": "m1", "base_model": "b", "dataset_id": "d"})
    evaluation.about["verdict"] = {"decision": "keep", "why": "not better"}
    ids = [f"id-{n}" for n in range(len(labels))]
    wins, losses = find_examples(KIND, labels, answers, ids)
    card = make_card(evaluation, find_slices(KIND, labels, answers, facets), wins, losses)
    both = zip(labels, answers["candidate"], answers["original"], strict=True)
    assert card.won == sum(a.decision == label.decision != b.decision for label, a, b in both)
    kept = orjson.dumps(card.as_dict())
    assert ENGLISH.encode() not in kept and GERMAN.encode() not in kept
    assert read_card(orjson.loads(kept)) == card
    text = as_markdown(card, {card.wins[0].decision_id: "<b>Robin</b> | what\n# now?"})
    assert "\\<b\\>Robin\\</b\\> \\| what \\# now?" in text
    assert "| language de |" in text and "**Verdict: keep.** not better" in text
