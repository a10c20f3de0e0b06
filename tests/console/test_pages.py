"""The pages: what they show of a real data folder, what they escape, and who may change what."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pytest

import storage
from console import experiments, label
from console.app import PAGES, respond
from pipeline.errors import MissingStep
from pipeline.experiment import ExperimentReport
from quality.evaluation.evaluate import Label, SourceAnswer, evaluate
from quality.evaluation.live import LiveDecision
from reasoning.ids import uuid7
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import CycleRow, save_cycle, save_evaluation
from storage.ledger.rows import Model
from storage.log.land import land_decisions
from tests.pipeline.test_labels import START, Turn, labels_of, write, write_questions

OPERATOR = {"name": "default", "operator": True, "label": True}
LABELLER = {"name": "ann", "operator": False, "label": True}
READER = {"name": "rita", "operator": False, "label": False}
EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">'


@pytest.fixture(autouse=True)
def no_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label, "_sessions", {})


class Tags(HTMLParser):
    """The tags and the attributes of a page, as a browser sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.attributes |= {name for name, _ in attrs}


def ask(data: Path, path: str, *, form: dict[str, str] | None = None, key: Any = None, **query: str) -> tuple[int, str]:
    answer = respond(
        data,
        {
            "method": "GET" if form is None else "POST",
            "path": path,
            "query": query,
            "form": form or {},
            "key": key or OPERATOR,
            "live": {},
        },
    )
    return answer["status"], answer["html"]


def get(data: Path, path: str, **query: str) -> str:
    status, html = ask(data, path, **query)
    assert status == 200, html
    return html


@pytest.mark.parametrize("path", [*(name for name in PAGES if name != "act"), "act/stop", "now/live", "cycles/live"])
def test_every_page_is_there_for_an_empty_folder(tmp_path: Path, path: str):
    assert "<h1" in get(tmp_path, path) or path.endswith("live")


@pytest.mark.parametrize("path", ["", "nope", "now/../etc", "app", "request", "now/a/b/c/d", "money/x"])
def test_what_is_no_page_is_a_404_or_shows_nothing_else(tmp_path: Path, path: str):
    status, html = ask(tmp_path, path)
    assert status == 404 and "<h1" in html


def test_texts_of_the_log_are_escaped_everywhere(tmp_path: Path):
    context = {"agent_name": "Ada", "messages": [{"speaker": "Eve", "text": EVIL}]}
    turn = Turn(
        START, EVIL, context, original={"action": "RESPOND", "reasoning": EVIL}, custom="IGNORE", right="IGNORE"
    )
    turn.extra = {"error": EVIL, "tags": {EVIL: EVIL}}
    write(tmp_path, [turn, Turn(START, "two", context, original={"action": "RESPOND", "reasoning": EVIL})])
    pages = [get(tmp_path, path) for path in ("now", "decisions", "data", "models/should_respond", "money")]
    ids = [row[0] for row in storage.sql(tmp_path, "SELECT decision_id::VARCHAR FROM decisions").rows]
    pages += [get(tmp_path, f"decisions/{each}") for each in ids]
    pages += [get(tmp_path, "label/should_respond"), get(tmp_path, "decisions", text=EVIL, agent_id=EVIL)]
    pages.append(ask(tmp_path, EVIL)[1])
    assert sum("alert(1)" in page for page in pages) >= 5, "the texts are shown"
    for page in pages:
        tags = Tags()
        tags.feed(page)
        assert not tags.found & {"script", "img", "iframe", "style"}
        assert not {name for name in tags.attributes if name.startswith(("on", "hx-on", "style"))}


def test_decisions_are_found_by_text_and_filter_and_shown_in_full(tmp_path: Path):
    write_questions(tmp_path, 60)
    assert get(tmp_path, "decisions", text="question 7 of").count("/pages/decisions/0") == 2  # the link, twice
    assert "No decision fits." in get(tmp_path, "decisions", decision_type="coding")
    assert "No decision fits." in get(tmp_path, "decisions", since="2030")
    older = re.search(r'name="before" value="([^"]+)"', get(tmp_path, "decisions"))
    assert older and get(tmp_path, "decisions", before=older[1]).count("<tr>") == 11
    assert ask(tmp_path, "decisions", since="some day")[0] == 400
    ((decision_id,),) = storage.sql(tmp_path, "SELECT decision_id::VARCHAR FROM decisions LIMIT 1").rows
    shown = get(tmp_path, f"decisions/{decision_id}")
    assert "of bo@example.com" in shown and "Lineage" in shown


def test_a_button_pressed_twice_gives_one_label_that_undo_takes_back(tmp_path: Path):
    write_questions(tmp_path, 3)
    found = re.search(r'name="decision_id" value="([^"]+)"', get(tmp_path, "label/should_respond"))
    assert found
    form = {"decision_id": found[1], "do": "give", "answer": "RESPOND", "draw": "queue"}
    for _ in range(2):
        assert "1 labelled by" in ask(tmp_path, "label/should_respond", form=form)[1]
    assert "0 labelled by" in ask(tmp_path, "label/should_respond", form={"do": "undo"})[1]
    land_decisions(tmp_path)
    assert labels_of(tmp_path) == {}
    assert "1 labelled by" in ask(tmp_path, "label/should_respond", form=form)[1], "it may be answered anew"


def test_feedback_is_recorded_in_the_name_of_the_key(tmp_path: Path):
    write_questions(tmp_path, 1)
    ((decision_id,),) = storage.sql(tmp_path, "SELECT decision_id::VARCHAR FROM decisions").rows
    path = f"decisions/{decision_id}/feedback"
    assert ask(tmp_path, path, form={"metric": "helpful", "value": "false"}, key=READER)[0] == 403
    assert ask(tmp_path, path, form={"metric": "salary", "value": "true"}, key=LABELLER)[0] == 400
    for form in ({"metric": "helpful", "value": "false"}, {"kind": "comment", "value": "too loud"}):
        assert ask(tmp_path, path, form=form, key=LABELLER)[0] == 200
    land_decisions(tmp_path)
    rows = storage.sql(tmp_path, "SELECT metric, value, author FROM feedback_log ORDER BY metric").rows
    assert rows == [("comment", '"too loud"', "ann"), ("helpful", "false", "ann")]


def test_labelling_gives_skips_edits_and_takes_back(tmp_path: Path):
    write_questions(tmp_path, 4)

    def say(do: str, **form: str) -> str:
        shown = re.search(r'name="decision_id" value="([^"]+)"', say.shown)
        form = {"do": do, "decision_id": shown[1] if shown else "", "draw": "random"} | form
        status, say.shown = ask(tmp_path, "label/should_respond", form=form, key=LABELLER)
        assert status == 200, say.shown
        return re.search(r'class="said" role="status">([^<]*)', say.shown)[1]

    say.shown = ask(tmp_path, "label/should_respond", key=LABELLER)[1]
    assert say("give", answer="IGNORE", why="because") == "Recorded: IGNORE."
    assert say("give", answer="DANCE").startswith("Not recorded: not an answer")
    assert say("give", answer="{", form="json").startswith("Not recorded: this is not JSON")
    assert say("give", answer='{"action": "STOP"}', form="json") == "Recorded: STOP."
    assert say("skip") == "Skipped."
    assert say("undo") == "Taken back."  # the skip
    assert say("undo") == "Taken back."  # STOP
    assert say("give", answer="RESPOND") == "Recorded: RESPOND."
    land_decisions(tmp_path)
    assert sorted(labels_of(tmp_path).values()) == ["IGNORE", "RESPOND"]


def test_only_the_operator_says_whose_label_it_is(tmp_path: Path):
    write_questions(tmp_path, 2)
    for key, author in ((LABELLER, "ann"), (OPERATOR, "bob")):
        page = ask(tmp_path, "label/should_respond", key=key, author="bob")[1]
        decision_id = re.search(r'name="decision_id" value="([^"]+)"', page)[1]
        form = {"do": "give", "decision_id": decision_id, "answer": "STOP", "author": "bob"}
        ask(tmp_path, "label/should_respond", form=form, key=key)
        land_decisions(tmp_path)
        query = "SELECT author FROM feedback_log WHERE kind = 'demonstration' ORDER BY ts DESC LIMIT 1"
        assert storage.sql(tmp_path, query).rows == [(author,)]
    assert ask(tmp_path, "label/should_respond", key=READER)[0] == 403


def test_an_answer_is_recorded_after_the_process_was_started_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_questions(tmp_path, 1)
    shown = get(tmp_path, "label/should_respond")
    decision_id = re.search(r'name="decision_id" value="([^"]+)"', shown)[1]
    monkeypatch.setattr(label, "_sessions", {})
    form = {"do": "give", "decision_id": decision_id, "answer": "STOP"}
    assert "Recorded: STOP" in ask(tmp_path, "label/should_respond", form=form)[1]
    form = {"do": "give", "decision_id": str(uuid7(START)), "answer": "STOP"}
    assert ask(tmp_path, "label/should_respond", form=form)[0] == 400


def test_models_stand_side_by_side_with_their_intervals_and_cycles_with_their_steps(tmp_path: Path):
    labels = [Label({"action": "RESPOND" if i % 2 else "IGNORE"}, f"e{i // 4}") for i in range(80)]
    right = [SourceAnswer(each.decision) for each in labels]
    found = evaluate("should_respond", labels, {"candidate": right, "original": [right[0]] * 80})
    with open_ledger(tmp_path) as ledger:
        values = {"name": "rsn-x", "model_object_id": "ml_1", "decision_type": "should_respond", "base_model": "b"}
        ledger.add(Model, id="m-1", state="trained", **values)
        about = {"model_id": "m-1", "verdict": {"decision": "promote", "why": "it is better"}}
        save_evaluation(ledger, found.as_dict() | {"about": about})
        save_cycle(ledger, CycleRow(decision_type="should_respond", started_at="2026-11-28T10:00:00Z", dataset_id="d1"))
    shown = get(tmp_path, "models")
    assert "it is better" in shown and 'class="interval"' in shown and "accuracy" in shown
    steps = re.findall(r'<li class="(\w+)"', get(tmp_path, "cycles"))
    assert steps == ["done", "current", "open", "open", "open"]


def test_an_experiment_is_shown_with_its_confidence_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def report(data: Path, name: str, **_: Any) -> ExperimentReport:
        if name != "should_respond":
            raise MissingStep(f"no model of {name} has traffic")
        rows = [(10, -0.1, 0.3), (20, 0.0, 0.25), (30, 0.02, 0.2)]
        path = [{"episodes": n, "difference": (low + high) / 2, "low": low, "high": high} for n, low, high in rows]
        decision = LiveDecision("promote", "it is better", {"evidence": 3.2})
        return ExperimentReport(name, "m-1", "canary", "original", START, decision, path, None, "no table")

    monkeypatch.setattr(experiments, "report_experiment", report)
    shown = get(tmp_path, "experiments")
    assert "it is better" in shown and "no model of planning has traffic" in shown and "no table" in shown
    (points,) = re.findall(r'class="middle" points="([^"]+)"', shown)
    assert points.split()[0].startswith("0.00,") and points.split()[-1].startswith("200.00,")
    assert "between +0.020 and +0.200" in shown


@pytest.mark.parametrize("action", ["act/stop", "act/cycle/should_respond", "act/promote/m", "act/rollback/planning"])
@pytest.mark.parametrize("key", [LABELLER, READER])
def test_only_the_operator_acts(tmp_path: Path, action: str, key: dict[str, Any]):
    for form in (None, {"confirm": "x"}):
        assert ask(tmp_path, action, form=form, key=key)[0] == 403


def test_an_action_needs_the_confirmation_of_what_is_shown(tmp_path: Path):
    with open_ledger(tmp_path):
        pass
    shown = get(tmp_path, "act/stop")
    assert "Price:" in shown
    assert ask(tmp_path, "act/stop", form={})[0] == 409
    assert ask(tmp_path, "act/stop", form={"confirm": "0" * 32})[0] == 409
    digest = re.search(r'name="confirm" value="(\w+)"', shown)[1]
    status, done = ask(tmp_path, "act/stop", form={"confirm": digest})
    assert status == 200 and "Nothing of this installation runs" in done


def test_what_is_blocked_cannot_be_confirmed(tmp_path: Path):
    shown = get(tmp_path, "act/rollback/should_respond")
    assert "no model of should_respond has traffic" in shown and "danger" not in shown
    digest = re.search(r'name="confirm" value="(\w+)"', shown)[1]
    assert ask(tmp_path, "act/rollback/should_respond", form={"confirm": digest})[0] == 400


def test_a_damaged_folder_is_told_not_raised(tmp_path: Path):
    write_questions(tmp_path, 1)
    for path in tmp_path.glob("decisions/**/*.parquet"):
        path.write_bytes(b"no parquet")
    status, html = ask(tmp_path, "now")
    assert status in (400, 500) and "<h1>" in html
    assert orjson.dumps({"html": html})
