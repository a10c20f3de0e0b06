"""What a shared deployment costs, given to the types by their use: a real ledger and a real decision log."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provider.money.metering import meter_minutes
from provider.money.shares import Use, share_replicas, used_minutes
from storage.layout import Layout
from storage.ledger.ledger import Ledger, open_ledger
from storage.ledger.rows import Deployment, SleepReason
from storage.ledger.sleeps import end_savings, end_sleeps, fall_asleep, note_sleep, read_sleeps, sleeping
from storage.log.land import land_decisions
from tests.storage.logs import make_decision, write_segment

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
PRICE = Decimal("5.49")


def add_deployment(ledger: Ledger, name: str, **values: object) -> Deployment:
    known = {"config": "cr_1", "hardware": "1xH100", "max_replicas": 1, "model_object_id": "ml_1", "now": NOON}
    return ledger.add(Deployment, state="ready", name=name, **{**known, **values})


def shared_by(ledger: Ledger, *types: str) -> Deployment:
    """A shared deployment that one model of each type is attached to."""
    replica = add_deployment(ledger, "rsn-x-replica", role="shared", hourly_usd=PRICE, metered_until=NOON)
    for name in types:
        add_deployment(
            ledger,
            f"rsn-x-{name}",
            role="attached",
            hourly_usd=Decimal(0),
            replica_id=replica.id,
            decision_type=name,
            model_id=f"model-{name}",
            served_name=f"local/{name}-adapter",
        )
    return replica


def ask(data: Path, name: str, at: datetime, tokens: int = 100) -> None:
    model = f"local/{name}-adapter"
    row = make_decision(at, decision_type=name, source="custom", model=model, input_tokens=tokens, output_tokens=0)
    write_segment(data, [row])


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = open_ledger(tmp_path, now=NOON)
    ledger.set_budget("total", "1000")
    return ledger


def charged(ledger: Ledger) -> dict[str | None, Decimal]:
    """US dollars by decision type; None is idle."""
    sums: Counter[str | None] = Counter()
    for charge in ledger.charges():
        sums[charge.decision_type] += charge.amount_usd  # type: ignore[assignment]
    return dict(sums)


def test_minutes_go_to_who_asked_by_tokens_and_the_rest_is_idle(tmp_path: Path, ledger: Ledger) -> None:
    replica = shared_by(ledger, "should_respond", "planning")
    for minute, name, tokens in (
        (1, "should_respond", 100),
        (2, "should_respond", 300),
        (2, "planning", 100),
        (7, "planning", 5),
    ):
        ask(tmp_path, name, NOON + timedelta(minutes=minute, seconds=10), tokens)
    land_decisions(tmp_path, now=NOON + timedelta(minutes=20))
    meter_minutes(ledger, replica.id, 1, now=NOON + timedelta(minutes=30))
    meter_minutes(ledger, replica.id, 0, now=NOON + timedelta(minutes=60))
    for _ in range(2):  # the second one finds nothing to move
        share_replicas(Layout(tmp_path), ledger, since=NOON, now=NOON + timedelta(hours=1))
        found = charged(ledger)
    assert found["should_respond"] == pytest.approx(PRICE / 60 * Decimal("1.75"), abs=Decimal("1e-8"))
    assert found["planning"] == pytest.approx(PRICE / 60 * Decimal("1.25"), abs=Decimal("1e-8"))
    assert sum(found.values()) == PRICE == ledger.spent(now=NOON)
    assert len(ledger.charges(kind="share")) == 3
    of_type = ledger.spent(decision_type="planning", now=NOON)
    assert of_type == found["planning"]  # so that a budget of the type holds


def test_late_decisions_move_their_part_when_they_land(tmp_path: Path, ledger: Ledger) -> None:
    replica = shared_by(ledger, "should_respond", "planning")
    meter_minutes(ledger, replica.id, 1, now=NOON + timedelta(minutes=10))
    ask(tmp_path, "planning", NOON + timedelta(minutes=3))
    land_decisions(tmp_path, now=NOON + timedelta(minutes=20))
    share_replicas(Layout(tmp_path), ledger, since=NOON, now=NOON + timedelta(minutes=21))
    alone = charged(ledger)["planning"]
    ask(tmp_path, "should_respond", NOON + timedelta(minutes=3, seconds=30))
    land_decisions(tmp_path, now=NOON + timedelta(minutes=30))
    share_replicas(Layout(tmp_path), ledger, since=NOON, now=NOON + timedelta(minutes=31))
    found = charged(ledger)
    assert found["planning"] == found["should_respond"] == pytest.approx(alone / 2, abs=Decimal("1e-8"))
    assert sum(found.values()) == ledger.spent(now=NOON)


@settings(max_examples=40, deadline=None)
@given(
    uses=st.lists(st.tuples(st.integers(0, 59), st.sampled_from("abc"), st.integers(1, 10**6)), max_size=30),
)
def test_used_minutes_are_whole_minutes_and_never_more_than_were_used(uses: list[tuple[int, str, int]]) -> None:
    class Row:
        """What of a deployment is looked at."""

        created_at, stopped_at = NOON, None

        def __init__(self, name: str) -> None:
            self.served_name, self.decision_type, self.model_id = name, f"type-{name}", f"model-{name}"

    found = used_minutes(
        [Use(NOON + timedelta(minutes=minute), name, tokens) for minute, name, tokens in uses],
        [Row(name) for name in "abc"],  # type: ignore[list-item]
        NOON,
    )
    assert sum(found.values()) == pytest.approx(Decimal(len({minute for minute, _, _ in uses})))


def test_a_sleep_is_on_record_with_its_cold_start_and_what_it_saved(ledger: Ledger) -> None:
    sleep = fall_asleep(ledger, "planning", "m1", why=SleepReason.IDLE, saving_usd=PRICE, now=NOON)
    again = fall_asleep(ledger, "planning", "m1", why=SleepReason.IDLE, saving_usd=0, now=NOON)
    assert again == sleep
    assert sleep.saved_usd(NOON + timedelta(hours=2)) == 2 * PRICE
    end_savings(ledger, ["m1"], now=NOON + timedelta(hours=1))  # its replica runs again, for another
    note_sleep(ledger, sleep.id, woken_at=NOON + timedelta(hours=3))
    woken = sleeping(ledger, "planning")
    assert woken is not None and woken.cold_start_seconds is None
    note_sleep(ledger, sleep.id, ready_at=NOON + timedelta(hours=3, minutes=4))
    assert sleeping(ledger, "planning") is None
    (ended,) = read_sleeps(ledger)
    assert ended.cold_start_seconds == 240
    assert ended.saved_usd(NOON + timedelta(days=9)) == PRICE
    fall_asleep(ledger, "planning", "m2", why=SleepReason.CALENDAR, saving_usd=0, now=NOON + timedelta(hours=5))
    end_sleeps(ledger, "planning", now=NOON + timedelta(hours=6))
    assert sleeping(ledger, "planning") is None
