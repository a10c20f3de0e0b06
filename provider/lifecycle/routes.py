"""The lease: `routes.json` gives custom models their traffic, and only until it expires.

Only who guards the cost renews it. A guard that died, or that sees anything wrong, lets it run out, and every decision
is the agents' own again. All changes go through a file lock beside it, so that two of them cannot undo each other.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from reasoning.errors import RoutesError
from reasoning.serving.routes import MAX_LEASE, Route, Routes, read_routes, write_routes
from storage.files import make_folder, open_private

LEASE = timedelta(minutes=3)
"""Three missed ticks of a guard that comes every minute."""


def publish_route(
    path: Path | str, decision_type: str, route: Route, *, lease: timedelta = LEASE, now: datetime | None = None
) -> Routes:
    """Give a decision type its route, and all routes a lease from `now` on."""
    now = now or datetime.now(UTC)
    return _change(path, now, lease, lambda routes: {**routes, decision_type: route})


def restore_route(path: Path | str, decision_type: str, route: Route, *, now: datetime | None = None) -> None:
    """Give a decision type its route without a lease: who guards the cost renews it when all is well."""
    _change(path, now, None, lambda routes: {**routes, decision_type: route})


def withdraw_model(path: Path | str, model: str, *, now: datetime | None = None) -> list[tuple[str, str]]:
    """Take every arm of a model (`<project slug>/<name>`) out; see `keep_models`."""
    return keep_models(path, lambda _, name: name != model, now=now)


def keep_models(
    path: Path | str,
    keep: Callable[[str, str], bool],
    *,
    pause: Callable[[str], bool] = lambda model: False,
    now: datetime | None = None,
) -> list[tuple[str, str]]:
    """Take out the custom arms that `keep(decision_type, model)` says no to; returns these pairs.

    A route left without a custom arm goes with them: its decisions are the original's. If `pause(model)` says yes to
    all of its models, `resume_routes` may give it back.
    """
    withdrawn: list[tuple[str, str]] = []

    def change(routes: Mapping[str, Route]) -> dict[str, Route]:
        kept = {}
        for name, route in routes.items():
            out = [arm for arm in route.arms if arm.source == "custom" and not keep(name, arm.model or "")]
            withdrawn.extend((name, arm.model or "") for arm in out)
            arms = tuple(arm for arm in route.arms if arm not in out)
            if any(arm.source == "custom" for arm in arms):
                kept[name] = replace(route, arms=arms)
        paused = {name: route for name, route in routes.items() if name not in kept and all(map(pause, _models(route)))}
        if paused:  # written before they go, so that a death in between loses none
            _write_paused(path, {**_read_paused(path), **paused}, now)
        return kept

    if Path(path).exists():
        _change(path, now, None, change)
    return withdrawn


def resume_routes(
    path: Path | str,
    keep: Callable[[str, str], bool],
    *,
    pause: Callable[[str], bool],
    now: datetime | None = None,
) -> list[str]:
    """Give back the paused routes whose models `keep` says yes to again; returns their decision types.

    Forgotten are those whose model is neither kept nor paused any more, and whose decision type has another route by
    now.
    """
    paused = _read_paused(path)
    if not paused:
        return []
    back = {name: route for name, route in paused.items() if all(keep(name, model) for model in _models(route))}
    waiting = {name: route for name, route in paused.items() if name not in back and all(map(pause, _models(route)))}
    resumed: list[str] = []

    def change(routes: Mapping[str, Route]) -> dict[str, Route]:
        resumed.extend(name for name in back if name not in routes)
        for name in routes:
            waiting.pop(name, None)
        return {**back, **routes}

    _change(path, now, None, change)
    _write_paused(path, waiting, now)
    return resumed


def forget_paused(path: Path | str, decision_type: str, *, now: datetime | None = None) -> None:
    """Give no paused route of a decision type back any more: another was decided on."""
    paused = _read_paused(path)
    if decision_type in paused:
        _write_paused(path, {name: route for name, route in paused.items() if name != decision_type}, now)


def _models(route: Route) -> list[str]:
    return [arm.model or "" for arm in route.arms if arm.source == "custom"]


def _read_paused(path: Path | str) -> Mapping[str, Route]:
    try:
        return read_routes(_paused_path(path)).routes
    except (FileNotFoundError, RoutesError):  # what cannot be read is not given back
        return {}


def _write_paused(path: Path | str, routes: Mapping[str, Route], now: datetime | None) -> None:
    if routes:
        now = now or datetime.now(UTC)
        write_routes(_paused_path(path), Routes(issued_at=now, expires_at=now, routes=routes))
    else:
        _paused_path(path).unlink(missing_ok=True)


def _paused_path(path: Path | str) -> Path:
    return Path(path).with_suffix(".paused.json")


def renew_lease(path: Path | str, *, lease: timedelta = LEASE, now: datetime | None = None) -> Routes | None:
    """Let the routes as they are live until `lease` from `now`. Without a routes file there is nothing to renew."""
    if not Path(path).exists():
        return None
    return _change(path, now, lease, lambda routes: routes)


def routed_models(path: Path | str, *, now: datetime | None = None) -> Collection[str]:
    """Names of the models that the lease gives traffic to at `now`; none when it has expired, or there is none."""
    now = now or datetime.now(UTC)
    try:
        routes = read_routes(path)
    except FileNotFoundError:
        return frozenset()
    if not routes.in_force(now):
        return frozenset()
    arms = (arm for route in routes.routes.values() for arm in route.arms)
    return frozenset(arm.model for arm in arms if arm.model and arm.mode == "live" and arm.weight > 0)


def longest_deadline(path: Path | str, model: str) -> float:
    """Seconds after which no request that a route sends to this model now is under way any more; 0 without one."""
    try:
        routes = read_routes(path).routes.values()
    except (FileNotFoundError, RoutesError):
        return 0.0
    return max((route.deadline_ms / 1000 for route in routes if any(a.model == model for a in route.arms)), default=0.0)


def _change(
    path: Path | str,
    now: datetime | None,
    lease: timedelta | None,
    change: Callable[[Mapping[str, Route]], Mapping[str, Route]],
) -> Routes:
    path, now = Path(path), now or datetime.now(UTC)
    if lease is not None and lease > MAX_LEASE:
        raise RoutesError(f"a lease of {lease}: clients follow at most {MAX_LEASE}; choose a shorter one")
    with _locked(path):
        try:
            before = read_routes(path)
        except FileNotFoundError:
            before = Routes(issued_at=now, expires_at=now)
        except RoutesError:
            if lease is not None:
                raise
            before = Routes(issued_at=now, expires_at=now)  # nobody can follow it: withdrawing clears it
            _write(path, before)
        after = replace(before, routes=change(before.routes))
        if lease is not None:
            after = replace(after, issued_at=now, expires_at=now + lease)
        if after != before:
            _write(path, after)
        return after


def _write(path: Path, routes: Routes) -> None:
    try:
        write_routes(path, routes)
    except OSError as error:
        raise RoutesError(
            f"{path} cannot be written: {error.strerror}. Until it can, clients follow what it was, and that until "
            "its lease has run out: make it a file, and its folder writable"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    make_folder(path.parent)
    with open(path.with_name(f"{path.name}.lock"), "ab", opener=open_private) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
