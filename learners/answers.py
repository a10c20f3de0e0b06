"""What an assistant's answer decides, and where in its text it says so."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from typing import Literal

AnswerKind = Literal["choice", "plan", "questions", "text"]

_CHOICE_XML = re.compile(r"<action>\s*+(?P<value>(?:[^<>\s]++|\s++(?!<))*+)\s*</action>", re.IGNORECASE)
_PLAN_XML = re.compile(
    r"<actions>\s*+(?P<value>(?:(?!\s*</actions>|<actions>).)*+)\s*</actions>", re.IGNORECASE | re.DOTALL
)
_NESTED = re.compile(r"<(?:name|action)>\s*+((?:[^<>\s]++|\s++(?!<))*+)\s*</(?:name|action)>", re.IGNORECASE)
_CHOICE_JSON = re.compile(r'"action"\s*:\s*"(?P<value>[^"\\]*)"')
_PLAN_JSON = re.compile(r'"actions"\s*:\s*(?P<value>\[[^\[\]]*\])')
_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """An answer's text, and the part `text[start:end]` that says what was decided."""

    kind: AnswerKind
    text: str
    values: tuple[str, ...]
    """The one thing chosen, or the actions in order; empty for open text."""
    start: int
    end: int

    def of_kind(self, kind: AnswerKind) -> ParsedAnswer:
        """This answer, or, read as open text, the whole of it."""
        return self if kind == self.kind else ParsedAnswer("text", self.text, (self.text.strip(),), 0, len(self.text))

    def with_values(self, values: tuple[str, ...]) -> ParsedAnswer:
        """The same words around another list of actions."""
        if values == self.values:
            return self
        written = f"[{', '.join(map(self._write, values))}]" if self._is_json() else ", ".join(map(self._write, values))
        text = self.text[: self.start] + written + self.text[self.end :]
        return ParsedAnswer(self.kind, text, values, self.start, self.start + len(written))

    def tokens(self, log_probability: float) -> tuple[list[str], list[float]]:
        """The text as tokens with their log-probabilities, which sum to `log_probability`: that of the decision.

        The thing chosen, or each action of a plan, is one token and bears its part; given the decision all others are
        certain, 0.
        """
        bearers: list[tuple[int, int]] = []
        if self.kind == "plan":
            at = self.start
            for value in map(self._write, self.values):
                found = self.text.find(value, at, self.end)
                if found >= 0 and value:
                    at = found + len(value)
                    bearers.append((found, at))
        bearers = bearers or [self._visible_span()]
        tokens: list[str] = []
        log_probabilities: list[float] = []
        at = 0
        for start, end in bearers:
            between = _TOKEN.findall(self.text[at:start])
            tokens += [*between, self.text[start:end]]
            log_probabilities += [*[0.0] * len(between), log_probability / len(bearers)]
            at = end
        after = _TOKEN.findall(self.text[at:])
        return [*tokens, *after], [*log_probabilities, *[0.0] * len(after)]

    def _visible_span(self) -> tuple[int, int]:
        """Where the decision stands; of an empty one the mark that follows, or the text's last."""
        if self.start < self.end or not self.text:
            return self.start, self.end
        marks = [match.span() for match in _TOKEN.finditer(self.text)]
        return next((span for span in marks if span[0] >= self.start), marks[-1])

    def _is_json(self) -> bool:
        return self.text[self.start : self.start + 1] == "["

    def _write(self, value: str) -> str:
        return json.dumps(value, ensure_ascii=False) if self._is_json() else html.escape(value, quote=False)


def parse_answer(text: str) -> ParsedAnswer:
    """Find the last list of actions, or the last one action, in XML or JSON; open text decides nothing but itself."""
    if text.lstrip()[:1] == "{" and (answers := _read_answers(text)) is not None:
        return ParsedAnswer("questions", text, (answers,), 0, len(text))
    if match := _find_last(_PLAN_XML, text):
        nested = _NESTED.findall(match["value"])
        return _plan(text, match, [html.unescape(name) for name in nested or match["value"].split(",")])
    if match := _find_last(_PLAN_JSON, text):
        try:
            raw = json.loads(match["value"])
        except ValueError:
            raw = []
        names = [item.get("name") if isinstance(item, dict) else item for item in raw]
        return _plan(text, match, [str(name) for name in names if name])
    for pattern in (_CHOICE_XML, _CHOICE_JSON):
        if match := _find_last(pattern, text):
            return ParsedAnswer("choice", text, (match["value"],), match.start("value"), match.end("value"))
    return ParsedAnswer("text", text, (text.strip(),), 0, len(text))


def _read_answers(text: str) -> str | None:
    """The answers to typed questions, `{"answers": {...}}`, as JSON; None where a text is something else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    answers = found.get("answers") if isinstance(found, dict) and len(found) == 1 else None
    simple = isinstance(answers, dict) and all(isinstance(value, str | bool | int) for value in answers.values())
    return json.dumps(answers, ensure_ascii=False) if simple and answers else None


def _find_last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return max(pattern.finditer(text), key=lambda match: match.start(), default=None)


def _plan(text: str, match: re.Match[str], names: list[str]) -> ParsedAnswer:
    values = tuple(name.strip() for name in names if name.strip())
    return ParsedAnswer("plan", text, values, match.start("value"), match.end("value"))
