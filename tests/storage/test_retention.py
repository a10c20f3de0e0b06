"""How long records are kept: the setting, labelled decisions, and hosts whose clocks are wrong."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import storage
from reasoning.config import Retention, load_config
from reasoning.errors import ConfigError
from reasoning.ids import uuid7
from reasoning.records import Decision
from storage.errors import DataFolderError
from storage.log.clocks import ClockLimits, counting_day
from storage.log.compact import compact_decisions
from storage.log.expire import expire_decisions
from storage.log.land import land_decisions
from storage.log.reland import reland_quarantine
from storage.log.table import live_files
from tests.storage.logs import NOON, landed_ids, make_days, make_decision, make_feedback, write_segment


@pytest.fixture(autouse=True)
def real_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REASONING_MAX_DAYS_BEHIND")


def land(data: Path, records: list[Any], now: datetime = NOON) -> None:
    write_segment(data, records)
    assert land_decisions(data, now=now).quarantined == {}


def in_quarantine(data: Path) -> str:
    return "".join(path.read_text() for path in (data / "quarantine").iterdir())


class TestClocks:
    def test_what_a_slow_host_wrote_is_not_deleted_on_the_night_it_arrives(self, tmp_path: Path) -> None:
        """Before: 40 rows of a second ago were deleted."""
        late = make_decision(NOON - timedelta(days=350))
        land(tmp_path, [late, make_feedback(late.ts, decision_id=late.decision_id)])
        for days, left in ((0, 1), (29, 1), (30, 1), (31, 0)):
            expire_decisions(tmp_path, retention_days=30, now=NOON + timedelta(days=days))
            assert len(landed_ids(tmp_path)) == left
            assert storage.sql(tmp_path, "SELECT count(*) FROM feedback_log").rows == [(left,)]

    @pytest.mark.parametrize("days", [-400, -20_000, 3, 27_000])
    def test_what_is_too_far_off_is_kept_aside_and_told(self, tmp_path: Path, days: int) -> None:
        decision = make_decision(NOON + timedelta(days=days))
        feedback = make_feedback(NOON + timedelta(days=days), episode_id="e")
        write_segment(tmp_path, [decision, feedback, make_decision()])
        assert land_decisions(tmp_path, now=NOON).quarantined == {"clock": 2}
        assert len(landed_ids(tmp_path)) == 1
        said = in_quarantine(tmp_path)
        assert str(decision.decision_id) in said and str(feedback.feedback_id) in said
        direction = "ahead of" if days > 0 else "behind"
        assert f"days {direction} the clock of landing (2026-11-20T12:00:00Z)" in said and "reasoning reland" in said
        # A night later it is still there; a retention later it goes, as everything does.
        expire_decisions(tmp_path, retention_days=30, now=datetime.now(UTC) + timedelta(days=1))
        assert str(decision.decision_id) in in_quarantine(tmp_path)
        expire_decisions(tmp_path, retention_days=30, now=datetime.now(UTC) + timedelta(days=32))
        assert in_quarantine(tmp_path) == ""

    def test_it_lands_once_its_time_has_come_or_the_limit_is_wider(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        early, late = make_decision(NOON + timedelta(days=10)), make_decision(NOON - timedelta(days=400))
        write_segment(tmp_path, [early, late])
        land_decisions(tmp_path, now=NOON)
        report = reland_quarantine(tmp_path, now=NOON + timedelta(days=1))
        assert report.kept == {"clock": 2} and "ahead of" in report.examples["clock"] + in_quarantine(tmp_path)
        assert reland_quarantine(tmp_path, now=NOON + timedelta(days=8)).relanded == 1
        assert landed_ids(tmp_path) == [early.decision_id]
        (tmp_path / "wide.toml").write_text("[storage]\nmax_days_behind = 1000\n")
        monkeypatch.setenv("REASONING_CONFIG", str(tmp_path / "wide.toml"))
        assert reland_quarantine(tmp_path, now=NOON + timedelta(days=8)).relanded == 1
        assert set(landed_ids(tmp_path)) == {early.decision_id, late.decision_id}
        assert reland_quarantine(tmp_path, now=NOON + timedelta(days=8)).files == 0

    def test_feedback_of_today_on_an_old_decision_lands_and_on_one_of_the_future_does_not(self, tmp_path: Path) -> None:
        old, future = (uuid7(NOON + timedelta(days=days)) for days in (-500, 500))
        write_segment(tmp_path, [make_feedback(decision_id=old), make_feedback(decision_id=future)])
        report = land_decisions(tmp_path, now=NOON)
        assert (report.feedback, report.quarantined) == (1, {"clock": 1})

    def test_a_row_of_2100_that_is_in_the_log_by_now_does_not_stay_for_ever(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It landed before there was a limit."""
        monkeypatch.setenv("REASONING_MAX_DAYS_AHEAD", "100000")
        land(tmp_path, [make_decision(datetime(2100, 1, 1, tzinfo=UTC))])
        monkeypatch.delenv("REASONING_MAX_DAYS_AHEAD")
        expire_decisions(tmp_path, retention_days=30, now=NOON + timedelta(days=29))
        assert len(landed_ids(tmp_path)) == 1
        expire_decisions(tmp_path, retention_days=30, now=NOON + timedelta(days=31))
        assert landed_ids(tmp_path) == []

    def test_compaction_keeps_when_rows_landed(self, tmp_path: Path) -> None:
        for days in (0, 5):
            land(tmp_path, [make_decision(NOON - timedelta(hours=days))], NOON + timedelta(days=days))
        compact_decisions(tmp_path)
        for path in tmp_path.rglob("*.parquet"):
            os.utime(path)  # as a copy would
        expire_decisions(tmp_path, retention_days=10, now=NOON + timedelta(days=15))
        assert len(landed_ids(tmp_path)) == 2
        expire_decisions(tmp_path, retention_days=10, now=NOON + timedelta(days=16))
        assert landed_ids(tmp_path) == []

    def test_what_lands_late_does_not_keep_what_landed_in_time(self, tmp_path: Path) -> None:
        land(tmp_path, make_days(1, 3))
        late = make_decision()
        land(tmp_path, [late], NOON + timedelta(days=20))
        expire_decisions(tmp_path, retention_days=10, now=NOON + timedelta(days=21))
        assert landed_ids(tmp_path) == [late.decision_id]

    @given(st.dates(), st.dates(), st.datetimes(min_value=datetime(1, 1, 10), max_value=datetime(9999, 12, 20)))
    def test_age_never_counts_from_before_either_clock_nor_from_the_future(
        self, day: Any, landed: Any, at: Any
    ) -> None:
        now = at.replace(tzinfo=UTC)
        limits = ClockLimits(now, now - timedelta(days=5), now + timedelta(days=2))
        counted = counting_day(day, landed, limits)
        assert counted <= limits.latest.date()
        assert all(counted >= each for each in (day, landed) if each <= limits.latest.date())


class TestSetting:
    def write(self, folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "reasoning.toml").write_text(text)
        monkeypatch.setenv("REASONING_CONFIG", str(folder / "reasoning.toml"))

    def test_without_one_everything_is_kept(self, tmp_path: Path) -> None:
        land(tmp_path, make_days(1, 3))
        for dry_run in (True, False):
            report = expire_decisions(tmp_path, now=NOON + timedelta(days=10_000), dry_run=dry_run)
            assert not report.configured and report.partitions == 0
        assert len(landed_ids(tmp_path)) == 3

    def test_tables_have_ages_of_their_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = tmp_path / "data"
        text = "[retention]\ndecisions = 10\nlabelled_decisions = 'keep'\nfeedback = 20\nquarantine = 5\n"
        self.write(tmp_path, text.replace("'", '"'), monkeypatch)
        assert load_config().retention == Retention(10, None, 20, 5)
        labelled, other = make_days(1, 2)
        write_segment(data, [labelled, other, make_feedback(decision_id=labelled.decision_id)])
        (data / "spool" / f"{uuid7(NOON)}-1.seal").write_bytes(b"bad\n")
        land_decisions(data, now=NOON)
        (bad,) = (data / "quarantine").iterdir()
        os.utime(bad, (NOON.timestamp(), NOON.timestamp()))
        seen = []
        for days in (4, 6, 11, 21, 22):
            expire_decisions(data, now=NOON + timedelta(days=days))
            count = storage.sql(data, "SELECT count(*) FROM feedback_log").rows[0][0]
            seen.append((len(landed_ids(data)), count, bad.exists()))
        # Without its label the decision is one like others.
        assert seen == [(2, 1, True), (2, 1, False), (1, 1, False), (1, 0, False), (0, 0, False)]

    def test_labelled_decisions_are_kept_longer_with_their_feedback(self, tmp_path: Path) -> None:
        request = uuid7(NOON)
        shadow = make_decision(request_id=request, source="custom", served=False)
        by_request = make_decision(request_id=request)
        by_metric, by_episode, unlabelled, commented = (make_decision(episode_id=e) for e in (None, "e", "f", None))
        planning = make_decision(decision_type="planning")
        of: list[tuple[Decision, dict[str, Any]]] = [
            (shadow, {"metric": "demonstration", "kind": "demonstration", "value": '{"action": "STOP"}'}),
            (by_metric, {}),
            (commented, {"metric": "note", "kind": "comment", "value": "well"}),
        ]
        feedback = [make_feedback(decision_id=decision.decision_id, **values) for decision, values in of]
        decisions = [shadow, by_request, by_metric, by_episode, unlabelled, commented, planning]
        land(tmp_path, [*decisions, *feedback, make_feedback(episode_id="e")])
        kept = {d.decision_id for d in (shadow, by_request, by_metric, by_episode)}
        retention = Retention(decisions=10, labelled_decisions=100)

        def expire(days: int, *, dry_run: bool = False) -> tuple[dict[str, int], int]:
            now = NOON + timedelta(days=days)
            report = expire_decisions(tmp_path, retention=retention, now=now, dry_run=dry_run)
            return report.rows, report.labelled_kept

        assert expire(10) == ({"decisions": 0, "feedback": 0}, 0)
        assert expire(11, dry_run=True) == ({"decisions": 3, "feedback": 1}, 4)
        assert len(landed_ids(tmp_path)) == 7
        assert expire(11) == ({"decisions": 3, "feedback": 1}, 4)
        assert set(landed_ids(tmp_path)) == kept
        files = [path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")]
        assert expire(12) == ({"decisions": 0, "feedback": 0}, 4)
        assert [path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")] == files  # not written anew each night
        assert expire(100)[0] == {"decisions": 0, "feedback": 0}
        assert expire(101) == ({"decisions": 4, "feedback": 3}, 0)
        assert landed_ids(tmp_path) == [] == live_files(tmp_path / "feedback/date=2026-11-20")

    def test_feedback_on_what_has_expired_is_kept_for_its_own_age(self, tmp_path: Path) -> None:
        (decision,) = make_days(1, 1)
        land(tmp_path, [decision])
        expire_decisions(tmp_path, retention_days=10, now=NOON + timedelta(days=11))
        now = NOON + timedelta(days=12)
        land(tmp_path, [make_feedback(now, decision_id=decision.decision_id)], now)
        for days, left in ((12, 1), (22, 1), (23, 0)):
            expire_decisions(tmp_path, retention_days=10, now=NOON + timedelta(days=days))
            assert storage.sql(tmp_path, "SELECT count(*) FROM feedback_log").rows == [(left,)]

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("decisions = 0", "is not a whole number within"),
            ("decisions = 1.5", "is not a whole number within"),
            ("decisions = true", "is not a whole number within"),
            ('decisions = "30 days"', 'neither a number of days nor "keep"'),
            ("decision = 30", "did you mean decisions?"),
            ("labelled_decisions = 30", "but `decisions` are kept for ever"),
            ("decisions = 30\nlabelled_decisions = 10", "is less than decisions"),
        ],
    )
    def test_a_wrong_one_is_refused_and_nothing_deleted(
        self, tmp_path: Path, text: str, error: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = tmp_path / "data"
        land(data, make_days(1, 3))
        self.write(tmp_path, f"[retention]\n{text}\n", monkeypatch)
        with pytest.raises(ConfigError) as caught:
            load_config()
        assert error in str(caught.value)
        with pytest.raises(DataFolderError):
            expire_decisions(data, now=NOON + timedelta(days=1000))
        assert len(landed_ids(data)) == 3

    @pytest.mark.parametrize(
        ("text", "retention"),
        [
            ("", Retention()),
            ("decisions = 30", Retention(30, 30)),
            ('decisions = 30\nlabelled_decisions = "keep"', Retention(30, None)),
            ('decisions = "keep"\nfeedback = 7', Retention(None, None, 7)),
        ],
    )
    def test_what_it_means(
        self, tmp_path: Path, text: str, retention: Retention, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.write(tmp_path, f"[retention]\n{text}\n", monkeypatch)
        assert load_config().retention == retention
        assert load_config().retention.configured == bool(text)
