"""Read a chat request as a conversation: who said what, who is asked, and which actions there are to choose from.

A small classifier learns next to nothing from raw prompt text, and much from the transcript in it. Nothing here knows
a product's prompt: a transcript is any run of `Speaker: text` lines (continuation lines indented), a list of actions
any run of `- name: description` lines, and chat turns (`user`, `assistant`, `tool`) are lines by themselves.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_LINES = 60
"""The newest lines are kept."""
MAX_CHARS = 60_000
"""The newest characters of a message are read: a transcript's end decides, and a huge prompt must not cost seconds."""

_SPEAKER = re.compile(r"(?P<speaker>[^\s:\-*#<>][^:\n<>]{0,47}): ?(?P<text>.*)")
_ACTION = re.compile(r"[-*] `?(?P<name>[^\s:`]{1,80})`?(?:: ?| - )(?P<description>.*)")
_BARE_ACTION = re.compile(r"[-*] `?(?P<name>[^\s:`]{1,80})`?")
_NAMED = [
    re.compile(pattern)
    for pattern in (
        r"\b[Yy]ou are (?:an? (?:\w+ ){0,3}named )?\"?([^\W\d_][\w'’-]*(?: [A-Z][\w'’-]*)?)",
        r"\b[Nn]amed \"?([^\W\d_][\w'’-]*(?: [A-Z][\w'’-]*)?)",
        r"\b(?:[Aa]gent|[Aa]ssistant)(?:'s name)?(?: is|:) \"?([^\W\d_][\w'’-]*(?: [A-Z][\w'’-]*)?)",
        r"\b[Ss]hould \"?([^\W\d_][\w'’-]*(?: [A-Z][\w'’-]*)?)\b",
        r"\b[Dd]ecide (?:whether|if) \"?([^\W\d_][\w'’-]*(?: [A-Z][\w'’-]*)?)\b",
    )
]
_ARTICLES = {"a", "an", "the", "not", "given", "asked"}


@dataclass(frozen=True, slots=True)
class SpokenLine:
    """What one speaker said in one go."""

    speaker: str
    text: str


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that the prompt offers to do."""

    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """A request as a conversation, the newest line last."""

    lines: tuple[SpokenLine, ...]
    agent: str | None
    """The speaker on whose behalf the model is asked, when the prompt tells."""
    actions: tuple[Action, ...]

    @property
    def last(self) -> SpokenLine:
        return self.lines[-1] if self.lines else SpokenLine("", "")


def parse_transcript(messages: Iterable[Mapping[str, Any]], tools: Iterable[Mapping[str, Any]] = ()) -> Transcript:
    """Read the messages before the answer that is asked for.

    Args:
        messages: chat messages; `content` may be a string, a list of parts, or None.
        tools: functions offered with the request, in the form of the chat API.

    Returns:
        The transcript inside of the last user message when it holds one, else the chat turns themselves.
    """
    chat = [(str(message.get("role", "user")), message_text(message)[-MAX_CHARS:]) for message in messages]
    prompt = next((text for role, text in reversed(chat) if role == "user"), "")
    instructions = "\n".join(text for role, text in chat if role in ("system", "developer"))
    lines, rest = _parse_lines(prompt)
    if len(lines) < 2 and len([role for role, _ in chat if role not in ("system", "developer")]) > 1:
        lines = [SpokenLine(role, text) for role, text in chat if role not in ("system", "developer")]
        agent: str | None = "assistant"
    elif not lines:
        lines, agent = [SpokenLine("user", prompt)], "assistant"
    else:
        agent = _find_agent(f"{instructions}\n{rest}", {line.speaker for line in lines})
    actions = [*_parse_actions(f"{instructions}\n{prompt}"), *_parse_tools(tools)]
    unique = {action.name: action for action in reversed(actions)}
    return Transcript(tuple(lines[-MAX_LINES:]), agent, tuple(reversed(unique.values())))


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message: its content, the text of its parts, or the calls that it makes."""
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    text = str(content) if content is not None else ""
    calls = message.get("tool_calls") or []
    return "\n".join(filter(None, [text, *(str(call.get("function", {}).get("name", "")) for call in calls)]))


def _parse_lines(prompt: str) -> tuple[list[SpokenLine], str]:
    """The longest run of `Speaker: text` lines, the last of equals, and the text around it."""
    runs: list[list[SpokenLine]] = [[]]
    rest: list[str] = []
    for raw in prompt.split("\n"):
        run = runs[-1]
        if run and raw[:1] in (" ", "\t"):
            run[-1] = SpokenLine(run[-1].speaker, f"{run[-1].text}\n{raw.strip()}")
        elif match := _SPEAKER.fullmatch(raw):
            run.append(SpokenLine(match["speaker"].strip(), match["text"].strip()))
        else:
            if run:
                runs.append([])
            rest.append(raw)
    best = max(reversed(runs), key=len)
    rest += [f"{line.speaker}: {line.text}" for run in runs if run is not best for line in run]
    return best, "\n".join(rest)


def _find_agent(text: str, speakers: set[str]) -> str | None:
    found: Counter[str] = Counter()
    for pattern in _NAMED:
        for name in pattern.findall(text):
            for candidate in (name, name.split(" ")[0]):
                if candidate.lower() not in _ARTICLES:
                    found[candidate] += 10 if candidate in speakers else 0
                    found[candidate] += 1 if candidate[0].isupper() else 0
    if found and max(found.values()) > 0:
        return max(found, key=lambda name: found[name])
    # No known phrase: the speaker whom the prompt speaks about, outside of the transcript.
    about = Counter({speaker: len(re.findall(rf"\b{re.escape(speaker)}\b", text)) for speaker in speakers})
    speaker, times = about.most_common(1)[0] if about else ("", 0)
    return speaker if times else None


def _parse_actions(text: str) -> list[Action]:
    actions = []
    for line in text.split("\n"):
        if match := _ACTION.fullmatch(line):
            actions.append(Action(match["name"], match["description"].strip()))
        elif match := _BARE_ACTION.fullmatch(line):
            actions.append(Action(match["name"], ""))
    return actions


def _parse_tools(tools: Iterable[Mapping[str, Any]]) -> list[Action]:
    functions = [tool.get("function", tool) for tool in tools]
    return [Action(str(f.get("name", "")), str(f.get("description") or "")) for f in functions]
