from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest

import quality.dataset.funnel
import quality.dataset.selection
import quality.dataset.workers
import storage
from quality.dataset.export import export_dataset
from quality.dataset.label_policy import LabelPolicy
from quality.dataset.manifest import read_manifest, read_rows
from quality.dataset.preparation import Rules, prepare_row
from quality.dataset.selection import Choice, Window, select_rows
from quality.errors import DatasetRejected, InsufficientData, QualityError
from quality.settings import ExportSettings
from reasoning.decision_types import get_decision_type
from reasoning.errors import UnknownDecisionType
from reasoning.redaction.redact import Finding
from storage.erasure.erase import erase_subject
from storage.errors import DatasetError
from storage.log.compact import compact_decisions
from storage.training_rows import find_row_fault
from tests.quality.conftest import NOW
from tests.quality.log import START, Turn, conversations, land, records, sentence

SPLITS = ("train", "validation", "holdout")
KEY = "sk-" + "proj-" + "a1B2c3D4e5" * 4


def _export(data, *, config=None, progress=None, **settings):
    return export_dataset(data, "should_respond", ExportSettings(**settings), now=NOW, config=config, progress=progress)


def _lines(manifest, split):
    return [orjson.loads(line) for line in (manifest.path / f"{split}.jsonl").read_bytes().splitlines()]


@pytest.fixture(scope="module")
def exported(landed, tmp_path_factory):
    data = shutil.copytree(landed, tmp_path_factory.mktemp("exported") / "data")
    return _export(data)


def test_every_row_is_accounted_for_and_every_line_is_fit(exported):
    assert exported.selected == 600 == exported.rows + sum(exported.dropped.values())
    assert sum(exported.label_sources.values()) == exported.rows
    kind = get_decision_type("should_respond")
    side = pq.read_table(exported.path / "rows.parquet").to_pylist()
    at = 0
    for split in SPLITS:
        rows = _lines(exported, split)
        assert len(rows) == exported.splits[split].rows > 0
        for number, row in enumerate(rows):
            assert find_row_fault(row) is None
            assert kind.parse(row["messages"][-1]["content"])["action"] in ("RESPOND", "IGNORE")
            assert (side[at]["split"], side[at]["line"]) == (split, number)
            at += 1
    assert at == len(side)


def test_the_providers_own_checker_takes_every_file(exported):
    from together.lib.utils.files import check_file

    for split in SPLITS:
        report = check_file(exported.path / f"{split}.jsonl")
        assert report["is_check_passed"], report


def test_prompts_are_the_logged_messages(exported):
    with storage.connect(exported.path.parents[2]) as con:
        logged = {str(i): m for i, m in con.execute("SELECT decision_id, messages FROM decisions").fetchall()}
    for row in read_rows(exported.path, "holdout"):
        assert row.messages == logged[row.decision_id]
        assert row.original is not None
        assert row.original_latency_ms == 2.0


def test_splits_are_apart(exported):
    times, episodes = {}, {}
    for split in SPLITS:
        rows = read_rows(exported.path, split)
        times[split] = [row.ts for row in rows]
        episodes[split] = {row.episode for row in rows}
    assert max(times["train"]) < min(times["validation"]) <= max(times["validation"]) < min(times["holdout"])
    assert not episodes["train"] & episodes["validation"]
    assert not (episodes["train"] | episodes["validation"]) & episodes["holdout"]


def test_the_same_log_gives_the_same_bytes_whatever_way_it_was_landed(tmp_path, landed):
    records_ = [record for turn in conversations(60) for record in records(turn)]
    found = set()
    for number, parts in enumerate((1, 4)):
        shuffled = records_[:]
        random.Random(number).shuffle(shuffled)
        size = -(-len(shuffled) // parts)
        data = tmp_path / str(number)
        land(data, [shuffled[i : i + size] for i in range(0, len(shuffled), size)])
        if parts > 1:
            assert compact_decisions(data).partitions
        manifest = _export(data)
        names = ["manifest.json", "rows.parquet", *(f"{split}.jsonl" for split in SPLITS)]
        found.add((manifest.dataset_id, *((manifest.path / name).read_bytes() for name in names)))
        assert _export(data).dataset_id == manifest.dataset_id
        assert len(list((data / "datasets" / "should_respond").iterdir())) == 1
    assert len(found) == 1


def _special(index: int, text: str, *, episode: str | None = None, right: str | None = "RESPOND", **options) -> Turn:
    return Turn(
        ts=START + timedelta(days=2, seconds=index),
        episode=episode or f"special-{index}",
        context={"agent_name": "Ada", "messages": [{"speaker": "bob", "text": text}]},
        original=options.pop("original", {"action": "IGNORE"}),
        right=None if right is None else {"action": right},
        **options,
    )


def test_every_dropped_row_has_its_reason(data):
    rng = random.Random(9)
    long_text = sentence(rng, 60)
    same = sentence(rng, 8)
    turns = [
        _special(0, same),
        _special(1, same),
        _special(2, same, right="IGNORE"),  # the latest of the three: the others contradict it
        _special(3, long_text),
        _special(4, long_text + " indeed"),
        _special(5, "word " * 6000),
        _special(
            6, "nobody knows what was right", right=None, original=None, custom={"action": "RESPOND"}, served="custom"
        ),
        _special(7, "only the original has answered", right=None),
        _special(8, "this one has tools", extra={"tools": [{"type": "function"}]}),
        _special(9, " "),
        _special(13, "[document: application/pdf, 9 bytes]", extra={"tags": {"untranslated": "document"}}),
    ]
    broken = records(_special(10, "the demonstration is none of the labels"))
    broken[-1].value = '{"action": "DANCE"}'
    late = _special(11, "said tomorrow")
    late.ts = NOW + timedelta(hours=1)
    nothing = _special(12, "neither side has an answer", right=None)
    unanswered = records(nothing)
    unanswered[0].valid, unanswered[0].decision, unanswered[0].completion = False, None, "?"
    land(data, [[*broken, *unanswered, *(record for turn in (*turns, late) for record in records(turn))]])
    manifest = _export(data)
    assert manifest.dropped == {
        "after_now": 1,
        "no_label": 1,
        "self_label": 1,
        "weaker_label": 2,
        "tools": 1,
        "untranslated": 1,
        "too_long": 1,
        "contradictory": 2,
        "near_duplicate": 1,
    }
    assert manifest.faults == {}  # the wrong demonstration did not land, so its decision has the weaker label
    assert manifest.selected == 614 == manifest.rows + sum(manifest.dropped.values())


def test_what_is_like_a_later_split_is_not_taught(data):
    """The near-duplicate step misses renamed people, halves and typos, and keeps what has another answer."""
    rng = random.Random(3)

    def turn(name: str, days: int, index: int, lines: list[tuple[str, str]], right: str = "RESPOND") -> Turn:
        return Turn(
            ts=START + timedelta(days=days, hours=1, seconds=index),
            episode=f"{name}-{days}-{index}",
            context={"agent_name": "Ada", "messages": [{"speaker": who, "text": text} for who, text in lines]},
            original={"action": "IGNORE"},
            right={"action": right},
        )

    turns, planted = [], 0
    for index in range(18):
        talk = [("bob" if line % 2 else "carol", sentence(rng) + (" bob" if line % 3 else "")) for line in range(6)]
        renamed = [(f"{who}{index}", text.replace("bob", f"bob{index}")) for who, text in talk]
        typos = [(who, re.sub(r"(\w{3})(\w)(\w)\b", r"\1\3\2", text, count=1)) for who, text in talk]
        copies = {
            "renamed": renamed,
            "half": talk[:3],
            "typos": typos,
            "contradicting": [*talk[:-1], ("bob", talk[-1][1] + " indeed")],
        }
        # The original is in the holdout, what is like it in the training rows.
        turns.append(turn("original", 14, index, talk))
        for number, (name, copy) in enumerate(copies.items()):
            turns.append(turn(name, 3, 100 * number + index, copy, "IGNORE" if name == "contradicting" else "RESPOND"))
            planted += 1
    land(data, [[record for each in turns for record in records(each)]])
    manifest = _export(data)
    episodes = {split: {row.episode.split("-")[0] for row in read_rows(manifest.path, split)} for split in SPLITS}
    assert manifest.dropped["leak"] + manifest.dropped.get("near_duplicate", 0) == planted == 72
    assert episodes["train"] == {"episode"} and "original" in episodes["holdout"]
    assert sum(row.episode.startswith("original") for row in read_rows(manifest.path, "holdout")) == 18
    assert (manifest.leaks.near_duplicates, manifest.leaks.contained) == (0, 0)


def test_other_processes_give_the_same_bytes(data, monkeypatch):
    land(data, [records(_special(0, f"this is {KEY}, and word " * 30))])
    here = _export(data)
    shutil.rmtree(here.path)
    monkeypatch.setattr(quality.dataset.funnel, "WORKERS_FROM", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    started = []
    start = quality.dataset.workers._start
    monkeypatch.setattr(quality.dataset.workers, "_start", lambda: started.append(start()) or started[-1])
    there = _export(data)
    assert len(started) == 2 and all(process.returncode is not None for process in started)
    assert (there.dataset_id, there.redactions) == (here.dataset_id, here.redactions)


def test_a_sample_of_the_episodes_finds_the_same_template(data, monkeypatch):
    all_of_them = _export(data)
    shutil.rmtree(all_of_them.path)
    monkeypatch.setattr(quality.dataset.funnel, "_SAMPLE_EPISODES", 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert _export(data).dataset_id == all_of_them.dataset_id


def test_a_process_that_dies_ends_the_export(data, monkeypatch):
    monkeypatch.setattr(quality.dataset.funnel, "WORKERS_FROM", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(quality.dataset.workers, "_MAIN", "raise SystemExit(3)")
    with pytest.raises(QualityError, match="a process of the export died"):
        _export(data)
    assert list((data / "datasets" / "should_respond").iterdir()) == []


def test_only_the_texts_that_are_looked_at_are_copied(data):
    copied = []

    def look(event):
        if (event.what, event.done) == ("prepare", 0):
            (work,) = (data / "datasets" / "should_respond").glob(".export-*")
            copied.extend(sum(pq.read_metadata(part).num_rows for part in work.glob("raw-*")) for _ in range(1))

    assert _export(data, limit=60, progress=look).rows == 60
    assert copied == [240]


ALL = Window(None, None, NOW, None)


def _select(data, work, limit, window=ALL):
    work.mkdir()
    wanted = Choice(policy=LabelPolicy(), label_sources=None, enough=1, limit=limit)
    con, sources = select_rows(data, work, "should_respond", window, wanted)
    with con:
        selected = con.execute("FROM selected ORDER BY n").fetchall()
        return sources, selected, dict(con.execute("FROM unselected").fetchall())


def test_what_is_not_looked_at_is_counted_and_not_copied(data, tmp_path):
    _, selected, counts = _select(data, tmp_path / "a", 5, Window(None, None, NOW, START + timedelta(days=1)))
    assert [row[0] for row in selected] == [*range(580, 600)]
    assert counts.keys() == {"over_limit", "expired"}
    assert sum(counts.values()) == 580


def test_the_days_that_are_read_together_make_no_difference(data, tmp_path, monkeypatch):
    """Also where the rows that are looked at reach over several stretches of days."""
    turns = [_special(index, f"is anyone there, number {index}?", right=None) for index in range(3)]
    land(data, [[record for turn in turns for record in records(turn)]])
    made = []
    for rows in (1_000_000, 150):
        monkeypatch.setattr(quality.dataset.selection, "_STRETCH_ROWS", rows)
        made.append([_select(data, tmp_path / f"{rows}-{limit}", limit) for limit in (60, 600)])
    assert made[0] == made[1]
    (_, few, counts), (_, many, _) = made[0]
    assert (len(few), len(many), counts) == (240, 600, {"over_limit": 360, "weaker_label": 3})
    assert few == many[-240:]


def test_duplicates_keep_the_demonstrated_answer(data):
    turns = [_special(0, "do you copy?"), _special(1, "do you copy?"), _special(2, "do you copy?", right=None)]
    land(data, [[record for turn in turns for record in records(turn)]])
    manifest = _export(data, label_sources=["demonstration", "original"])
    # The third is the latest, but labelled only by the original, which says otherwise.
    assert manifest.dropped == {"duplicate": 1, "contradictory": 1}


def test_what_cannot_be_redacted_is_dropped_with_its_reason(data, monkeypatch):
    import reasoning.redaction.prompts

    # Rules that always find something, as one would that is at odds with its own placeholder.
    def never_done(text, region):
        return (Finding(0, 4, "phone"),) if "never clean" in text else ()

    monkeypatch.setattr(reasoning.redaction.prompts, "find_private", never_done)
    land(data, [records(_special(0, "this is never clean"))])
    manifest = _export(data)
    assert manifest.dropped == {"unredactable": 1}
    assert manifest.faults == {"redaction finds something again in what it has cleaned": 1}


def test_a_number_in_a_call_is_replaced_and_its_row_is_kept(data):
    land(data, [records(_special(0, 'the tool said {"card": 4111111111111111, "n": 1}'))])
    manifest = _export(data)
    assert manifest.dropped == {} and manifest.redactions == {"card": 1}
    written = b"".join(path.read_bytes() for path in manifest.path.glob("*.jsonl"))
    assert b'{\\"card\\": \\"[CARD_1]\\", \\"n\\": 1}' in written and b"4111111111111111" not in written


def test_personal_data_and_secrets_do_not_reach_any_file(data):
    text = f"I am eve@example.org, +44 20 7946 0958, my key is {KEY}"
    turn = _special(0, text)
    turn.right = {"action": "RESPOND", "reasoning": "eve@example.org asked"}
    turn.original = {"action": "IGNORE", "reasoning": f"{KEY} is secret"}
    land(data, [records(turn)])
    manifest = _export(data)
    assert manifest.redactions == {"email": 2, "phone": 1, "secret": 1}
    for path in manifest.path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"eve@" not in content
            assert b"7946" not in content
            assert KEY.encode() not in content
    (row,) = (row for split in SPLITS for row in _lines(manifest, split) if "[EMAIL_1]" in str(row))
    assert "I am [EMAIL_1], [PHONE_1], my key is [SECRET_1]" in row["messages"][1]["content"]
    # The label and the original's answer have the placeholders of the prompt.
    assert "<reasoning>[EMAIL_1] asked</reasoning>" in row["messages"][-1]["content"]
    rows = [row for split in SPLITS for row in read_rows(manifest.path, split)]
    assert {"action": "IGNORE", "reasoning": "[SECRET_1] is secret"} in [row.original for row in rows]


@pytest.mark.parametrize(("asked", "dropped"), [("ping 203.0.113.9", None), ("ping it", "unredactable")])
def test_a_label_that_acts_on_what_its_prompt_does_not_have_is_dropped(asked, dropped):
    """A model could only answer with a placeholder that stands for nothing."""
    kind = get_decision_type("coding")
    faults: Counter[str] = Counter()
    label = orjson.dumps({"code": "ping('203.0.113.9')", "explanation": "", "language": "python"}).decode()
    messages = kind.render({"prompt": asked})
    row = prepare_row(Rules(kind, 10_000, "US"), messages, label, None, Counter(), faults)
    assert row.get("dropped") == dropped
    assert [fault for fault in faults if "stands for no value" in fault] == list(faults)
    assert bool(faults) == bool(dropped)


def test_since_and_until_are_inclusive_days(data):
    manifest = _export(data, since=date(2026, 3, 2), until=date(2026, 3, 8))
    times = [row.ts for split in SPLITS for row in read_rows(manifest.path, split)]
    expected = [turn.ts for turn in conversations(120) if date(2026, 3, 2) <= turn.ts.date() <= date(2026, 3, 8)]
    assert Counter(times) == Counter(expected)
    assert max(times).date() == date(2026, 3, 8)
    # A point in time is inclusive too.
    at = expected[-1]
    assert _export(data, since=date(2026, 3, 2), until=at).selected == len(expected)
    assert _export(data, since=date(2026, 3, 2), until=at - timedelta(microseconds=1)).selected == len(expected) - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"since": date(2026, 3, 5), "until": date(2026, 3, 4)}, "after until"),
        ({"since": datetime(2026, 3, 5)}, "no time zone"),
        ({"limit": 0}, "at least 1 row"),
        ({"max_class_share": 1.0}, "between 0 and 1"),
    ],
)
def test_arguments_that_make_no_sense(data, options, message):
    with pytest.raises(ValueError, match=message):
        _export(data, **options)


def test_unknown_type(data):
    with pytest.raises(UnknownDecisionType, match="should-respond"):
        export_dataset(data, "should-respond", now=NOW)


def test_the_limit_keeps_the_latest_and_says_so(data):
    manifest = _export(data, limit=100)
    assert manifest.rows == 100
    assert manifest.dropped == {"over_limit": 500}
    times = sorted(turn.ts for turn in conversations(120))
    assert [row.ts for split in SPLITS for row in read_rows(manifest.path, split)] == times[-100:]


def test_expired_rows_are_not_learned_from(data):
    manifest = _export(data, retention_days=10)
    kept = [turn for turn in conversations(120) if turn.ts >= NOW - timedelta(days=10)]
    assert manifest.dropped["expired"] == 600 - len(kept)
    assert manifest.rows == len(kept)


def test_balance_thins_training_rows_only(data):
    plain, balanced = _export(data), _export(data, max_class_share=0.5)
    train = balanced.splits["train"].answers
    assert train["IGNORE"] == train["RESPOND"] == plain.splits["train"].answers["RESPOND"]
    for split in ("validation", "holdout"):
        assert balanced.splits[split] == plain.splits[split]
    assert balanced.dropped == {"over_represented": plain.splits["train"].rows - balanced.splits["train"].rows}
    assert _export(data, max_class_share=0.5, seed=1).splits["train"].sha256 != balanced.splits["train"].sha256


def test_too_little_is_refused_with_what_is_missing(tmp_path):
    data = tmp_path / "data"
    land(data, [[record for turn in conversations(6) for record in records(turn)]])
    with pytest.raises(InsufficientData, match="at least 21 more") as caught:
        _export(data)
    assert caught.value.verdict.level == "Insufficient"
    assert (caught.value.verdict.rows, caught.value.funnel) == (29, {"boundary_episode": 1})
    assert list((data / "datasets" / "should_respond").iterdir()) == []


def test_one_answer_teaches_nothing(tmp_path):
    data = tmp_path / "data"
    turns = conversations(30)
    for turn in turns:
        turn.right = {"action": "IGNORE"}
    land(data, [[record for turn in turns for record in records(turn)]])
    with pytest.raises(InsufficientData, match="nothing to learn"):
        _export(data)


def test_one_endless_episode_cannot_be_tested(tmp_path):
    data = tmp_path / "data"
    turns = conversations(30)
    for turn in turns:
        turn.episode = "for ever"
    land(data, [[record for turn in turns for record in records(turn)]])
    with pytest.raises(InsufficientData):
        _export(data)
    with pytest.raises(InsufficientData, match="the log has none of that type and time"):
        _export(data, since=date(2031, 1, 1))


def test_the_originals_answers_teach_until_there_are_enough_demonstrations(tmp_path):
    data = tmp_path / "data"
    turns = conversations(60)
    for turn in turns[100:]:
        turn.right = None
    land(data, [[record for turn in turns for record in records(turn)]])
    manifest = _export(data)
    assert manifest.label_sources == {"demonstration": 100, "original": 200}


def _with_eve(data):
    turns = conversations(6, seed=5)
    for turn in turns:
        turn.extra = {"subject_ids": ["eve"]}
    land(data, [[record for turn in turns for record in records(turn)]])


def test_rows_erased_meanwhile_are_not_published(data):
    _with_eve(data)

    def erase(event):
        if event.what == "judge":
            erase_subject(data, "eve")

    with pytest.raises(DatasetError, match="30 of the rows were erased"):
        _export(data, progress=erase)
    assert list((data / "datasets" / "should_respond").iterdir()) == []


def test_a_dataset_that_rows_were_erased_from_can_still_be_read(data):
    _with_eve(data)
    manifest = _export(data)
    erase_subject(data, "eve")
    amended = read_manifest(manifest.path)
    assert amended.dataset_id == manifest.dataset_id
    assert amended.dropped["erased"] == 30
    assert (
        amended.rows == manifest.rows - 30 == len([row for split in SPLITS for row in read_rows(manifest.path, split)])
    )
    assert _export(data).dataset_id != manifest.dataset_id


@pytest.mark.usefixtures("great_expectations")
def test_the_gate_stops_what_is_wrong_with_the_files(data):
    def spoil(event):
        if event.what == "judge" and event.done == 0:
            (work,) = (data / "datasets" / "should_respond").glob(".export-*")
            with (work / "dataset" / "train.jsonl").open("ab") as file:
                file.write(b'{"messages": [], "metadata": {}}\n')

    with pytest.raises(DatasetRejected, match="every line keeps to the fine-tuning format") as caught:
        _export(data, progress=spoil)
    assert {failure.expectation for failure in caught.value.failures} == {
        "every line of a file has its row in rows.parquet",
        "every line keeps to the fine-tuning format",
    }
    assert list((data / "datasets" / "should_respond").iterdir()) == []


def test_a_killed_export_leaves_nothing_behind_for_long(data):
    script = f"""
        import os, signal
        from datetime import datetime
        from quality.dataset.export import export_dataset
        def die(event):
            if event.what == "compare splits":
                os.kill(os.getpid(), signal.SIGKILL)
        export_dataset({str(data)!r}, "should_respond", now=datetime.fromisoformat({NOW.isoformat()!r}), progress=die)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=os.environ, cwd=Path.cwd())
    assert done.returncode == -signal.SIGKILL
    home = data / "datasets" / "should_respond"
    assert len(list(home.iterdir())) == 1
    manifest = _export(data)
    assert list(home.iterdir()) == [manifest.path]


def test_a_workspace_in_use_is_left_alone(data):
    inner = []

    def nest(event):
        if event.what == "judge" and event.done == 0 and not inner:
            inner.append(None)
            inner[0] = _export(data)

    outer = _export(data, progress=nest)
    assert outer.dataset_id == inner[0].dataset_id
    assert list((data / "datasets" / "should_respond").iterdir()) == [outer.path]


def test_a_full_disk_leaves_nothing_behind(data):
    # A limit on the size of a file is met as a full disk is: a write fails.
    script = f"""
        import resource
        from datetime import datetime
        from quality.dataset.export import export_dataset
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        def shrink(event):
            if event.what == "compare splits":
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        now = datetime.fromisoformat({NOW.isoformat()!r})
        export_dataset({str(data)!r}, "should_respond", now=now, progress=shrink)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert list((data / "datasets" / "should_respond").iterdir()) == []


def test_the_manifest_tells_when_a_file_was_changed(exported, tmp_path):
    copy = shutil.copytree(exported.path, tmp_path / exported.dataset_id)
    assert read_manifest(copy) == exported
    assert read_manifest(copy).dataset_id == exported.dataset_id
    with (copy / "train.jsonl").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(DatasetError, match=r"train\.jsonl is not the file"):
        read_manifest(copy)
    (copy / "train.jsonl").unlink()
    with pytest.raises(DatasetError, match=r"train\.jsonl cannot be read"):
        read_rows(copy, "train")
    with pytest.raises(DatasetError, match="not a dataset"):
        read_manifest(tmp_path)
    with pytest.raises(DatasetError, match="no split"):
        read_rows(exported.path, "test")


def test_planning_is_exported_as_well(tmp_path):
    data = tmp_path / "data"
    rng = random.Random(2)
    actions = [{"name": f"do_{word}", "description": sentence(rng)} for word in ("walk", "talk", "sing", "rest")]
    turns = []
    for number in range(100):
        chosen = rng.sample([action["name"] for action in actions], 2)
        turns.append(
            Turn(
                ts=START + timedelta(hours=number),
                episode=f"task-{number}",
                context={
                    "agent_name": "Ada",
                    "actions": actions,
                    "messages": [{"speaker": "eve", "text": sentence(rng) + " then " + " and ".join(chosen)}],
                },
                original={"actions": chosen[:1]},
                right={"actions": chosen},
                decision_type="planning",
            )
        )
    land(data, [[record for turn in turns for record in records(turn)]])
    manifest = export_dataset(data, "planning", now=NOW)
    # The list of actions is most of every prompt, and does not make them near duplicates.
    assert manifest.dropped == {}
    assert manifest.rows == 100
    assert read_rows(manifest.path, "train")[0].label["actions"] == turns[0].right["actions"]
