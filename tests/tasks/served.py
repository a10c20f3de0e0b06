"""Models that serve by the ledger, and a log of what they answered: for tests of their lives. No processes."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from pipeline.life import MoveOptions, move_model
from provider.endpoint.serving import begin_serving
from reasoning.decision_types import DECISION_TYPES
from reasoning.ids import uuid7
from reasoning.io.spool import SegmentWriter
from reasoning.records import Decision, Feedback
from reasoning.serving.routes import choose_arm, read_routes
from storage.layout import Layout
from storage.ledger.ledger import Ledger
from storage.ledger.lives import Serving
from storage.ledger.rows import ENDPOINT, Model, ModelState
from storage.log.land import land_decisions
from tests.tasks.rooms import NOON

TYPE = "should_respond"


def add_model(ledger: Ledger, name: str) -> Serving:
    """A registered model that serves without traffic; returns how it is asked."""
    row = ledger.add(
        Model,
        id=name,
        state="trained",
        decision_type=TYPE,
        base_model="b",
        model_object_id="o",
        provider=ENDPOINT,
        name=name,
        base_url="http://127.0.0.1:9",
        logprobs="none",
        hourly_usd=0,
        now=NOON,
    )
    begin_serving(ledger, row, now=NOON)
    arm = {"name": "custom", "source": "custom", "model": f"endpoint/{name}", "base_url": "http://127.0.0.1:9"}
    return Serving(arm=arm, salt=name)


def move(data: Path, ledger: Ledger, name: str, to: ModelState, now: datetime = NOON, **options: Any) -> None:
    """`options` are fields of `MoveOptions`."""
    move_model(data, ledger, name, to, why="test", now=now, options=MoveOptions(**options))


def shares(data: Path) -> dict[str | None, float]:
    """Shares by model of the live arms; None is the fallback."""
    path = Layout(data).routes
    routes = read_routes(path).routes if path.exists() else {}
    if TYPE not in routes:
        return {}
    return {arm.model: round(arm.weight, 6) for arm in routes[TYPE].arms if arm.mode == "live"}


def state_of(ledger: Ledger, name: str) -> str:
    return str(ledger.get(Model, name).state)


def write_served(
    data: Path, *, since: datetime, count: int, right: dict[str, float], labelled: bool = True
) -> datetime:
    """Spool questions of one-question episodes, answered by the arm that the route draws, each with a demonstration.

    `right` is the share of right answers by model (`original`: the fallback's). Returns when the last label is settled.
    """
    route = read_routes(Layout(data).routes).routes[TYPE]
    kind, writer = DECISION_TYPES[TYPE], SegmentWriter(data / "spool")
    asked: dict[str, int] = {}
    for n in range(count):
        ts = since + timedelta(minutes=n)
        episode = f"episode-{since:%d%H%M}-{n}"
        arm, probability = choose_arm(route, episode)
        name = arm.model or "original"
        asked[name] = asked.get(name, 0) + 1
        truth = "RESPOND" if n % 2 else "IGNORE"
        is_right = (asked[name] * 7919 % 100) < 100 * right[name]
        action = truth if is_right else ("IGNORE" if truth == "RESPOND" else "RESPOND")
        decision = Decision(
            decision_id=uuid7(ts),
            request_id=uuid7(ts),
            ts=ts,
            decision_type=TYPE,
            source=arm.source,
            served=True,
            messages=kind.render({"agent_name": "Robin", "messages": [{"speaker": "Ana", "text": f"{n}"}]}),
            model=arm.model,
            episode_id=episode,
            experiment=route.experiment,
            arm=arm.name,
            arm_probability=probability,
            completion=kind.format_answer(action),
            decision={"action": action},
            valid=True,
            latency_ms=5.0,
        )
        assert writer.write(decision)
        if labelled:
            value = orjson.dumps({"action": truth}).decode()
            given = ts + timedelta(seconds=30)
            feedback = Feedback(
                feedback_id=uuid7(given),
                ts=given,
                metric="demonstration",
                value=value,
                kind="demonstration",
                decision_id=decision.decision_id,
            )
            assert writer.write(feedback)
    writer.close()
    land_decisions(data)
    return since + timedelta(minutes=count, hours=2)
