"""Running replicas: a deployment's state and its cost are what their rows say at the time of asking.

A replica is requested, becomes ready when its cold start is over, and stops. Nothing has to happen at these moments:
the state is derived from (rows, now), so it is right however far the clock was moved.
"""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass
from typing import Any

from emulator.world.context import Emulator
from emulator.world.forms import form
from emulator.world.state import new_id

_GIVE_UP_SECONDS = 6 * 3600.0
_GAVE_UP = "no replica became ready within 6 hours"


@dataclass(frozen=True)
class Status:
    """The state of a deployment, and how many replicas are ready and scheduled."""

    state: str
    message: str
    ready: int
    scheduled: int

    @property
    def stopped(self) -> bool:
        return self.state == "DEPLOYMENT_STATE_STOPPED"

    @property
    def failed(self) -> bool:
        return self.state == "DEPLOYMENT_STATE_FAILED"


def scale(
    emulator: Emulator,
    deployment: sqlite3.Row | dict[str, Any],
    replicas: int,
    *,
    capacity: bool = True,
    cold_start: float,
) -> None:
    """Bring the deployment's live replicas to `replicas`, newest stopped first. The caller holds the transaction.

    Without `capacity` the new ones wait for hardware: `cold_start` seconds, or for good when it is infinite.
    """
    now = emulator.clock.timestamp()
    live = _live(emulator, deployment["id"], now)
    for replica in live[replicas:]:
        emulator.state.update("replicas", replica["id"], stopped_at=now + emulator.settings.stop_seconds)
    for _ in range(replicas - len(live)):
        emulator.state.insert(
            "replicas",
            id=new_id("rep_"),
            deployment_id=deployment["id"],
            deployment_name=deployment["name"],
            hardware=deployment["hardware"],
            price_cents_per_hour=deployment["price_cents_per_hour"],
            requested_at=now,
            ready_at=None if math.isinf(cold_start) else now + cold_start,
            has_capacity=int(capacity),
        )


def _live(emulator: Emulator, deployment_id: str, now: float) -> list[sqlite3.Row]:
    """Replicas that no stop has been ordered for, oldest first."""
    return emulator.state.rows(
        "SELECT * FROM replicas WHERE deployment_id = ? AND stopped_at IS NULL ORDER BY requested_at, rowid",
        deployment_id,
    )


def read_status(emulator: Emulator, deployment: sqlite3.Row) -> Status:
    """The deployment's state now."""
    now = emulator.clock.timestamp()
    rows = emulator.state.rows(
        "SELECT * FROM replicas WHERE deployment_id = ? AND (stopped_at IS NULL OR stopped_at > ?)",
        deployment["id"],
        now,
    )
    if form(emulator, "failed") == "terminal" and _has_failed(emulator, deployment["id"], now):
        return Status("DEPLOYMENT_STATE_FAILED", _GAVE_UP, 0, 0)
    live = [row for row in rows if row["stopped_at"] is None]
    ready = sum(row["ready_at"] is not None and row["ready_at"] <= now for row in live)
    starting = [row for row in live if row["ready_at"] is None or row["ready_at"] > now]
    waiting = [row for row in starting if not row["has_capacity"]]
    scheduled = len(live) - len(waiting)
    if not live:
        if rows:
            return Status("DEPLOYMENT_STATE_STOPPING", "replicas are shutting down", 0, 0)
        return Status("DEPLOYMENT_STATE_STOPPED", "the deployment is stopped", 0, 0)
    if ready == len(live) == len(rows):
        return Status("DEPLOYMENT_STATE_READY", "all replicas are ready", ready, scheduled)
    if waiting:
        if not ready and now - min(row["requested_at"] for row in waiting) >= _GIVE_UP_SECONDS:
            return Status("DEPLOYMENT_STATE_FAILED", _GAVE_UP, 0, 0)
        return Status("DEPLOYMENT_STATE_DEGRADED", "insufficient GPU capacity", ready, scheduled)
    if ready:
        return Status("DEPLOYMENT_STATE_SCALING", f"{ready} of {len(live)} replicas are ready", ready, scheduled)
    return Status("DEPLOYMENT_STATE_PROVISIONING", "replicas are starting", 0, scheduled)


def _has_failed(emulator: Emulator, deployment_id: str, now: float) -> bool:
    """Did it wait for hardware for six hours without one ready replica? That does not change any more."""
    row = emulator.state.row(
        """SELECT max(coalesce(ready_at <= min(coalesce(stopped_at, ?1), ?1), 0)) AS served,
                  max(min(coalesce(stopped_at, ?1), ?1) - requested_at) FILTER (WHERE NOT has_capacity) AS waited
           FROM replicas WHERE deployment_id = ?2""",
        now,
        deployment_id,
    )
    return row is not None and not row["served"] and (row["waited"] or 0) >= _GIVE_UP_SECONDS


def stop_inactive(emulator: Emulator) -> None:
    """Stop what its `inactiveTimeout` says, at the moment it says. Only with `honour_inactive_timeout`.

    Users found in 2026-08 that the real service accepts the setting and does nothing, so that is the default here too.
    """
    if not emulator.settings.honour_inactive_timeout:
        return
    now = emulator.clock.timestamp()
    for row in emulator.state.rows(
        """SELECT d.id, d.inactive_timeout, max(coalesce(d.last_request_at, 0), max(r.ready_at)) AS active_at
           FROM deployments d JOIN replicas r ON r.deployment_id = d.id
           WHERE d.inactive_timeout > 0 AND r.stopped_at IS NULL AND r.ready_at <= ? GROUP BY d.id""",
        now,
    ):
        stops_at = row["active_at"] + row["inactive_timeout"] * 60
        if stops_at <= now:
            with emulator.state.transaction():
                emulator.state.execute(
                    "UPDATE replicas SET stopped_at = ? WHERE deployment_id = ? AND stopped_at IS NULL",
                    stops_at,
                    row["id"],
                )
                emulator.state.execute(
                    """UPDATE deployments SET replicas = 0, version = version + 1, updated_at = ?,
                       autoscaling = json_set(autoscaling, '$.minReplicas', 0, '$.maxReplicas', 0) WHERE id = ?""",
                    stops_at,
                    row["id"],
                )
