from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.errors import RoutesError
from reasoning.serving.lease import RoutesLease
from reasoning.serving.routes import Arm, Route, Routes, choose_arm, parse_routes, read_routes, write_routes

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
CUSTOM = Arm("custom", "custom", 0.25, model="acme/small", base_url="http://h:1", input_usd_per_mtok="0.48")
ORIGINAL = Arm("original", "original", 0.75)
SHADOW = Arm("next", "custom", 5, "shadow", model="acme/next", base_url="http://h:1")


def some_routes(**changes: Any) -> Routes:
    route = Route((CUSTOM, ORIGINAL, SHADOW), deadline_ms=500, min_confidence=0.5, experiment="e", salt="s")
    return Routes(
        **{"issued_at": NOW, "expires_at": NOW + timedelta(minutes=2), "routes": {"planning": route}} | changes
    )


def test_routes_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_routes(tmp_path / "a" / "routes.json", some_routes())
    assert read_routes(tmp_path / "a" / "routes.json") == some_routes()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["routes.json"]


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "routes.json"
    write_routes(path, some_routes())
    for name in ("fsync", "fchmod"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(OSError, match="No space"):
                write_routes(path, some_routes(expires_at=NOW))
        assert [p.name for p in tmp_path.iterdir()] == ["routes.json"] and read_routes(path) == some_routes()


def test_routes_that_no_reader_takes_are_not_written(tmp_path: Path) -> None:
    bad = some_routes(routes={"planning": Route((Arm("custom", "custom", 1.0, base_url="http://h"),))})
    with pytest.raises(RoutesError, match="a custom arm needs a model"):
        write_routes(tmp_path / "routes.json", bad)
    assert [p.name for p in tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(version=2), "version: 2 is not 1"),
        (lambda r: r.update(expires_at="soon"), "expires_at: 'soon'"),
        (lambda r: r.update(expires_at="2026-11-22T10:00:00"), "expires_at: needs a time zone"),
        (lambda r: r.update(routes=[]), "routes: an object"),
        (lambda r: r["routes"]["planning"].update(arms=[]), r"routes.planning.arms: a list"),
        (lambda r: r["routes"]["planning"].update(deadline_ms=0), "deadline_ms: must be above 0"),
        (lambda r: r["routes"]["planning"].update(deadline_ms="5"), "deadline_ms: '5' is not a number"),
        (lambda r: r["routes"]["planning"].update(min_confidence=2), r"min_confidence: must be within 0\.\.1"),
        (
            lambda r: r["routes"]["planning"]["arms"].append(r["routes"]["planning"]["arms"][0]),
            "two arms have one name",
        ),
        (
            lambda r: r["routes"]["planning"]["arms"][0].update(base_url="http://h/v1"),
            r"arms\[0\].base_url: must not end",
        ),
        (
            lambda r: r["routes"]["planning"]["arms"][0].update(base_url="file:///x"),
            r"arms\[0\].base_url: needs an http",
        ),
        (lambda r: r["routes"]["planning"]["arms"][0].update(source="magic"), r"arms\[0\].source: 'magic'"),
        (lambda r: r["routes"]["planning"]["arms"][0].update(weight=-1), r"arms\[0\].weight: must not be negative"),
        (lambda r: r["routes"]["planning"]["arms"][0].update(input_usd_per_mtok="x"), "is not a decimal as text"),
        (lambda r: r["routes"]["planning"]["arms"][0].update(input_usd_per_mtok=0.5), "is not a decimal as text"),
    ],
)
def test_a_wrong_file_is_refused_at_its_place(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "routes.json"
    write_routes(path, some_routes())
    raw = orjson.loads(path.read_bytes())
    change(raw)
    path.write_bytes(orjson.dumps(raw))
    with pytest.raises(RoutesError, match=message) as caught:
        read_routes(path)
    assert str(path) in str(caught.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    write_routes(tmp_path / "r", some_routes())
    text = (tmp_path / "r").read_bytes().rstrip()
    for end in range(len(text)):
        with pytest.raises(RoutesError):
            parse_routes(text[:end])


def test_arms_are_drawn_by_weight_and_stay() -> None:
    route = some_routes().routes["planning"]
    drawn = Counter(choose_arm(route, f"episode-{i}")[0].name for i in range(20_000))
    assert set(drawn) == {"custom", "original"}
    assert abs(drawn["custom"] / 20_000 - 0.25) < 0.0125  # four standard errors
    assert choose_arm(route, "episode-1") == choose_arm(route, "episode-1")
    assert choose_arm(Route((CUSTOM,)), "x") == (CUSTOM, 1.0)


def test_the_draw_is_the_documented_one() -> None:
    # SHA-256("s\0a") starts with 0x62: 0.38 of the way, past the first quarter.
    import hashlib

    point = int.from_bytes(hashlib.sha256(b"s\0a").digest()[:8], "big") / 2**64
    arm, probability = choose_arm(some_routes().routes["planning"], "a")
    assert (arm, probability) == ((CUSTOM, 0.25) if point < 0.25 else (ORIGINAL, 0.75))


def test_no_live_arm_is_an_error() -> None:
    with pytest.raises(RoutesError, match="no live arm"):
        choose_arm(Route((SHADOW, Arm("zero", "original", 0.0))), "x")


def test_a_price_is_exact() -> None:
    assert CUSTOM.cost_usd(1_000_000, 5) == 0.48


class TestLease:
    def lease(self, tmp_path: Path) -> RoutesLease:
        write_routes(tmp_path / "routes.json", some_routes())
        return RoutesLease(tmp_path / "routes.json", lambda: 0.0)

    def test_it_ends_at_its_second(self, tmp_path: Path) -> None:
        lease = self.lease(tmp_path)
        end = some_routes().expires_at.timestamp()
        assert lease.find("planning", end - 0.001)[1] is None
        assert lease.find("planning", end) == (None, "lease_expired")
        assert lease.find("coding", end - 1) == (None, "no_route")

    def test_it_follows_the_file(self, tmp_path: Path) -> None:
        lease, now = self.lease(tmp_path), NOW.timestamp()
        assert lease.find("planning", now)[0] is not None
        write_routes(tmp_path / "routes.json", some_routes(routes={}))
        assert lease.find("planning", now) == (None, "no_route")
        (tmp_path / "routes.json").write_text("{")
        assert lease.find("planning", now) == (None, "no_route") and "not JSON" in str(lease.error)
        (tmp_path / "routes.json").unlink()
        assert lease.find("planning", now) == (None, "no_route") and lease.error is None
        write_routes(tmp_path / "routes.json", some_routes())
        assert lease.find("planning", now)[0] is not None

    def test_a_clock_set_back_does_not_lengthen_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = datetime.now(UTC)
        write_routes(tmp_path / "routes.json", some_routes(issued_at=now, expires_at=now + timedelta(minutes=2)))
        lease = RoutesLease(tmp_path / "routes.json", time.time)
        assert lease.find("planning", time.time() - 3600)[1] is None
        later = time.monotonic() + 121
        monkeypatch.setattr(time, "monotonic", lambda: later)
        assert lease.find("planning", time.time() - 3600) == (None, "lease_expired")

    def test_a_thread_that_comes_during_a_reading_finds_routes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lease, now = self.lease(tmp_path), NOW.timestamp()
        reading, go_on = threading.Event(), threading.Event()

        def slow_read(path: Path) -> Routes:
            if threading.current_thread() is first:
                reading.set()
                go_on.wait(10)
            return read_routes(path)

        monkeypatch.setattr("reasoning.serving.lease.read_routes", slow_read)
        first = threading.Thread(target=lease.find, args=("planning", now))
        first.start()
        assert reading.wait(10)
        assert lease.find("planning", now)[0] is not None
        go_on.set()
        first.join()

    @pytest.mark.parametrize(
        "length", [timedelta(hours=3), timedelta(hours=1, minutes=5, seconds=1), timedelta(days=400)]
    )
    def test_a_lease_longer_than_the_maximum_is_not_followed(self, tmp_path: Path, length: timedelta) -> None:
        now = datetime.now(UTC)
        write_routes(tmp_path / "routes.json", some_routes(issued_at=now, expires_at=now + length))
        lease = RoutesLease(tmp_path / "routes.json", time.time)
        assert lease.find("planning", time.time()) == (None, "lease_expired")
        assert "at most 1:00:00 is followed" in str(lease.error)
        assert not read_routes(tmp_path / "routes.json").in_force(now)

    @given(ahead=st.timedeltas(timedelta(minutes=6), timedelta(days=30)), asked=st.floats(0, 1))
    def test_a_lease_from_the_future_is_not_followed(self, ahead: timedelta, asked: float) -> None:
        """As a guard whose clock was ahead for one tick leaves it: an agent that starts later must not follow it."""
        now = datetime.now(UTC)
        routes = some_routes(issued_at=now + ahead, expires_at=now + ahead + timedelta(minutes=3))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "routes.json"
            write_routes(path, routes)
            at = now + (ahead - timedelta(minutes=5, seconds=1)) * asked  # any time until its clock would be right
            lease = RoutesLease(path, lambda: at.timestamp())
            assert lease.find("planning", at.timestamp()) == (None, "lease_expired")
            assert "in the future" in str(lease.error)
            assert not routes.in_force(at)
