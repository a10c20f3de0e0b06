"""Labelling on the page: the same queue and records as `reasoning label`, one form a question."""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from console.errors import PageError
from console.request import Request, Response, render
from pipeline.errors import LabelRefused
from pipeline.labels import (
    check_author,
    give_label,
    label_queue,
    label_writer,
    open_question,
    retract_label,
    skip_question,
)
from quality.labelling.questions import Question
from reasoning.config import load_config
from reasoning.decision_types import DecisionType, get_decision_type
from reasoning.records import Feedback
from storage.errors import DataFolderBusy, LandingError
from storage.log.land import land_decisions

BATCH = 20
_LAND_SECONDS = 5.0


@dataclass(slots=True)
class Session:
    """One labeller at one decision type, as long as the page's process lives. What is in it is in the log as well,
    but for what has not landed yet."""

    kind: DecisionType
    author: str
    next: list[Question] = field(default_factory=list)
    seen: set[UUID] = field(default_factory=set)
    history: list[tuple[Question, Feedback | None]] = field(default_factory=list)
    waiting: int = 0
    done: int = 0
    """Labels of this author: those of the log at the last batch, and what was given and taken back since."""


_sessions: dict[tuple[str, str, str], Session] = {}
_lock = threading.Lock()


def page(request: Request, decision_type: str = "") -> Response:
    """Which type; or the next question of one, after what was said of the last."""
    visitor = request.visitor
    types = sorted(load_config(request.data).decision_types)
    author = _author(request)
    if not decision_type:
        return render("label_types.html", visitor=visitor, types=types, author=author)
    visitor.require_label()
    session = _session(request, decision_type, author)
    said = ""
    with _lock:
        if request.method == "POST":
            said = _act(request, session)
        if not session.next:
            _fetch(request, session)
        question = session.next[0] if session.next else None
    return render(
        "label.html",
        visitor=visitor,
        kind=session.kind,
        author=author,
        question=question,
        choices=session.kind.labels[:9],
        answer=None if question is None else _answer_text(question),
        describe=session.kind.form.describe(session.kind),
        waiting=session.waiting,
        done=session.done,
        can_undo=bool(session.history),
        said=said,
    )


def _author(request: Request) -> str:
    """The visitor's name: of a key the key's, of the operator what they call themselves."""
    told = (request.form.get("author") or request.query.get("author") or "").strip()
    author = told if told and request.visitor.operator else request.visitor.name
    try:
        check_author(author)
    except LabelRefused as error:
        raise PageError(str(error)) from None
    return author


def _session(request: Request, decision_type: str, author: str) -> Session:
    kind = get_decision_type(decision_type, load_config(request.data))
    return _sessions.setdefault((str(request.data), kind.name, author), Session(kind, author))


def _fetch(request: Request, session: Session) -> None:
    with suppress(DataFolderBusy, LandingError):  # then the latest decisions come with the next batch
        land_decisions(request.data, lock_timeout=_LAND_SECONDS)
    found = label_queue(request.data, session.kind.name, session.author, limit=BATCH, without=session.seen)
    session.next, session.waiting, session.done = found.questions, found.waiting, found.done


def _act(request: Request, session: Session) -> str:
    """Do what a form asks. Returns what to say of it."""
    wanted = request.form.get("decision_id", "")
    answered = (str(question.decision_id) for question, _ in session.history)
    if request.form.get("do") != "undo" and wanted in answered:
        return "Recorded once: this question was answered already."  # a second press; undo takes back one record
    match request.form.get("do", ""):
        case "undo":
            return _undo(request, session)
        case "skip":
            question = _asked(request, session)
            with label_writer(request.data) as writer:
                skip_question(writer, question.decision_id, author=session.author, now=request.now)
            _leave(session, question, None)
            return "Skipped."
        case "give":
            return _give(request, session)
    raise PageError("the form asks for nothing that is known")


def _give(request: Request, session: Session) -> str:
    question = _asked(request, session)
    answer: Any = request.form.get("answer", "")
    if request.form.get("form") == "json":
        try:
            answer = orjson.loads(answer)
        except orjson.JSONDecodeError as error:
            return f"Not recorded: this is not JSON ({error})."
        if not isinstance(answer, dict | str):
            return "Not recorded: the answer is an object."
    try:
        with label_writer(request.data) as writer:
            given = give_label(
                writer,
                session.kind,
                question.decision_id,
                answer,
                author=session.author,
                draw=question.draw,
                why=request.form.get("why", "").strip() or None,
                now=request.now,
            )
    except LabelRefused as error:
        return f"Not recorded: {error}."
    _leave(session, question, given)
    return f"Recorded: {_class(session.kind, given)}."


def _class(kind: DecisionType, label: Feedback) -> str:
    return kind.form.answer_class(orjson.loads(str(label.value)))[:60]


def _undo(request: Request, session: Session) -> str:
    if not session.history:
        return "Nothing to undo."
    question, given = session.history.pop()
    if given is not None:
        with label_writer(request.data) as writer:
            retract_label(writer, given, now=request.now)
        session.done -= 1
    session.seen.discard(question.request_id)
    session.next.insert(0, question)
    return "Taken back."


def _asked(request: Request, session: Session) -> Question:
    """The question that a form is of: the one shown, or one of a session that ended with the process."""
    wanted = request.form.get("decision_id", "")
    for question in session.next:
        if str(question.decision_id) == wanted:
            return question
    found = open_question(request.data, session.kind.name, wanted)
    found.draw = _draw(request.form.get("draw", ""))
    return found


def _draw(text: str) -> Any:
    return text if text in ("random", "queue", "second") else "queue"


def _leave(session: Session, question: Question, given: Feedback | None) -> None:
    session.seen.add(question.request_id)
    session.next = without(session.next, {question.request_id})
    session.history.append((question, given))
    session.done += given is not None


def without(questions: list[Question], requests: Collection[UUID]) -> list[Question]:
    """The questions of other requests."""
    return [question for question in questions if question.request_id not in requests]


def _answer_text(question: Question) -> str:
    shown = question.served or question.original or question.candidate or {}
    return orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode()
