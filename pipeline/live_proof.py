"""The live proof: what the decision log shows of the models that have an arm, and what is done about it.

The guard calls `prove_models` at every tick, after the money; a cycle calls it for its canary. A model is looked at
when there is something new in the log, and once an hour, for what only time brings; and not more often than that it
takes a twentieth of the time.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ModelMoved
from pipeline.experiment import STAGES, decide_live, sides_of
from pipeline.life import Lives, MoveOptions, move_model, read_lives
from provider.lifecycle.deployment_state import LIVE_STATES
from provider.lifecycle.shutdown import begin_shutdown
from quality.evaluation.live import LiveDecision
from reasoning.errors import ReasoningError
from storage.layout import Layout
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import ServedModel, note_check, served_models
from storage.ledger.rows import INCUMBENT_STATES, ROUTED_STATES, Deployment, Model, ModelState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from storage.ledger.ledger import Ledger

log = logging.getLogger(__name__)

_HOURLY = timedelta(hours=1)
_REST = 20
"""After a look of so many seconds, 20 times as many pass before the next."""

_PROMOTED_TO: Mapping[ModelState, ModelState] = {
    ModelState.SHADOW: ModelState.CANARY,
    ModelState.CANARY: ModelState.PROMOTED,
    ModelState.DEGRADED: ModelState.PROMOTED,
}


@dataclass(frozen=True, slots=True)
class Proof:
    """What the live test of a model said, and the state that it was moved to (None: it stays)."""

    model_id: str
    decision_type: str
    action: str
    reason: str
    moved_to: ModelState | None


def prove_models(
    data: Path,
    decision_type: str | None = None,
    *,
    now: datetime,
    may_promote: bool = True,
    only_new: bool = False,
) -> list[Proof]:
    """Look at every model that has an arm (of one decision type), and do what its test says; returns what was found.

    With `only_new` models are left out of which nothing new can be said. Without `may_promote` no model gets more
    traffic than it has. A trouble with one model is its reason, and keeps no other waiting.
    """
    found = []
    with open_ledger(data) as ledger:
        states = {row.id: row.state for row in ledger.find(Model, state=ROUTED_STATES)}
        # The incumbent first: a bad one is no measure for its challenger.
        for served in sorted(served_models(ledger, decision_type), key=lambda each: _is_challenger(states, each)):
            mark = _mark_of(data, served)
            is_gone = ledger.get(Model, served.model_id).state not in STAGES  # replaced a moment ago
            if is_gone or (only_new and not _is_due(served, mark, now)):
                continue
            begun = time.monotonic()
            try:
                proof, decision = _prove(data, ledger, served, may_promote=may_promote, now=now)
            except (ReasoningError, OSError, ValueError) as error:
                log.warning("the live test of model %s: %s", served.model_id, error)
                proof = Proof(served.model_id, served.decision_type, "hold", f"not looked at: {error}", None)
                decision = None
            checked = {
                "at": now.isoformat(),
                "mark": mark,
                "seconds": round(time.monotonic() - begun, 3),
                "action": proof.action,
                "reason": proof.reason,
                "numbers": decision.numbers if decision is not None else {},
            }
            note_check(ledger, served.model_id, checked)
            found.append(proof)
    return found


def _is_challenger(states: Mapping[str, ModelState], served: ServedModel) -> bool:
    return states.get(served.model_id) not in INCUMBENT_STATES


def _prove(
    data: Path, ledger: Ledger, served: ServedModel, *, may_promote: bool, now: datetime
) -> tuple[Proof, LiveDecision]:
    lives = read_lives(ledger, served.decision_type)
    served = next(each for each in served_models(ledger, served.decision_type) if each.model_id == served.model_id)
    state = ledger.get(Model, served.model_id).state
    decision = _decide(data, served, state, lives, now=now)
    to = _next_state(state, decision.action, may_promote=may_promote)
    if to is not None:
        replaced = _move(data, ledger, served.model_id, state, to, decision, now=now)
        for model_id in replaced:
            _stop(ledger, model_id, why=f"replaced by {served.model_id}", now=now)
    return Proof(served.model_id, served.decision_type, decision.action, decision.reason, to), decision


def _decide(data: Path, served: ServedModel, state: ModelState, lives: Lives, *, now: datetime) -> LiveDecision:
    """What is to become of a model: harm against the fallback ends it.

    A challenger beside an incumbent is compared with that one as well: harm against either ends it, and it is promoted
    for being as good as the incumbent.
    """
    look = partial(decide_live, data, served, stage=STAGES[state], now=now)
    _, found = look(sides=sides_of(lives, served.model_id))
    beside = lives.incumbent is not None and state == ModelState.CANARY
    if not beside or found.action == "withdraw":
        return found
    _, other = look(sides=sides_of(lives, served.model_id, "incumbent"))
    numbers = {"fallback": found.numbers, "incumbent": other.numbers}
    return LiveDecision(other.action, f"against the incumbent: {other.reason}", numbers)


def _next_state(state: ModelState, action: str, *, may_promote: bool) -> ModelState | None:
    """The state that an action leads to; None to stay."""
    if action == "withdraw":
        return ModelState.REJECTED
    if action == "shrink" and state == ModelState.PROMOTED:
        return ModelState.DEGRADED
    if action == "promote" and may_promote:
        return _PROMOTED_TO.get(state)
    return None


def _move(
    data: Path,
    ledger: Ledger,
    model_id: str,
    state: ModelState,
    to: ModelState,
    decision: LiveDecision,
    *,
    now: datetime,
) -> tuple[str, ...]:
    """Move it, unless somebody else was faster; returns the models that it took the place of."""
    try:
        moved = move_model(
            data,
            ledger,
            model_id,
            to,
            why=decision.reason,
            numbers=decision.numbers,
            now=now,
            options=MoveOptions(expected=(state,), renew=False),
        )
    except ModelMoved as error:
        log.info("%s", error)
        return ()
    finally:
        if to == ModelState.REJECTED:
            _stop(ledger, model_id, why=decision.reason, now=now)
    return moved.replaced


def _stop(ledger: Ledger, model_id: str, *, why: str, now: datetime) -> None:
    """Begin to end what serves a model without traffic; the guard's next ticks end it."""
    if ledger.get(Model, model_id).state in STAGES:
        return
    for row in ledger.find(Deployment, model_id=model_id, state=LIVE_STATES):
        begin_shutdown(ledger, row.id, why=why, now=now)


def _mark_of(data: Path, served: ServedModel) -> str:
    """Changes whenever something is landed that the test of a model reads."""
    layout, first = Layout(data), f"date={served.since.date().isoformat()}"
    folders = (layout.decisions / f"decision_type={served.decision_type}", layout.feedback)
    seen = [
        f"{each.name} {each.stat().st_mtime_ns}"
        for folder in folders
        if folder.is_dir()
        for each in sorted(folder.iterdir())
        if each.name >= first
    ]
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:16]


def _is_due(served: ServedModel, mark: str, now: datetime) -> bool:
    checked = served.checked
    if checked is None:
        return True
    passed = now - datetime.fromisoformat(checked["at"])
    if passed < timedelta(0) or passed >= _HOURLY:
        return True
    return bool(checked["mark"] != mark) and passed >= timedelta(seconds=_REST * checked["seconds"])
