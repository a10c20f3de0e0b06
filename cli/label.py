"""`reasoning label`: label decisions in the terminal, one key a decision."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import orjson
import typer

from cli.errors import CommandError
from cli.options import AsJson, Data, DecisionType, check_decision_type, find_data
from cli.output import print_line, print_note, show, without_controls

if TYPE_CHECKING:
    from quality.labelling.questions import Question
    from reasoning.decision_types import DecisionType as Kind
    from reasoning.io.spool import SegmentWriter
    from reasoning.records import Feedback

app = typer.Typer()

_BATCH = 20
_HELP = """a the served answer   o the fallback's   c the candidate's   e write another   w say why
s skip   u undo   m the whole conversation   q quit"""
_LINES = 24
"""So much of a conversation is shown at first: its end."""


@app.command()
def label(
    decision_type: DecisionType,
    data: Data = None,
    author: Annotated[str | None, typer.Option(help="Your name, on every label", show_default="your user")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many", show_default="none")] = None,
    random_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of decisions that are drawn at random, for honest evaluations")
    ] = 0.2,
    second_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of labelled decisions that others label a second time")
    ] = 0.1,
    agreement: Annotated[bool, typer.Option("--agreement", help="Show how far the labellers agree, and end")] = False,
    pairs: Annotated[
        Path | None, typer.Option(help="Write the corrections as preference pairs (JSONL, redacted), and end")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Label decisions by keyboard, the most informative first.

    Example: `reasoning label should_respond --author ann`
    """
    from pipeline.labels import label_writer, preference_pairs
    from quality.labelling.agreement import measure_agreement
    from reasoning.config import load_config
    from reasoning.decision_types import get_decision_type
    from storage.files import write_atomic
    from storage.log.land import land_decisions

    folder = find_data(data)
    name = check_decision_type(decision_type, folder)
    kind = get_decision_type(name, load_config(folder))
    if agreement or pairs is not None:
        land_decisions(folder)
    if agreement:
        found = measure_agreement(folder, kind)
        show(found, as_json=as_json, title=f"Agreement on {found.shared:,} decisions")
        return
    if pairs is not None:
        lines = preference_pairs(folder, name)
        write_atomic(pairs, b"".join(orjson.dumps(pair, option=orjson.OPT_APPEND_NEWLINE) for pair in lines))
        print_line(f"{len(lines):,} preference pairs in {pairs}")
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CommandError(
            "labelling needs a terminal; programs give demonstrations as feedback (docs/guides/labels.md)"
        )
    with label_writer(folder) as writer:
        session = Session(folder, kind, author or getpass.getuser(), writer, _read_key, _edit, _ask)
        session.shares = (random_share, second_share)
        session.run(limit)
    land_decisions(folder)
    print_note(f"Labels recorded as {session.author}: {session.given:,}")


@dataclass(slots=True)
class Session:
    """One person labelling. `read_key`, `edit` and `ask` are the keyboard, an editor, and a line of text."""

    data: Path
    kind: Kind
    author: str
    writer: SegmentWriter
    read_key: Callable[[], str]
    edit: Callable[[str], str | None]
    ask: Callable[[str], str]
    shares: tuple[float, float] = (0.2, 0.1)
    given: int = 0
    _seen: set[UUID] = field(default_factory=set)
    _history: list[tuple[Question, Feedback | None]] = field(default_factory=list)
    _next: list[Question] = field(default_factory=list)
    _note: str = ""
    _why: str | None = None

    def run(self, limit: int | None) -> None:
        """Ask until `limit` labels were given, the questions are all labelled, or the labeller quits."""
        while limit is None or self.given < limit:
            if not self._next and not self._fetch():
                print_line("Nothing is left to label.")
                return
            question = self._next.pop(0)
            self._show(question, lines=_LINES)
            if not self._answer(question):
                return

    def _fetch(self) -> bool:
        """The next questions: after each batch in a new order, by what was learned from the labels."""
        from pipeline.labels import label_queue
        from storage.log.land import land_decisions

        self.writer.seal()
        land_decisions(self.data)
        random_share, second_share = self.shares
        queue = label_queue(
            self.data,
            self.kind.name,
            self.author,
            limit=_BATCH,
            random_share=random_share,
            second_share=second_share,
            without=self._seen,
        )
        self._next = queue.questions
        print_note(f"{queue.waiting:,} decisions without a label; {queue.done:,} labelled by {self.author}")
        return bool(self._next)

    def _answer(self, question: Question) -> bool:
        """Read keys until the question is done. False: the labeller quits."""
        while True:
            key = self.read_key()
            if key in ("q", "\x03", "\x04"):
                return False
            if key == "u":
                self._undo(question)
                return True
            if key == "s":
                self._skip(question)
                return True
            if key == "m":
                self._show(question, lines=None)
            elif key == "w":
                self._why = self.ask("why: ").strip() or None
            elif (decision := self._decision(question, key)) is not None and self._give(question, decision):
                return True

    def _decision(self, question: Question, key: str) -> dict[str, Any] | str | None:
        choices: dict[str, dict[str, Any] | str | None] = {
            str(number): name for number, name in enumerate(self.kind.labels[:9], 1)
        }
        choices |= {"a": question.served, "o": question.original, "c": question.candidate}
        if key != "e":
            return choices.get(key)
        shown = question.served or question.original or question.candidate or {}
        edited = self.edit(orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode())
        if edited is None:
            return None
        try:
            value = orjson.loads(edited)
        except orjson.JSONDecodeError as error:
            print_line(f"not JSON: {error}; nothing is recorded")
            return None
        return value if isinstance(value, dict | str) else None

    def _give(self, question: Question, decision: dict[str, Any] | str) -> bool:
        from pipeline.errors import LabelRefused
        from pipeline.labels import give_label

        try:
            given = give_label(
                self.writer,
                self.kind,
                question.decision_id,
                decision,
                author=self.author,
                draw=question.draw,
                why=self._why,
            )
        except LabelRefused as error:
            print_line(str(error))
            return False
        self._why = None
        self.given += 1
        self._seen.add(question.request_id)
        self._history.append((question, given))
        return True

    def _skip(self, question: Question) -> None:
        from pipeline.labels import skip_question

        skip_question(self.writer, question.decision_id, author=self.author)
        self._why = None  # it was of this question
        self._seen.add(question.request_id)
        self._history.append((question, None))

    def _undo(self, question: Question) -> None:
        """Take the last label back, and ask it again."""
        from pipeline.labels import retract_label

        self._why = None
        self._next.insert(0, question)
        if not self._history:
            print_line("Nothing to undo.")
            return
        last, given = self._history.pop()
        if given is not None:
            retract_label(self.writer, given)
            self.given -= 1
        self._seen.discard(last.request_id)
        self._next.insert(0, last)

    def _show(self, question: Question, *, lines: int | None) -> None:
        for line in describe_question(question, self.kind, lines=lines):
            print_line(line)
        numbers = "   ".join(f"{number} {name}" for number, name in enumerate(self.kind.labels[:9], 1))
        print_line(f"{numbers}\n{_HELP}" if numbers else _HELP)


def describe_question(question: Question, kind: Kind, *, lines: int | None) -> list[str]:
    """A question as text: the conversation, both answers, why it is asked. No control characters.

    With `lines` only so many of the conversation's last ones, without instructions.
    """
    shown: list[str] = []
    for message in question.messages:
        if message["role"] == "system" and lines is not None:
            continue  # the same in every question
        shown += [f"[{message['role']}]", *message["content"].splitlines()]
    left_out = 0 if lines is None else max(0, len(shown) - lines)
    text = [f"... {left_out} lines above (m shows all)"] if left_out else []
    text += shown[left_out:]
    text.append("")
    for name, mark, decision in (
        ("fallback", "original", question.original),
        (f"candidate {question.candidate_model or ''}".strip(), "custom", question.candidate),
    ):
        if decision is not None:
            served = " (served)" if question.served_by == mark else ""
            text.append(f"{name}{served}: {orjson.dumps(decision).decode()}")
    reason = "drawn at random" if question.draw == "random" else ", ".join(question.why)
    if question.draw == "second":
        reason = "a second opinion"
    text.append(f"asked because: {reason or 'no label yet'}")
    return ["", "-" * 72, *map(without_controls, text)]


def _read_key() -> str:
    import click

    return click.getchar()


def _edit(text: str) -> str | None:
    import click

    edited: Any = click.edit(text, extension=".json")
    return edited if isinstance(edited, str) else None


def _ask(prompt: str) -> str:
    return input(prompt)
