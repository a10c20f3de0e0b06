"""A log's life at random, every verb in any order, beside a model of it in a few dictionaries."""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import orjson
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import storage
from reasoning.ids import uuid7, uuid7_time
from reasoning.io.spool import SegmentWriter
from reasoning.records import Decision, Feedback
from storage.erasure.erase import erase_subject
from storage.layout import Layout
from storage.log.compact import compact_decisions
from storage.log.expire import expire_decisions
from storage.log.land import land_decisions
from storage.log.quarantine import read_quarantine
from storage.log.reland import reland_quarantine
from tests.storage.logs import NOON, make_decision, make_feedback

PEOPLE = ["ann", "Ann", "an", "bob", 'o"%_b', "ä", "a\u0308", ""]
subjects = st.lists(st.sampled_from(PEOPLE), max_size=2)
episodes = st.sampled_from([None, "e1", "e2", "e3"])
moments = st.builds(
    lambda day, seconds: NOON + timedelta(days=day, seconds=seconds),
    st.integers(-3, 3),
    st.integers(-43_200, 43_199),
)
PHASES = [Phase.generate]  # a failure is told as it was found: to make it smaller takes minutes
anything = st.integers(0, 10**6)
Record = Decision | Feedback


def id_of(record: Record) -> UUID:
    return record.decision_id if isinstance(record, Decision) else record.feedback_id


def date_of(record: Record) -> date:
    """Of its partition."""
    if isinstance(record, Feedback) and record.decision_id is not None:
        return uuid7_time(record.decision_id).date()
    return record.ts.date()


class LogLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.data = Path(tempfile.mkdtemp())
        self.backup = Path(tempfile.mkdtemp())
        Layout(self.data).create()
        self.con = storage.connect(self.data)
        self.writers = [SegmentWriter(self.data / "spool", sync_interval=3600) for _ in range(2)]
        self.open: list[list[Record]] = [[], []]  # of the living writers' segments
        self.sealed: list[Record] = []
        self.spoilt: list[Record] = []  # in the spool, in damaged lines
        self.landed: dict[UUID, Record] = {}
        self.quarantined: list[Record] = []
        self.backups: dict[str, list[Record]] = {}
        self.asked: dict[str, Any] = {}
        self.known: list[UUID] = []  # decisions that feedback may be on

    def teardown(self) -> None:
        self.con.close()
        for writer in self.writers:
            writer.close()
        shutil.rmtree(self.data)
        shutil.rmtree(self.backup)

    # What agents do.

    def write(self, number: int, record: Record) -> None:
        assert self.writers[number].write(record)
        self.open[number].append(record)

    @rule(
        writer=st.integers(0, 1),
        ts=moments,
        decision_type=st.sampled_from(["should_respond", "planning"]),
        people=subjects,
        episode=episodes,
        source=st.sampled_from(["original", "custom"]),
        served=st.booleans(),
        valid=st.booleans(),
        again=st.booleans(),
        text=st.sampled_from(["", "x", "\0", "\ud83d", "🎉" * 50, "line\nline"]),
    )
    def decide(
        self, writer: int, ts: datetime, people: list[str], episode: str | None, again: bool, text: str, **values: Any
    ) -> None:
        if not (again and self.asked):  # else it is another arm's answer to the last question
            self.asked = {"request_id": uuid7(ts), "ts": ts, "decision_type": values["decision_type"]}
        values |= self.asked
        values["decision"] = {"action": "RESPOND"} if values["valid"] else None
        decision = make_decision(
            decision_id=uuid7(self.asked["ts"]),
            subject_ids=people,
            episode_id=episode,
            completion=text,
            model="m",
            **values,
        )
        self.known.append(decision.decision_id)
        self.write(writer, decision)

    @precondition(lambda self: self.known)
    @rule(
        writer=st.integers(0, 1),
        ts=moments,
        of=anything,
        episode=episodes,
        kind=st.sampled_from(["metric", "demonstration"]),
        value=st.sampled_from([1.0, 0.25, True, False, "word", '{"action":"IGNORE"}']),
        author=st.sampled_from([None, *PEOPLE]),
    )
    def say(self, writer: int, ts: datetime, of: int, episode: str | None, kind: str, **values: Any) -> None:
        target = {"episode_id": episode} if episode else {"decision_id": self.known[of % len(self.known)]}
        metric = "demonstration" if kind == "demonstration" else "rating"
        self.write(writer, make_feedback(ts, metric=metric, kind=kind, **target, **values))

    @rule(writer=st.integers(0, 1))
    def seal(self, writer: int) -> None:
        self.writers[writer].seal()
        self.sealed += self.open[writer]
        self.open[writer] = []

    @rule(writer=st.integers(0, 1), torn=st.binary(max_size=20).filter(lambda tail: b"\n" not in tail))
    def kill(self, writer: int, torn: bytes) -> None:
        """Leave an open segment that nobody holds, perhaps with a torn line."""
        before = set((self.data / "spool").iterdir())
        open_before = {path for path in before if path.suffix == ".open"}
        self.seal(writer)
        for path in set((self.data / "spool").iterdir()) - before:
            if path.with_suffix(".open") in open_before:
                with path.open("ab") as file:
                    file.write(torn)
                path.rename(path.with_suffix(".open"))

    # What befalls segments.

    @rule(segment=anything, line=anything, at=anything, bit=st.integers(0, 7))
    def spoil(self, segment: int, line: int, at: int, bit: int) -> None:
        """Flip a bit within a line of a sealed segment."""
        paths = sorted((self.data / "spool").glob("*.seal"))
        if not paths:
            return
        path = paths[segment % len(paths)]
        lines = path.read_bytes().splitlines(keepends=True)
        number = line % len(lines)
        record = self._record_of(lines[number])
        spoilt = bytearray(lines[number])
        at = 9 + at % max(len(spoilt) - 10, 1)
        if record is None or spoilt[at] ^ 1 << bit == ord("\n"):
            return
        spoilt[at] ^= 1 << bit
        path.write_bytes(b"".join([*lines[:number], bytes(spoilt), *lines[number + 1 :]]))
        self.sealed.remove(record)
        self.spoilt.append(record)

    def _record_of(self, line: bytes) -> Record | None:
        try:
            row = orjson.loads(line[9:])
        except orjson.JSONDecodeError:
            return None
        found = {str(id_of(record)): record for record in self.sealed}
        return found.get(row.get("decision_id") if row.get("record") == "decision" else row.get("feedback_id"))

    @rule(name=st.sampled_from(["again", "Copy (2)", "x.tar"]), keep=st.booleans())
    def copy(self, name: str, keep: bool) -> None:
        """A sealed segment under another name, now or kept for later."""
        for path in sorted((self.data / "spool").glob("*.seal"))[:1]:
            records = [self._record_of(line) for line in path.read_bytes().splitlines(keepends=True)]
            if None in records:
                return
            sound = [record for record in records if record is not None]
            target = (self.backup if keep else self.data / "spool") / f"{name}.seal"
            if target.exists() or any(record in self.spoilt for record in sound):
                return
            shutil.copy(path, target)
            if keep:
                self.backups[target.name] = sound
            else:
                self.sealed += sound

    @rule()
    def restore(self) -> None:
        for name, records in self.backups.items():
            (self.backup / name).rename(self.data / "spool" / name)
            self.sealed += records
        self.backups = {}

    # What people run.

    def landing(self) -> None:
        for record in self.sealed:
            self.landed.setdefault(id_of(record), record)
        self.quarantined += self.spoilt
        self.sealed, self.spoilt = [], []

    @rule()
    def land(self) -> None:
        waiting = {id_of(record) for record in self.sealed}
        fresh = waiting - self.landed.keys()
        count = len(self.sealed)
        report = land_decisions(self.data)
        self.landing()
        assert report.decisions + report.feedback == len(fresh)
        assert report.duplicates == count - len(fresh)

    @rule()
    def compact(self) -> None:
        if compact_decisions(self.data).partitions:
            self.landing()

    @rule(days=st.integers(1, 6))
    def expire(self, days: int) -> None:
        now = NOON + timedelta(days=3)
        expire_decisions(self.data, retention_days=days, now=now)
        self.landing()
        first = (now - timedelta(days=days)).date()
        self.landed = {key: record for key, record in self.landed.items() if date_of(record) >= first}

    @rule(person=st.sampled_from([person for person in PEOPLE if person]))
    def erase(self, person: str) -> None:
        erase_subject(self.data, person)
        self.landing()
        everywhere = [*self.landed.values(), *self.open[0], *self.open[1]]
        decisions = [record for record in everywhere if isinstance(record, Decision)]
        about = {d.decision_id for d in decisions if person in d.subject_ids}
        left = {d.episode_id for d in decisions if d.decision_id not in about}
        emptied = {d.episode_id for d in decisions if d.decision_id in about} - left - {None}

        def stays(record: Record) -> bool:
            if isinstance(record, Decision):
                return record.decision_id not in about
            if record.author == person or record.decision_id in about:
                return False
            return record.decision_id is not None or record.episode_id not in emptied

        self.landed = {key: record for key, record in self.landed.items() if stays(record)}
        self.open = [[record for record in records if stays(record)] for records in self.open]
        self.quarantined = []  # of whom a spoilt line is cannot always be told: see `erased_is_nowhere`
        shutil.rmtree(self.data / "quarantine")
        (self.data / "quarantine").mkdir()

    @rule()
    def reland(self) -> None:
        reland_quarantine(self.data)
        self.landing()

    # What has to be true.

    @invariant()
    def the_views_show_what_landed(self) -> None:
        storage.refresh(self.con, self.data)
        decisions = {
            row["decision_id"]: row
            for row in self.rows("SELECT decision_id, request_id, ts, date, subject_ids, completion FROM decisions")
        }
        wanted = {key: record for key, record in self.landed.items() if isinstance(record, Decision)}
        assert decisions.keys() == wanted.keys()
        for key, decision in wanted.items():
            row = decisions[key]
            assert (row["request_id"], row["subject_ids"]) == (decision.request_id, decision.subject_ids)
            assert (row["ts"], str(row["date"])) == (decision.ts, str(decision.ts.date()))
            text = decision.completion or ""
            assert row["completion"] == text.encode("utf-8", "backslashreplace").decode()
        found = self.rows("SELECT feedback_id FROM feedback_log")
        assert sorted(row["feedback_id"] for row in found) == sorted(self.landed.keys() - wanted.keys())

        self.check_labels()

    def check_labels(self) -> None:
        columns = "request_id, label_source, label, answers, feedback, episode_feedback"
        rows = self.rows(f"SELECT {columns} FROM labelled_decisions")
        wanted = labelled(list(self.landed.values()))
        assert {row["request_id"]: {k: v for k, v in row.items() if k != "request_id"} for row in rows} == wanted
        assert len(rows) == len(wanted)

    @invariant()
    def nothing_is_lost(self) -> None:
        names = [path.suffix for path in (self.data / "spool").iterdir()]
        assert set(names) <= {".open", ".seal"}
        kept = [raw for path in (self.data / "quarantine").iterdir() for _, raw in read_quarantine(path)]
        assert len(kept) >= len(self.quarantined)
        for writer in self.writers:
            assert not writer.dropped

    def rows(self, query: str) -> list[dict[str, Any]]:
        return duckdb_rows(self.con.execute(query))


def duckdb_rows(result: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def labelled(records: list[Record]) -> dict[UUID, dict[str, Any]]:
    """What `labelled_decisions` shows, by request: docs/concepts/architecture.md, "Labels"."""
    feedback = [record for record in records if isinstance(record, Feedback)]
    latest: dict[tuple[Any, ...], Feedback] = {}
    for one in sorted(feedback, key=lambda f: (f.ts, f.feedback_id)):
        if one.kind == "metric" or (isinstance(one.value, str) and one.value[0] == "{"):
            latest[one.decision_id, one.episode_id, one.metric] = one
    questions: dict[UUID, list[Decision]] = defaultdict(list)
    for record in records:
        if isinstance(record, Decision):
            questions[record.request_id].append(record)
    found = {}
    for request, answers in questions.items():
        ids = {answer.decision_id for answer in answers}
        said: dict[str, Feedback] = {}
        for one in sorted(latest.values(), key=lambda f: (f.ts, f.feedback_id)):
            if one.decision_id in ids:
                said[one.metric] = one
        demonstration = said.get("demonstration")
        label, label_source = None, None
        if demonstration is not None:
            label, label_source = demonstration.value, "demonstration"
        else:
            for source in ("original", "custom"):
                if label is None and any(a.valid and a.source == source for a in answers):
                    label, label_source = '{"action":"RESPOND"}', source
        episode = latest.get((None, best(answers).episode_id, "rating"))
        found[request] = {
            "label_source": label_source,
            "label": label,
            "answers": len(answers),
            "feedback": numbers(said.get("rating")),
            "episode_feedback": numbers(episode if best(answers).episode_id else None),
        }
    return found


def best(answers: list[Decision]) -> Decision:
    """The answer that stands for its question: the one that was served, else the best original's, else a model's."""
    served = [answer for answer in answers if answer.served]
    if served:
        return min(served, key=lambda a: ({"original": 1, "custom": 0}[a.source], a.decision_id))
    side = [a for a in answers if a.source == "original"] or answers
    return min(side, key=lambda a: (not a.valid, a.decision_id))


def numbers(feedback: Feedback | None) -> dict[str, float]:
    if feedback is None or isinstance(feedback.value, str):
        return {}
    return {feedback.metric: float(feedback.value)}


@pytest.mark.parametrize(
    ("examples", "steps"), [(4, 10), pytest.param(300, 40, marks=[pytest.mark.torture, pytest.mark.timeout(7200)])]
)
def test_a_logs_life(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        LogLife,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
        ),
    )
