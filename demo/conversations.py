"""Chat rooms for `should_respond`, built from real conversations.

The conversations are the 7,168 two-person chats of the Chit-Chat Challenge (package `chitchat-dataset`, MIT; Myers,
Etchart and Fulda, "Conversational Scaffolding", 2020). As research on conversation disentanglement does (Elsner and
Charniak, "You Talking to Me?", 2008, and its successors), a room runs two to four of them side by side:

* A conversation is used when it has two people and at least `MIN_TURNS` turns, and lasted at most `MAX_MINUTES`:
  about 2,100 do. Each is used in one room at most.
* In the order in which they really began, they are dealt into rooms of two to four whose people are all different and
  that began within a week of each other (in half of the rooms: 12 hours). So no room holds a word of a conversation
  that another one uses.
* The conversation of a room that began last is the agent's and keeps its real times. The others are moved to later,
  each by one constant, so that their middle falls into the middle half of the agent's conversation: few would overlap
  by themselves. Nothing else of them changes: pauses, order and words are the people's own. The room is open
  while the agent's conversation lasts.
* One of the two people of that conversation, drawn by a hash, is the agent and appears as `AGENT_NAME`. All others keep
  one made-up name across all rooms. It is made of a hash of their id, so it says nothing about them or their part.
* Consecutive lines of one person in the room are one turn. At the end of every turn of somebody else the agent decides.
  It was right to RESPOND if the next line of *that* conversation was the agent's, and to IGNORE if its speaker went on,
  if the conversation ended there, or if it was not the agent's. The agent sees neither which conversation a line
  belongs to nor whom it addresses.
* Of a room's decisions, `MAX_DECISIONS` in a row are used, from a point that is drawn by a hash, so that many rooms
  count rather than a few long ones.

The source's message times are local times marked as UTC, and its `start` is UTC: a line's time here is `start` plus the
time since the conversation's first line.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from demo.episodes import Episode, Turn
from demo.errors import DataPackageError

AGENT_NAME = "Nova"
MIN_TURNS = 8
MAX_MINUTES = 60
MAX_DECISIONS = 25
MAX_DAYS_APART = timedelta(days=7)
CONTEXT_TURNS = 30
"""How many turns of the room a question shows."""

RATINGS = ("witty", "interesting", "upbeat")
_SYLLABLES = [c + v for c in "bdfghklmnprstvz" for v in "aeiou"]


class SentMessage(NamedTuple):
    """One message as it was sent. (A tuple: there are a quarter of a million of them.)"""

    ts: datetime
    sender: str
    text: str
    conversation: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """One two-person conversation, its lines in the order of time."""

    conversation_id: str
    lines: tuple[SentMessage, ...]
    people: tuple[str, ...]
    ratings: dict[str, float]

    @property
    def start(self) -> datetime:
        return self.lines[0].ts

    @property
    def end(self) -> datetime:
        return self.lines[-1].ts


def dataset_path() -> Path:
    """Where the installed package keeps the conversations.

    Raises:
        DataPackageError: the package is not installed.
    """
    spec = importlib.util.find_spec("chitchat_dataset")
    path = Path(spec.origin).with_name("dataset.json") if spec and spec.origin else None
    if path is None or not path.is_file():
        raise DataPackageError(
            "the demo's conversations are missing: the package chitchat-dataset is not installed. "
            "Run `uv sync --all-extras`, or `pip install chitchat-dataset`."
        )
    return path


def read_conversations(path: Path | None = None) -> list[Conversation]:
    """Read the conversations of two people, in the order in which they began.

    Raises:
        DataPackageError: the file is missing or does not parse; says the file and the place in it.
    """
    mend = "" if path else ". Reinstall chitchat-dataset"
    path = path or dataset_path()
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise DataPackageError(f"cannot read the conversations in {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataPackageError(f"{path} is not JSON: {error}{mend}") from error
    if not isinstance(raw, dict):
        raise DataPackageError(f"{path}: expected an object of conversations, found {type(raw).__name__}")
    conversations = (_parse_conversation(path, key, value) for key, value in raw.items())
    return sorted((c for c in conversations if len(c.people) == 2), key=lambda c: (c.start, c.conversation_id))


def _parse_conversation(path: Path, conversation_id: str, raw: Any) -> Conversation:
    place = f"conversation {conversation_id}"
    try:
        start = _parse_time(raw["start"])
        first: datetime | None = None
        lines: list[SentMessage] = []
        for number, turn in enumerate(raw["messages"]):
            for position, message in enumerate(turn):
                place = f"conversation {conversation_id}, messages[{number}][{position}]"
                ts = _parse_time(message["timestamp"])
                first = first or ts
                text = " ".join(message["text"].split())
                if text:
                    lines.append(SentMessage(start + (ts - first), message["sender"], text, conversation_id))
        place = f"conversation {conversation_id}, ratings"
        ratings = {name: float(value) for name, value in (raw.get("ratings") or {}).items() if name in RATINGS}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise DataPackageError(f"{path}: {place}: {why}. Reinstall chitchat-dataset, or repair the file.") from error
    lines.sort(key=lambda line: line.ts)
    return Conversation(conversation_id, tuple(lines), tuple(sorted({line.sender for line in lines})), ratings)


def _parse_time(text: str) -> datetime:
    ts = datetime.fromisoformat(text)
    return ts.replace(tzinfo=UTC) if ts.tzinfo is None else ts.astimezone(UTC)


def _draw(*parts: str) -> float:
    """A stable draw from [0, 1)."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big") / 2**64


def display_names(people: set[str]) -> dict[str, str]:
    """One short, made-up, unique name a person: stable, and telling nothing about them."""
    taken: set[str] = set()
    names = {}
    for person in sorted(people, key=lambda person: _draw("name", person)):
        for attempt in range(10_000):
            number = int(_draw("name", person, str(attempt)) * len(_SYLLABLES) ** 2)
            name = (_SYLLABLES[number // len(_SYLLABLES)] + _SYLLABLES[number % len(_SYLLABLES)]).title()
            if name not in taken and name != AGENT_NAME:
                break
        taken.add(name)
        names[person] = name
    return names


def read_rooms(
    path: Path | None = None, *, max_turns: int | None = None, context_turns: int = CONTEXT_TURNS
) -> list[Episode]:
    """Build the rooms (see the module's docstring), in the order in which the agent's conversations began.

    Args:
        path: the file of conversations; the installed package's when None.
        max_turns: stop after the room with which there are so many turns to decide; all rooms when None.
        context_turns: how many turns of the room a question shows, the newest last.

    Returns:
        One episode a room, each with at least one turn to decide. The same file gives the same rooms.

    Raises:
        DataPackageError: the file is missing or does not parse; says the file and the place in it.
    """
    conversations = read_conversations(path)
    names = display_names({person for c in conversations for person in c.people})
    usable = [
        c for c in conversations if _count_turns(c) >= MIN_TURNS and c.end - c.start <= timedelta(minutes=MAX_MINUTES)
    ]
    rooms: list[Episode] = []
    turns = 0
    for own, others in sorted(
        map(_choose_own, _deal(usable)), key=lambda room: (room[0].start, room[0].conversation_id)
    ):
        if max_turns is not None and turns >= max_turns:
            break
        room = _build_room(own, others, names, context_turns)
        if room.turns:
            rooms.append(room)
            turns += len(room.turns)
    return rooms


def _count_turns(conversation: Conversation) -> int:
    senders = [line.sender for line in conversation.lines]
    return 1 + sum(a != b for a, b in itertools.pairwise(senders))


def _deal(conversations: list[Conversation]) -> Iterator[list[Conversation]]:
    """Groups of two to four conversations of different people, each taken as early as possible."""
    waiting = list(conversations)
    while waiting:
        first = waiting.pop(0)
        size = 2 + int(_draw("size", first.conversation_id) * 3)
        group, people = [first], set(first.people)
        for other in waiting[:40]:
            near = other.start - first.start <= MAX_DAYS_APART
            if near and len(group) < size and people.isdisjoint(other.people):
                group.append(other)
                people.update(other.people)
        if len(group) < 2:
            continue
        for other in group[1:]:
            waiting.remove(other)
        yield group


def _choose_own(group: list[Conversation]) -> tuple[Conversation, list[Conversation]]:
    own = max(group, key=lambda c: c.start)
    return own, [other for other in group if other is not own]


def _build_room(own: Conversation, others: list[Conversation], names: dict[str, str], context_turns: int) -> Episode:
    agent = own.people[int(_draw("agent", own.conversation_id) * 2)]
    lines = list(own.lines)
    for other in others:
        middle = own.start + (own.end - own.start) * (0.25 + 0.5 * _draw("middle", other.conversation_id))
        shift = middle - (other.start + (other.end - other.start) / 2)
        lines += [
            SentMessage(line.ts + shift, line.sender, line.text, line.conversation)
            for line in other.lines
            if own.start <= line.ts + shift <= own.end
        ]
    lines.sort(key=lambda line: line.ts)
    shown = names | {agent: AGENT_NAME}
    episode_id = f"room-{own.conversation_id}"
    after: dict[int, int] = {}  # a line's number -> that of the next line of its conversation
    latest: dict[str, int] = {}
    for number, line in enumerate(lines):
        if line.conversation in latest:
            after[latest[line.conversation]] = number
        latest[line.conversation] = number

    said: list[tuple[str, list[str]]] = []
    turns: list[Turn] = []
    for number, line in enumerate(lines):
        if said and said[-1][0] == line.sender:
            said[-1][1].append(line.text)
        else:
            said.append((line.sender, [line.text]))
        ends_turn = number + 1 == len(lines) or lines[number + 1].sender != line.sender
        if line.sender == agent or not ends_turn:
            continue
        answer = lines[after[number]] if number in after else None
        seen = said[-context_turns:]
        turns.append(
            Turn(
                decision_type="should_respond",
                context={
                    "agent_name": AGENT_NAME,
                    "messages": [{"speaker": shown[sender], "text": "\n".join(texts)} for sender, texts in seen],
                },
                truth={"action": "RESPOND" if answer is not None and answer.sender == agent else "IGNORE"},
                ts=line.ts,
                truth_ts=answer.ts if answer is not None else own.end,
                episode_id=episode_id,
                room_id=episode_id,
                subject_ids=tuple(sorted({sender for sender, _ in seen if sender != agent})),
            )
        )
    first = int(_draw("excerpt", own.conversation_id) * (max(len(turns) - MAX_DECISIONS, 0) + 1))
    return Episode(episode_id, tuple(turns[first : first + MAX_DECISIONS]), own.end, dict(own.ratings))
