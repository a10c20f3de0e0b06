"""What a flywheel needs to turn: a log of rooms in which the agent is spoken to, or is not; and a local provider."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import orjson

from reasoning.decision_types import DECISION_TYPES
from reasoning.ids import uuid7
from reasoning.io.spool import SegmentWriter
from reasoning.records import Decision, Feedback

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
TOPICS = ("the weather", "a film", "the match", "my garden", "the news", "that recipe", "our holidays", "the traffic")
PEOPLE = ("Ana", "Ben", "Cleo", "Dov", "Eva", "Finn")


def write_log(
    data: Path,
    *,
    episodes: int = 60,
    turns: int = 8,
    until: datetime = NOON,
    seed: int = 0,
    spoken_to_share: float = 0.5,
    name: str = "episode",
) -> int:
    """Spool `episodes` conversations of `turns` decisions each, the last just before `until`; returns the decisions.

    The right answer, a demonstration that comes a minute later, is RESPOND where the last message names the agent. The
    original logic knows nothing of names and answers by the toss of a coin.
    """
    draw, kind = random.Random(seed), DECISION_TYPES["should_respond"]
    writer = SegmentWriter(data / "spool")
    start = until - timedelta(minutes=10 * (episodes * turns + 1))
    for n in range(episodes * turns):
        episode, ts = f"{name}-{n // turns:04}", start + timedelta(minutes=10 * n)
        speakers = draw.sample(PEOPLE, 2)
        spoken_to = draw.random() < spoken_to_share
        said = [{"speaker": draw.choice(speakers), "text": remark(draw)} for _ in range(3)]
        said.append({"speaker": speakers[0], "text": ("Robin, " if spoken_to else f"{speakers[1]}, ") + remark(draw)})
        guess = draw.choice(("RESPOND", "IGNORE"))
        decision_id = uuid7(ts)
        decision = Decision(
            decision_id=decision_id,
            request_id=uuid7(ts),
            ts=ts,
            decision_type="should_respond",
            source="original",
            served=True,
            messages=kind.render({"agent_name": "Robin", "messages": said}),
            agent_id="robin",
            episode_id=episode,
            subject_ids=speakers,
            completion=kind.format_answer(guess),
            decision={"action": guess},
            latency_ms=0.1,
        )
        assert writer.write(decision)
        assert writer.write(_demonstration(decision_id, ts, "RESPOND" if spoken_to else "IGNORE"))
    writer.close()
    return episodes * turns


def write_answers(
    data: Path, *, experiment: str | None, model: str | None, good: int, failed: int, since: datetime | None = None
) -> None:
    """Spool answers of a custom model: `good` ones, and `failed` ones that came too late."""
    since = since or datetime.now(UTC)
    writer = SegmentWriter(data / "spool")
    for n in range(good + failed):
        ts = since + timedelta(seconds=n + 1)
        answered = n < good
        decision = Decision(
            decision_id=uuid7(ts),
            request_id=uuid7(ts),
            ts=ts,
            decision_type="should_respond",
            source="custom",
            served=answered,
            messages=[{"role": "user", "content": f"question {n}"}],
            model=model,
            experiment=experiment,
            arm="custom",
            arm_probability=0.1,
            decision={"action": "RESPOND"} if answered else None,
            valid=answered,
            fallback_reason=None if answered else "timeout",
        )
        assert writer.write(decision)
    writer.close()


@contextmanager
def start_emulator(data: Path, *options: str) -> Iterator[str]:
    """Run a local provider whose replicas start and stop at once; yields its URL."""
    command = [sys.executable, "-m", "emulator", "--data", str(data), "--port", "0"]
    command += ["--cold-start", "0", "--stop-delay", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def remark(draw: random.Random) -> str:
    """Something that anyone may say."""
    words = [f"{draw.choice(('what', 'so much', 'nothing', 'something'))} about {draw.choice(TOPICS)}"]
    words += [f"number {draw.randrange(10_000)}" for _ in range(3)]
    draw.shuffle(words)
    return " and ".join(words)


def _demonstration(decision_id: UUID, ts: datetime, action: str) -> Feedback:
    return Feedback(
        feedback_id=uuid7(ts + timedelta(minutes=1)),
        ts=ts + timedelta(minutes=1),
        metric="demonstration",
        value=orjson.dumps({"action": action}).decode(),
        kind="demonstration",
        decision_id=decision_id,
        author="test",
    )
