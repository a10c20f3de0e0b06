"""`[serving]` of reasoning.toml: idle minutes, demand, and the calendar with its changes of the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from provider.errors import ProviderSettingsError
from provider.serving import load_serving, read_hours


def load(tmp_path: Path, content: str) -> object:
    file = tmp_path / "reasoning.toml"
    file.write_text(content)
    return load_serving(file)


def test_a_type_has_the_settings_of_all_and_its_own(tmp_path: Path) -> None:
    file = tmp_path / "reasoning.toml"
    assert load_serving(file).of("planning").idle_minutes == 15
    file.write_text(
        "[serving]\nidle_minutes = 20\nshare = false\n[serving.planning]\nidle_minutes = 0\nwake_decisions = 3\n"
        'serve_between = "07:00-23:00 Europe/Berlin"\n'
    )
    settings = load_serving(file)
    assert (settings.of("planning").idle_minutes, settings.of("coding").idle_minutes) == (None, 20)
    assert (settings.of("planning").share, settings.of("planning").wake_decisions) == (False, 3)
    assert str(settings.of("planning").serve_between) == "07:00-23:00 Europe/Berlin"
    assert settings.of("coding").serve_between is None
    assert settings.with_idle(None).of("coding").idle_minutes is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[serving]\nidle = 5", "idle"),
        ("[serving]\nidle_minutes = -1", "idle_minutes"),
        ('[serving.planning]\nserve_between = "7-23"', "planning"),
        ('[serving]\nserve_between = "07:00-23:00 Mars/Base"', "Mars/Base"),
        ('[serving]\nserve_between = "07:00-24:00 UTC"', "is not a time of day"),
        ('[serving]\nserve_between = "07:00-07:00 UTC"', "leave it out"),
        ("[serving]\nwake_decisions = 0", "wake_decisions"),
        ("serving = 3", "serving"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(ProviderSettingsError, match=said):
        load(tmp_path, content)


def open_minutes(said: str, day: datetime) -> int:
    hours = read_hours("x", said)
    return sum(hours.are_open(day + timedelta(minutes=minute)) for minute in range(24 * 60))


@pytest.mark.parametrize(
    ("said", "minutes"),
    [
        ("07:00-23:00 Europe/Berlin", 960),
        ("22:00-06:00 Europe/Berlin", 480),
        ("18:00-00:00 UTC", 360),
        ("23:59-00:00 UTC", 1),
    ],
)
def test_an_ordinary_day(said: str, minutes: int) -> None:
    assert open_minutes(said, datetime(2026, 11, 22, 12, tzinfo=UTC)) == minutes


@pytest.mark.parametrize(
    ("said", "day", "minutes"),
    [  # 2026-03-29 02:00 becomes 03:00 in Berlin, 2026-10-25 03:00 becomes 02:00 again
        ("22:00-06:00 Europe/Berlin", datetime(2026, 3, 28, 12, tzinfo=UTC), 420),
        ("22:00-06:00 Europe/Berlin", datetime(2026, 10, 24, 12, tzinfo=UTC), 540),
        ("02:00-03:00 Europe/Berlin", datetime(2026, 3, 28, 12, tzinfo=UTC), 0),
        ("02:00-03:00 Europe/Berlin", datetime(2026, 10, 24, 12, tzinfo=UTC), 120),
        ("07:00-23:00 Europe/Berlin", datetime(2026, 3, 29, 0, tzinfo=UTC), 960),
    ],
)
def test_days_on_which_the_clock_is_changed(said: str, day: datetime, minutes: int) -> None:
    assert open_minutes(said, day) == minutes


def test_it_opens_at_its_time_in_summer_and_in_winter() -> None:
    hours = read_hours("x", "07:00-23:00 Europe/Berlin")
    assert hours.are_open(datetime(2026, 7, 1, 5, 0, tzinfo=UTC))
    assert not hours.are_open(datetime(2026, 7, 1, 4, 59, tzinfo=UTC))
    assert hours.are_open(datetime(2026, 12, 1, 6, 0, tzinfo=UTC))
    assert not hours.are_open(datetime(2026, 12, 1, 5, 59, tzinfo=UTC))
