from __future__ import annotations

import json
from collections import defaultdict
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from demo import conversations
from demo.conversations import AGENT_NAME, CONTEXT_TURNS, MAX_DECISIONS, dataset_path, read_conversations, read_rooms
from demo.episodes import Episode
from demo.errors import DataPackageError
from demo.originals import decide_should_respond
from reasoning.decision_types import get_decision_type

pytest.importorskip("chitchat_dataset")


@pytest.fixture(scope="module")
def rooms() -> list[Episode]:
    return read_rooms(max_turns=1500)


def message(sender: str, seconds: int, text: str) -> dict[str, str]:
    return {"text": text, "sender": sender, "timestamp": f"2018-05-01T10:{seconds // 60:02}:{seconds % 60:02}Z"}


def talk(a: str, b: str, start: str, said: list[tuple[str, int, str]]) -> dict[str, Any]:
    people = {"a": a, "b": b}
    messages = [[message(people[who], at, text)] for who, at, text in said]
    return {"start": start, "messages": messages, "ratings": {"witty": "4", "int": 3, "upbeat": 5}}


@pytest.fixture
def two_talks(tmp_path: Path) -> Path:
    """Ten turns each, one every 20 s; the second begins an hour later in truth, and the hour is its local time's."""
    said = [("ab"[i % 2], 20 * i, f"line {i}") for i in range(10)]
    data = {
        "first": talk("ann", "bo", "2018-05-01T16:00:00Z", said),
        "second": talk("cy", "di", "2018-05-01T17:00:00Z", said),
        "alone": {"start": "2018-05-01T17:00:00Z", "messages": [[message("ed", 0, "anyone?")]]},
    }
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(data))
    return path


def test_a_room_runs_conversations_side_by_side(two_talks: Path) -> None:
    (room,) = read_rooms(two_talks)
    assert room.episode_id == "room-second"  # the one that began last is the agent's and keeps its times
    assert room.ratings == {"witty": 4.0, "upbeat": 5.0}
    shown = room.turns[-1].context["messages"]
    people = {line["speaker"] for line in shown}
    assert AGENT_NAME in people and len(people) == 4
    assert not people & {"ann", "bo", "cy", "di"}
    for turn in room.turns:
        assert turn.context["messages"][-1]["speaker"] != AGENT_NAME
        assert turn.ts <= turn.truth_ts <= room.end
        assert turn.ts.isoformat().startswith("2018-05-01T17:0")
        assert "second" not in turn.subject_ids and set(turn.subject_ids) <= {"ann", "bo", "cy", "di"}


def test_right_is_what_the_agents_person_did(two_talks: Path) -> None:
    (room,) = read_rooms(two_talks)
    lines = {line.ts: line for line in read_conversations(two_talks)[1].lines}
    agent = ({"cy", "di"} - set().union(*(turn.subject_ids for turn in room.turns))).pop()
    answered = {line.ts: following for line, following in pairwise(lines.values())}
    for turn in room.turns:
        following = answered.get(turn.ts) if turn.ts in lines else None
        expected = "RESPOND" if following is not None and following.sender == agent else "IGNORE"
        assert turn.truth == {"action": expected}
        if expected == "RESPOND":
            assert turn.truth_ts == following.ts
    assert {turn.truth["action"] for turn in room.turns} == {"RESPOND", "IGNORE"}


def test_lines_of_one_person_in_a_row_are_one_turn(tmp_path: Path) -> None:
    said = [("a", 0, "hi"), ("a", 5, "there"), *(("ba"[i % 2], 20 + 20 * i, f"line {i}") for i in range(9))]
    later = [("ab"[i % 2], 20 * i, f"other {i}") for i in range(9)]
    path = tmp_path / "dataset.json"
    path.write_text(
        json.dumps(
            {
                "x": talk("cy", "di", "2018-05-01T16:00:00Z", later),
                "y": talk("ann", "bo", "2018-05-01T17:00:00Z", said),
            }
        )
    )
    (room,) = read_rooms(path)
    assert any(line["text"] == "hi\nthere" for turn in room.turns for line in turn.context["messages"])


def test_real_rooms_are_whole_in_time_and_never_share_a_conversation(rooms: list[Episode]) -> None:
    assert len({room.episode_id for room in rooms}) == len(rooms) >= 60
    starts = [room.turns[0].ts for room in rooms]
    share = sum(turn.truth["action"] == "RESPOND" for room in rooms for turn in room.turns) / sum(
        len(room.turns) for room in rooms
    )
    assert 0.15 < share < 0.35
    # Rooms open in order; an excerpt may begin up to an hour into its room.
    assert all(later >= earlier - timedelta(hours=1) for earlier, later in pairwise(starts))
    for room in rooms:
        assert 1 <= len(room.turns) <= MAX_DECISIONS
        assert [turn.ts for turn in room.turns] == sorted(turn.ts for turn in room.turns)
        for turn in room.turns:
            assert len(turn.context["messages"]) <= CONTEXT_TURNS
            assert all(a["speaker"] != b["speaker"] for a, b in pairwise(turn.context["messages"]))
            assert turn.truth_ts >= turn.ts


@pytest.fixture(scope="module")
def real() -> list[conversations.Conversation]:
    return read_conversations()


def test_no_word_of_a_later_room_is_in_an_earlier_one(real: list[conversations.Conversation]) -> None:
    used: dict[str, int] = defaultdict(int)
    usable = [c for c in real if conversations._count_turns(c) >= conversations.MIN_TURNS]
    for group in conversations._deal(usable):
        people = [person for conversation in group for person in conversation.people]
        assert 2 <= len(group) <= 4 and len(set(people)) == len(people)
        for conversation in group:
            used[conversation.conversation_id] += 1
    assert set(used.values()) == {1}


def test_the_same_file_gives_the_same_rooms_and_fewer_are_the_first(rooms: list[Episode]) -> None:
    again = read_rooms(max_turns=200)
    assert again == rooms[: len(again)]


def test_names_are_short_unique_and_stable(real: list[conversations.Conversation]) -> None:
    people = {person for conversation in real for person in conversation.people}
    names = conversations.display_names(people)
    assert len(set(names.values())) == len(people) and AGENT_NAME not in names.values()
    assert all(3 <= len(name) <= 5 and name.isalpha() for name in names.values())


def test_every_question_renders_and_the_rule_answers_in_the_form_of_the_type(rooms: list[Episode]) -> None:
    kind = get_decision_type("should_respond")
    for room in rooms[:20]:
        for turn in room.turns:
            assert kind.render(turn.context)
            decision = decide_should_respond(turn.context)
            assert kind.parse(kind.format_answer(decision)) == decision
            assert kind.normalize(turn.truth) == turn.truth


@pytest.mark.parametrize(
    ("mend", "place"),
    [
        (lambda data: data["first"]["messages"][3][0].pop("sender"), r"first, messages\[3\]\[0\]: 'sender' is missing"),
        (lambda data: data["first"]["messages"][2][0].update(timestamp="noon"), r"messages\[2\]\[0\].*noon"),
        (lambda data: data["second"].pop("start"), r"conversation second: 'start' is missing"),
        (lambda data: data["second"].update(ratings={"witty": "very"}), r"second, ratings.*very"),
        (lambda data: data.update(third=[]), r"conversation third"),
    ],
)
def test_a_broken_conversation_names_file_and_place(two_talks: Path, mend: Any, place: str) -> None:
    data = json.loads(two_talks.read_text())
    mend(data)
    two_talks.write_text(json.dumps(data))
    with pytest.raises(DataPackageError, match=rf"dataset\.json: .*{place}"):
        read_rooms(two_talks)


def test_a_torn_file_names_the_place(two_talks: Path) -> None:
    two_talks.write_text(two_talks.read_text()[:500])
    with pytest.raises(DataPackageError, match=r"dataset\.json is not JSON: .*line 1 column"):
        read_rooms(two_talks)


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dataset_path().is_file()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataPackageError, match="pip install chitchat-dataset"):
        dataset_path()
