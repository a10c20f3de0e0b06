"""`[serving]` of reasoning.toml: when models run, and whether they share.

================  =========================================================================================
key               meaning (default)
================  =========================================================================================
`idle_minutes`    a promoted model that nobody asked for so long is put to sleep; 0: never (15)
`wake_decisions`  so many decisions of its type, while it sleeps, within ... (10)
`wake_minutes`    ... so many minutes wake it, budgets permitting (10)
`serve_between`   the hours in which it may run, `"07:00-23:00 Europe/Berlin"` (all)
`share`           attach it to a deployment of its base model beside others, where the provider offers it (true)
================  =========================================================================================

`[serving.<decision type>]` has the same keys for one type. The first decision after a quiet time does not wake a model:
its agents are answered by their own logic at once, and a cold start takes minutes and costs money.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, time
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from provider.errors import ProviderSettingsError
from reasoning.config import settings_file
from reasoning.toml_tables import number, read_toml, refuse_unknown, switch, table, text

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d) (\S+)")
_KEYS = ("idle_minutes", "wake_decisions", "wake_minutes", "serve_between", "share")


@dataclass(frozen=True, slots=True)
class Hours:
    """The hours of each day in which a model may run, by the clock on the wall of a time zone.

    `end` before `start`: over midnight. An hour that the clock goes through twice in autumn counts both times; one that
    it leaves out in spring does not exist.
    """

    start: time
    end: time
    zone: ZoneInfo

    def are_open(self, now: datetime) -> bool:
        """Is `now` (aware) within them?"""
        clock = now.astimezone(self.zone).time()
        if self.start < self.end:
            return self.start <= clock < self.end
        return clock >= self.start or clock < self.end

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M} {self.zone.key}"


@dataclass(frozen=True, slots=True)
class TypeServing:
    """When the model of a decision type runs. `idle_minutes` None: it is never put to sleep for idling."""

    idle_minutes: float | None = 15.0
    wake_decisions: int = 10
    wake_minutes: float = 10.0
    serve_between: Hours | None = None
    share: bool = True

    def is_open(self, now: datetime) -> bool:
        """May it run at `now`, by the calendar?"""
        return self.serve_between is None or self.serve_between.are_open(now)


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """The settings of every decision type."""

    default: TypeServing = TypeServing()
    types: Mapping[str, TypeServing] = field(default_factory=dict)

    def of(self, decision_type: str | None) -> TypeServing:
        """Those of a type."""
        return self.types.get(decision_type or "", self.default)

    def with_idle(self, minutes: float | None) -> ServingSettings:
        """The same, with other idle minutes for every type."""
        return ServingSettings(
            replace(self.default, idle_minutes=minutes),
            {name: replace(each, idle_minutes=minutes) for name, each in self.types.items()},
        )


def load_serving(path: Path | str | None = None) -> ServingSettings:
    """The settings of `[serving]`. Raises ProviderSettingsError, naming file, key and value."""
    file = Path(path) if path else settings_file()
    try:
        raw = read_toml(file, ProviderSettingsError)
    except FileNotFoundError:
        return ServingSettings()
    settings = dict(table(file, "serving", raw.get("serving", {}), ProviderSettingsError))
    of_types = {name: settings.pop(name) for name, value in list(settings.items()) if isinstance(value, dict)}
    default = _read(f"{file}: [serving]", settings, TypeServing())
    return ServingSettings(
        default,
        {
            name: _read(
                f"{file}: [serving.{name}]", table(file, f"serving.{name}", value, ProviderSettingsError), default
            )
            for name, value in of_types.items()
        },
    )


def _read(place: str, raw: Mapping[str, Any], default: TypeServing) -> TypeServing:
    refuse_unknown(place, raw, _KEYS, ProviderSettingsError)
    found: dict[str, Any] = {}
    if "idle_minutes" in raw:
        idle = number(f"{place} idle_minutes", raw["idle_minutes"], float, 0, 44_640, ProviderSettingsError)
        found["idle_minutes"] = idle or None
    if "wake_decisions" in raw:
        wanted = number(f"{place} wake_decisions", raw["wake_decisions"], int, 1, 1_000_000, ProviderSettingsError)
        found["wake_decisions"] = wanted
    if "wake_minutes" in raw:
        minutes = number(f"{place} wake_minutes", raw["wake_minutes"], float, 1, 1440, ProviderSettingsError)
        found["wake_minutes"] = minutes
    if "serve_between" in raw:
        said = text(f"{place} serve_between", raw["serve_between"], ProviderSettingsError)
        found["serve_between"] = read_hours(f"{place} serve_between", said)
    if "share" in raw:
        found["share"] = switch(f"{place} share", raw["share"], ProviderSettingsError)
    return replace(default, **found)


def read_hours(place: str, said: str) -> Hours:
    """`"07:00-23:00 Europe/Berlin"` as `Hours`. Raises ProviderSettingsError; `place` is where it stands."""
    found = _HOURS.fullmatch(said.strip())
    hint = 'write it as "07:00-23:00 Europe/Berlin"'
    if found is None:
        raise ProviderSettingsError(f"{place}: {said!r} is not a time of day to another and a time zone; {hint}")
    try:
        zone = ZoneInfo(found[5])
    except (LookupError, ValueError, OSError):
        raise ProviderSettingsError(
            f"{place}: {found[5]!r} is no time zone that this machine knows; {hint}, or install tzdata"
        ) from None
    start, end = time(int(found[1]), int(found[2])), time(int(found[3]), int(found[4]))
    if start == end:
        raise ProviderSettingsError(f"{place}: {said!r} begins and ends at one time; leave it out to serve all day")
    return Hours(start, end, zone)
