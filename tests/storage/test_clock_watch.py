"""A machine whose clock jumps ahead does not expire the log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage.errors import ClockJumped
from storage.layout import Layout
from storage.log import clock_watch
from storage.log.clocks import clock_limits
from storage.log.expire import expire_decisions
from storage.log.land import land_decisions
from tests.storage.logs import make_decision, write_segment

DAY = timedelta(days=1)
START = datetime(2026, 11, 1, 3, tzinfo=UTC)


class Machine:
    """The clocks of a machine: `wall` may be set, `steady` only passes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.steady, self.boot = START, 100.0, "boot-1"
        monkeypatch.setattr(clock_watch, "steady", lambda: self.steady)
        monkeypatch.setattr(clock_watch, "boot_id", lambda: self.boot)

    def wait(self, time: timedelta) -> None:
        self.wall += time
        self.steady += time.total_seconds()

    def reboot(self, off: timedelta = timedelta()) -> None:
        self.boot, self.steady = self.boot + "+", 1.0
        self.wall += off


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def check(folder: Path, machine: Machine, newest: datetime | None = None) -> bool:
    """Is the clock believed?"""
    try:
        clock_watch.check_clock(Layout(folder), clock_limits(machine.wall), newest.date() if newest else None)
    except ClockJumped:
        return False
    return True


def test_a_clock_that_goes_on_is_believed(tmp_path: Path, machine: Machine):
    for days in (1, 1, 7, 400):  # also after a long pause of a machine that stayed on
        assert check(tmp_path, machine)
        machine.wait(days * DAY)
    assert check(tmp_path, machine)
    machine.reboot()
    assert check(tmp_path, machine)
    machine.reboot(off=20 * DAY)
    assert check(tmp_path, machine)


@pytest.mark.parametrize("reboot", [False, True])
def test_a_jump_is_held_back_for_a_day_and_believed_if_it_lasts(tmp_path: Path, machine: Machine, reboot: bool):
    assert check(tmp_path, machine)
    machine.wait(DAY)
    machine.wall += 400 * DAY
    if reboot:
        machine.reboot()
    assert not check(tmp_path, machine)
    machine.wait(timedelta(hours=3))
    assert not check(tmp_path, machine)
    machine.wait(timedelta(hours=20))
    assert check(tmp_path, machine)


def test_a_clock_that_is_set_right_again_is_believed_at_once(tmp_path: Path, machine: Machine):
    assert check(tmp_path, machine)
    machine.wall += 400 * DAY
    assert not check(tmp_path, machine)
    machine.wall -= 400 * DAY
    machine.wait(DAY)
    assert check(tmp_path, machine)


def test_each_new_jump_begins_a_hold_of_its_own(tmp_path: Path, machine: Machine):
    assert check(tmp_path, machine)
    machine.wall += 400 * DAY
    assert not check(tmp_path, machine)
    machine.wait(DAY)
    machine.wall += 400 * DAY
    assert not check(tmp_path, machine)


def test_before_the_first_expiry_the_newest_decisions_are_the_sign_of_life(tmp_path: Path, machine: Machine):
    assert not check(tmp_path, machine, newest=START - 31 * DAY - DAY)
    (tmp_path / ".expiry-clock.json").unlink()
    assert check(tmp_path, machine, newest=START - 20 * DAY)


def test_a_damaged_mark_is_made_anew(tmp_path: Path, machine: Machine):
    (tmp_path / ".expiry-clock.json").write_text('{"last": {"wall": "yesterday"}')
    assert check(tmp_path, machine)
    machine.wall += 400 * DAY
    assert not check(tmp_path, machine)


def test_expiry_deletes_nothing_while_the_clock_is_not_believed(tmp_path: Path):
    long_ago = datetime.now(UTC) - timedelta(days=300)
    write_segment(tmp_path, [make_decision(long_ago)])
    land_decisions(tmp_path, now=long_ago)
    before = sorted(path for path in tmp_path.rglob("*.parquet"))
    with pytest.raises(ClockJumped, match="nothing was deleted; set the clock right"):
        expire_decisions(tmp_path, retention_days=30)
    assert sorted(tmp_path.rglob("*.parquet")) == before
    assert expire_decisions(tmp_path, retention_days=30, now=datetime.now(UTC)).rows["decisions"] == 1
