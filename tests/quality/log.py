"""A decision log made by the real writer and the real landing."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from reasoning.decision_types import get_decision_type
from reasoning.ids import uuid7
from reasoning.io.spool import SegmentWriter
from reasoning.records import Decision, Feedback
from storage.layout import Layout
from storage.log.land import land_decisions

START = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
WORDS = """
river window copper ladder market garden sudden yellow thunder pocket simple engine branch winter castle bottle
travel summer rabbit island silver candle bridge forest letter kitchen morning planet guitar shadow monkey
orange school doctor camera button ticket record flower people dinner coffee basket pencil mirror carpet number
system
""".split()  # noqa: SIM905 - fifty words as a list would be fifty lines


@dataclass
class Turn:
    """A question with what both sides answered and what was right."""

    ts: datetime
    episode: str | None
    context: dict[str, Any]
    original: Any
    right: Any = None
    custom: Any = None
    custom_confidence: float | None = None
    served: str = "original"
    decision_type: str = "should_respond"
    extra: dict[str, Any] = field(default_factory=dict)


def records(turn: Turn) -> list[Decision | Feedback]:
    """The records of a turn, as the client writes them."""
    kind = get_decision_type(turn.decision_type)
    messages = kind.render(turn.context)
    request_id = uuid7(turn.ts)
    found: list[Decision | Feedback] = []
    first = None
    for source, answer in (("original", turn.original), ("custom", turn.custom)):
        if answer is None:
            continue
        decision = kind.normalize(answer)
        record = Decision(
            decision_id=uuid7(turn.ts),
            request_id=request_id,
            ts=turn.ts,
            decision_type=turn.decision_type,
            source=source,  # type: ignore[arg-type]
            served=turn.served == source,
            messages=messages,
            agent_id="ada",
            room_id="room",
            episode_id=turn.episode,
            model=None if source == "original" else "model-1",
            arm=source,
            arm_probability=0.5,
            completion=kind.format_answer(decision),
            decision=decision,
            confidence=turn.custom_confidence if source == "custom" else None,
            latency_ms=2.0 if source == "original" else 40.0,
            cost_usd=0.0 if source == "original" else 0.0001,
            **turn.extra,
        )
        found.append(record)
        if record.served or first is None:
            first = record
    if turn.right is not None and first is not None:
        found.append(
            Feedback(
                feedback_id=uuid7(turn.ts + timedelta(minutes=1)),
                ts=turn.ts + timedelta(minutes=1),
                metric="demonstration",
                value=_json(kind.normalize(turn.right)),
                kind="demonstration",
                decision_id=first.decision_id,
            )
        )
    return found


def _json(value: Any) -> str:
    import orjson

    return orjson.dumps(value).decode()


def land(data: Path, batches: Iterable[Sequence[Decision | Feedback]]) -> None:
    """Write each batch to a segment of its own and land it."""
    layout = Layout(data).create()
    for batch in batches:
        writer = SegmentWriter(layout.spool)
        for record in batch:
            assert writer.write(record)
        writer.close()
        land_decisions(data)


def sentence(rng: random.Random, words: int = 12) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def conversations(
    episodes: int, turns: int = 5, *, seed: int = 0, labelled: bool = True, start: datetime = START
) -> list[Turn]:
    """Talks of which the last message holds the answer: it is RESPOND where it ends with a question mark."""
    rng = random.Random(seed)
    found = []
    for number in range(episodes):
        ts = start + timedelta(hours=3 * number)
        messages: list[dict[str, str]] = []
        for turn in range(turns):
            ask = rng.random() < 0.4
            messages.append({"speaker": f"p{rng.randrange(3)}", "text": sentence(rng) + ("?" if ask else ".")})
            right = "RESPOND" if ask else "IGNORE"
            guess = right if rng.random() < 0.7 else ("IGNORE" if ask else "RESPOND")
            found.append(
                Turn(
                    ts=ts + timedelta(minutes=turn),
                    episode=f"episode-{seed}-{number}",
                    context={"agent_name": "Ada", "messages": list(messages)},
                    original={"action": guess},
                    right={"action": right} if labelled else None,
                )
            )
    return found
