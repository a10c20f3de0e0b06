from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest

from quality.checks.data_docs import write_data_docs
from quality.checks.drift import homogeneity_p_value, population_stability_index
from quality.checks.gate import Check, Profile, judge_profiles
from quality.checks.log import check_decisions
from quality.checks.report import QualityReport
from storage import files
from storage.errors import DataFolderError
from storage.layout import Layout
from tests.cheaper import judge_quickly
from tests.quality.log import START, conversations, land, records

AT = START + timedelta(days=15)
pytestmark = pytest.mark.usefixtures("great_expectations")


def test_a_log_in_order_passes_and_its_pages_read_offline(landed, tmp_path):
    data = shutil.copytree(landed, tmp_path / "data")
    report = check_decisions(data, now=AT)
    assert report.success
    assert report.failures == []
    assert report.data_docs == data / "quality" / "index.html"
    pages = list((data / "quality").rglob("*.html"))
    assert len(pages) >= 4
    for page in pages:
        text = page.read_text()
        assert "<style>" in text
        # Nothing that a browser would fetch: no script, image, stylesheet, import.
        assert not re.search(r"<script|<link|<img|<iframe|@import|url\(|https?://", text), page
        for link in re.findall(r'href="([^"#]+)', text):
            assert (page.parent / link).exists(), (page, link)
    assert not list(data.glob(".quality-*"))
    # The next check takes the place of this one.
    check_decisions(data, now=AT)
    assert len(list((data / "quality").rglob("*.html"))) == len(pages)


def test_an_empty_log_fails(tmp_path):
    Layout(tmp_path / "data").create()
    report = check_decisions(tmp_path / "data", now=AT)
    assert not report.success
    assert [failure.expectation for failure in report.failures] == ["the partitions have rows"]
    with pytest.raises(DataFolderError):
        check_decisions(tmp_path / "nowhere", now=AT)


def test_what_is_wrong_is_found_where_it_is(tmp_path):
    turns = conversations(16, turns=8)
    found = []
    for number, turn in enumerate(turns):
        turn.custom, turn.served = {"action": "IGNORE"}, "custom"
        original, custom, *feedback = records(turn)
        if number % 4 == 0:  # parse rate 0.75
            custom.valid, custom.decision, custom.served, custom.fallback_reason = False, None, False, "unparseable"
            original.served, original.fallback_reason = True, "unparseable"
        found += [original, custom, *feedback]
    found[1].served = True  # unparseable and served all the same
    found[4].latency_ms = -1.0
    found[3].arm_probability = 0.0
    found.append(replace(found[0], decision_type="planning"))  # an id that was given twice
    late = conversations(1, turns=1, seed=8, start=AT + timedelta(hours=3))[0]
    late.extra = {"tags": {}}
    found += records(late)
    data = tmp_path / "data"
    land(data, [found])
    report = check_decisions(data, now=AT)
    assert not report.success
    assert {(f.severity, f.expectation): f.where for f in report.failures if f.severity == "critical"} == {
        ("critical", "no answer that did not parse was served"): ["should_respond 2026-03-01"],
        ("critical", "arm probabilities are above 0 and at most 1"): ["should_respond 2026-03-01"],
        ("critical", "latency, tokens and cost are not negative"): ["should_respond 2026-03-01"],
        ("critical", "no decision is logged twice"): ["planning 2026-03-01", "should_respond 2026-03-01"],
    }
    warnings = {f.expectation: f.observed for f in report.failures if f.severity == "warning"}
    assert warnings.keys() == {
        "no label makes up more than 95 %",  # of the one that was given to another type
        "no row is of the future (an agent's clock is wrong)",
        "95 % of the custom models' answers parse",
        "at most 20 % of what a custom model was asked fell back to the original",
    }
    assert set(warnings["95 % of the custom models' answers parse"]) == {0.75}


def test_a_log_from_before_any_model_is_in_order(tmp_path):
    turns = conversations(16, turns=8)
    for turn in turns:
        turn.extra = {"fallback_reason": "no_route"}
    found = [record for turn in turns for record in records(turn)]
    cut = next(record for record in found if record.served)  # its agent went away in the middle of it
    cut.valid, cut.decision, cut.tags = False, None, {"cut": "client"}
    data = tmp_path / "data"
    land(data, [found])
    assert check_decisions(data, now=AT).failures == []


def test_drift_of_labels_and_fallback_is_seen(tmp_path):
    before = conversations(60, seed=1, start=AT - timedelta(days=8))
    after = conversations(7, turns=20, seed=2, start=AT - timedelta(hours=23))
    for turn in after:
        turn.right = {"action": "RESPOND"}
        turn.extra = {"fallback_reason": "timeout"}
    data = tmp_path / "data"
    land(data, [[record for turn in before + after for record in records(turn)]])
    report = check_decisions(data, now=AT)
    (failure,) = [failure for failure in report.failures if failure.profile == "drift"]
    assert failure.where == ["should_respond fallback", "should_respond labels"]
    assert failure.severity == "warning"
    assert all(index > 0.25 for index in failure.observed)


def test_a_stability_index_is_zero_for_the_same_shares():
    assert population_stability_index({"a": 50, "b": 50}, {"a": 500, "b": 500}) == pytest.approx(0, abs=1e-4)
    by_hand = (0.8 - 0.5) * 0.4700036 + (0.2 - 0.5) * -0.9162907
    assert population_stability_index({"a": 5e6, "b": 5e6}, {"a": 8e6, "b": 2e6}) == pytest.approx(by_hand, abs=1e-5)
    assert population_stability_index({"a": 100}, {"b": 100}) > 1


def test_chance_is_told_from_drift():
    assert homogeneity_p_value({"a": 500, "b": 500}, {"a": 6, "b": 4}) > 0.3
    assert homogeneity_p_value({"a": 500, "b": 500}, {"a": 80, "b": 20}) < 1e-6
    assert homogeneity_p_value({"a": 10}, {"a": 20}) == 1
    # A hundred plans that were seen once each are no evidence of anything.
    assert homogeneity_p_value({f"x{i}": 1 for i in range(100)}, {f"y{i}": 1 for i in range(100)}) == 1


@pytest.mark.parametrize("empty", [False, True])
def test_the_quick_judge_of_the_other_tests_agrees(empty):
    frame = pd.DataFrame(
        {"day": ["1", "2", "3"], "type": ["a", "b", "c"], "share": [0.5, 1.25, None], "rows": [0, 7, 12]}
    )
    expected = [
        Check("share", "the share is at most one", "critical", min_value=0, max_value=1),
        Check("rows", "there are enough rows", "warning", min_value=5),
        Check("rows", "there are not too many rows", "warning", max_value=100),
        Check("share", "nothing is negative", "info", min_value=0),
    ]
    profiles = [
        Profile("days", frame, ["day", "type"], expected),
        Profile("nothing", frame[:0], ["day"], expected, may_be_empty=empty),
    ]
    report = judge_profiles(profiles)
    assert judge_quickly(profiles) == report
    assert len(report.failures) == (2 if empty else 3)


def test_a_missing_column_is_a_failure_and_an_empty_frame_too():
    frame = pd.DataFrame({"key": ["x"], "value": [1.0]})
    expected = [
        Check("value", "the value is small", "warning", max_value=3),
        Check("gone", "something is there", "critical", max_value=3),
    ]
    report = judge_profiles([Profile("things", frame, ["key"], expected)])
    assert not report.success
    (failure,) = report.failures
    assert failure.expectation == "something is there"
    assert 'column "gone"' in failure.observed
    assert report.data_docs is None
    assert judge_profiles([Profile("things", frame, ["key"], expected[:1])]).success
    assert not judge_profiles([Profile("things", frame[:0], ["key"], expected[:1])]).success
    assert judge_profiles([Profile("things", frame[:0], ["key"], expected[:1], may_be_empty=True)]).success


def test_a_warning_is_no_failure_of_the_whole():
    frame = pd.DataFrame({"key": ["x", "y"], "value": [1.0, 5.0]})
    report = judge_profiles([Profile("things", frame, ["key"], [Check("value", "small", "warning", max_value=3)])])
    assert report.success
    assert [(failure.where, failure.observed) for failure in report.failures] == [(["y"], [5.0])]


@pytest.mark.parametrize("done", [False, True])
def test_pages_whose_writer_is_killed_are_the_old_ones_or_the_new(tmp_path: Path, done: bool) -> None:
    target, report, exchange = tmp_path / "quality", QualityReport(True, 1, [], None), files.exchange
    write_data_docs(target, report, {"old": "<p>old</p>"})

    def die(a: Path, b: Path) -> None:
        if done:
            exchange(a, b)
        os._exit(9)

    if not (child := os.fork()):
        files.exchange = die
        write_data_docs(target, report, {"new": "<p>new</p>"})
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert {page.name for page in target.iterdir()} == {"index.html", "new.html" if done else "old.html"}
    write_data_docs(target, report, {"next": "<p>next</p>"})
    assert [path.name for path in tmp_path.iterdir()] == ["quality"]
