"""The ledger: exact money, budgets that hold, charges that stay. On SQLite and on PostgreSQL."""

from __future__ import annotations

import multiprocessing
import random
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import (
    BudgetExceeded,
    ChargeConflict,
    IllegalTransition,
    LedgerError,
    LedgerUnavailable,
    NoSuchObject,
    PriceUnknown,
)
from storage.ledger import schema
from storage.ledger.charges import ChargedTo
from storage.ledger.ledger import Ledger, open_ledger
from storage.ledger.money import format_usd, from_nano, to_nano
from storage.ledger.reports import cost_report, model_history, model_status
from storage.ledger.rows import Deployment, FineTuneJob, Model, UploadedDataset
from tests.forkserver import CONTEXT
from tests.postgres import fresh_database, run_postgres
from tests.storage.old_ledgers import forget_migrations

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
PLANNING = ChargedTo(decision_type="planning")
OpenLedger = Callable[[], Ledger]


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with run_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("REASONING_LEDGER_URL", raising=False)
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.sqlite'}"
        return
    with fresh_database(request.getfixturevalue("postgres_url")) as url:
        yield url


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with open_ledger(ledger_url, now=NOON) as ledger:
        for period in ("hour", "day", "month"):
            ledger.set_budget(period, None)
        yield ledger


def test_money_is_exact_and_refuses_floats() -> None:
    assert from_nano(to_nano("0.1") + to_nano("0.2")) == Decimal("0.3")
    assert to_nano("0.0000000001") == 1  # never rounded down to nothing
    for wrong in (0.1, True, None):
        with pytest.raises(TypeError, match=r"Decimal"):
            to_nano(wrong)  # type: ignore[arg-type]
    for wrong in ("ten", "NaN", "Infinity"):
        with pytest.raises(ValueError, match="not an amount"):
            to_nano(wrong)
    with pytest.raises(ValueError, match="more money than the ledger can keep"):
        to_nano("1e30")
    assert [format_usd(Decimal(x)) for x in ("4", "0.0915", "-1.2", "1234.5")] == [
        "$4.00",
        "$0.0915",
        "-$1.20",
        "$1,234.50",
    ]


@given(st.integers(-(10**15), 10**15))
def test_nano_dollars_round_trip(nano: int) -> None:
    assert to_nano(from_nano(nano)) == nano


def test_a_fresh_ledger_is_no_blank_cheque(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger, pytest.raises(BudgetExceeded, match="Raise the budget"):
        ledger.reserve("1000", purpose="a mistake")
    with open_ledger(ledger_url) as again:
        assert again.installation_id == ledger.installation_id


def test_reserve_settle_release_and_lapse(ledger: Ledger) -> None:
    ledger.set_budget("day", "10", now=NOON)
    first = ledger.reserve("4", purpose="one", decision_type="planning", now=NOON)
    second = ledger.reserve("6", purpose="two", now=NOON)
    with pytest.raises(
        BudgetExceeded, match=r"three needs \$0\.01, but of the day budget of \$10\.00 only \$0\.00 is left"
    ):
        ledger.reserve("0.01", purpose="three", now=NOON)
    assert ledger.settle(first, "5", kind="training", what="dearer than thought", now=NOON)
    assert not ledger.settle(first, "5", kind="training", what="dearer than thought", now=NOON)
    with pytest.raises(ChargeConflict, match=r"before, now \$6\.00"):
        ledger.settle(first, "6", kind="training", what="?", now=NOON)
    ledger.release(second, now=NOON)
    third = ledger.reserve("5", purpose="four", now=NOON)
    with pytest.raises(BudgetExceeded):
        ledger.reserve("0.01", purpose="five", now=NOON + timedelta(minutes=59))
    ledger.reserve("5", purpose="six", now=NOON + timedelta(hours=1))  # `four` has lapsed
    assert ledger.reservation(third.id).state == "lapsed"
    assert ledger.settle(third, "1", kind="training", what="late, but owed", now=NOON)
    assert ledger.spent(now=NOON) == 6
    assert ledger.spent(decision_type="planning") == 5


def test_a_reservation_that_lapsed_opens_again_only_within_the_budget_and_as_long_as_before(ledger: Ledger) -> None:
    ledger.set_budget("day", "10")
    lapsed = ledger.reserve("6", purpose="one", ttl=timedelta(minutes=10), now=NOON)
    later = NOON + timedelta(minutes=10)
    other = ledger.reserve("6", purpose="two", ttl=None, now=later)
    with pytest.raises(BudgetExceeded):
        ledger.resize(lapsed, "6", now=later)
    assert ledger.resize(lapsed, "4", now=later).expires_at == later + timedelta(minutes=10)
    assert ledger.budgets(later + timedelta(minutes=9))[0].reserved_usd == 10
    assert ledger.budgets(later + timedelta(minutes=10))[0].reserved_usd == 6
    assert ledger.resize(other, "7", now=later + timedelta(minutes=10)).expires_at is None
    with pytest.raises(ValueError, match="cannot be negative"):
        ledger.resize(other, "-1", now=later)
    ledger.settle(other, "7", kind="training", what="w", now=later)
    with pytest.raises(LedgerError, match="is settled: reserve anew"):
        ledger.resize(other, "1", now=later)


def test_a_reservation_asks_the_database_for_little_while_others_wait(ledger: Ledger) -> None:
    ledger.reserve("1", purpose="the first", now=NOON)
    asked: list[str] = []
    sa.event.listen(ledger.engine, "before_cursor_execute", lambda *call: asked.append(call[2].split()[0]))
    ledger.reserve("1", purpose="the second", now=NOON)
    # One at a time, what is held, what is allowed, the reservation.
    assert asked[1:] == ["SELECT", "SELECT", "INSERT"]
    assert asked[0] == ("SELECT" if ledger.engine.dialect.name == "postgresql" else "BEGIN")


def test_budgets_are_by_period_and_by_type(ledger: Ledger) -> None:
    ledger.set_budget("day", "5", "planning")
    ledger.set_budget("month", "8")
    ledger.charge("tokens", "4", key="a", what="t", now=NOON, of=ChargedTo(decision_type="planning"))
    with pytest.raises(BudgetExceeded, match="day of planning budget"):
        ledger.reserve("2", purpose="p", decision_type="planning", now=NOON)
    ledger.reserve("2", purpose="p", decision_type="coding", now=NOON)
    tomorrow = NOON + timedelta(days=1)
    with pytest.raises(BudgetExceeded, match="month budget"):
        ledger.reserve("5", purpose="p", decision_type="planning", now=tomorrow)
    ledger.reserve("4", purpose="p", decision_type="planning", now=tomorrow)
    ledger.set_budget("month", None)
    ledger.reserve("100", purpose="p", now=tomorrow)


def test_the_hourly_rate_is_limited(ledger: Ledger) -> None:
    ledger.set_budget("hour", "10")
    running = ledger.reserve("1", purpose="gpu", hourly_usd="5.49", now=NOON)
    with pytest.raises(BudgetExceeded, match=r"needs \$5\.49 an hour"):
        ledger.reserve("1", purpose="gpu 2", hourly_usd="5.49", now=NOON)
    ledger.release(running)
    ledger.reserve("1", purpose="gpu 2", hourly_usd="5.49", now=NOON)


def test_what_ran_unseen_is_not_promised_twice(ledger: Ledger) -> None:
    ledger.set_budget("day", "10")
    reservation = ledger.reserve("0.50", purpose="gpu", hourly_usd="6", ttl=None, now=NOON)
    row = {"model_object_id": "ml_1", "config": "c", "hardware": "h", "hourly_usd": 6, "max_replicas": 1}
    deployment = ledger.add(
        Deployment, state="intended", name="d", reservation_id=reservation.id, metered_until=NOON, replicas=1, **row
    ).id
    ledger.reserve("9", purpose="a minute later", now=NOON + timedelta(minutes=1))
    later = NOON + timedelta(minutes=20)  # it ran for two dollars, and nobody has looked
    (budget,) = ledger.budgets(later)
    assert budget.reserved_usd == 11
    with pytest.raises(BudgetExceeded):
        ledger.reserve("0.01", purpose="more", now=later)
    ledger.update(Deployment, deployment, metered_until=later)
    assert ledger.budgets(later)[0].reserved_usd == Decimal("9.50")


def test_an_unknown_price_is_refused(ledger: Ledger) -> None:
    with pytest.raises(PriceUnknown, match="its price is not known"):
        ledger.reserve(None, purpose="a fine-tune of a new model")


@pytest.mark.parametrize("table", ["charges", "transitions"])
@pytest.mark.parametrize("change", ["DELETE FROM {}", "UPDATE {} SET id = 7", "again"])
def test_what_was_recorded_stays(ledger: Ledger, table: str, change: str) -> None:
    if change == "again":  # as far as the dialect has it
        postgres = ledger.engine.dialect.name == "postgresql"
        change = "TRUNCATE {}" if postgres else "INSERT OR REPLACE INTO {0} SELECT * FROM {0}"
    ledger.charge("tokens", "1", key="a", what="t")
    ledger.add(UploadedDataset, state="intended", dataset="d", train_sha256="0", train_rows=1, validation_rows=0)
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), ledger.transaction() as connection:
        connection.execute(sa.text(change.format(table)))


def test_a_transaction_is_all_or_nothing(ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError), ledger.transaction():
        ledger.charge("tokens", "1", key="a", what="t")
        ledger.reserve("1", purpose="p")
        raise ZeroDivisionError
    assert ledger.charges() == []
    assert ledger.spent() == 0


def test_state_machines_refuse_illegal_steps(ledger: Ledger) -> None:
    row = ledger.add(Model, state="trained", base_model="b", model_object_id="ml_1", decision_type="planning")
    ledger.transition(Model, row.id, "promoted", why="better")
    ledger.transition(Model, row.id, "promoted")
    ledger.transition(Model, row.id, "retired")
    with pytest.raises(IllegalTransition, match=f"models {row.id}: cannot go from retired to promoted"):
        ledger.transition(Model, row.id, "promoted")
    assert [step.why for step in ledger.history(Model, row.id)] == [None, "better", None]
    with pytest.raises(NoSuchObject):
        ledger.get(Model, "nothing")
    with pytest.raises(ValueError, match=r"changes by Ledger\.transition"):
        ledger.update(Model, row.id, state="trained")


def test_every_state_may_be_reached_and_left_only_by_what_is_drawn() -> None:
    for table, steps in schema.TRANSITIONS.items():
        states = set(steps)
        assert {after for following in steps.values() for after in following} <= states, table


def test_tokens_are_charged_by_their_increase(ledger: Ledger) -> None:
    def meter(requests: int, tokens: int, cost: str) -> tuple[int, Decimal]:
        usage = {"requests": requests, "input_tokens": tokens, "output_tokens": 0}
        return ledger.meter("m", PLANNING, "2026-11-22", cost_usd=cost, now=NOON, **usage)

    assert meter(2, 100, "0.10") == (2, Decimal("0.10"))
    assert meter(2, 100, "0.10") == (0, 0)
    assert meter(3, 150, "0.15") == (1, Decimal("0.05"))
    assert meter(1, 50, "0.05") == (0, 0)  # rows were erased: no refund
    assert meter(2, 60, "0.06") == (1, Decimal("0.01"))
    assert ledger.spent("day", decision_type="planning", now=NOON) == Decimal("0.16")


def test_an_exclusive_lock_is_held_once_and_ends_with_its_process(ledger: Ledger, ledger_url: str) -> None:
    with open_ledger(ledger_url) as other, ledger.exclusive("guard") as first, other.exclusive("guard") as second:
        assert (first, second) == (True, False)
        with other.exclusive("submit") as third:
            assert third
    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=_hold_forever, args=(ledger_url, ready))
    process.start()
    assert ready.wait(60)
    with ledger.exclusive("guard") as got:
        assert not got
    process.kill()
    process.join()
    with ledger.exclusive("guard", wait=True) as got:
        assert got


def _hold_forever(url: str, ready: Any) -> None:
    with open_ledger(url) as ledger, ledger.exclusive("guard") as got:
        assert got
        ready.set()
        ready.wait()
        multiprocessing.Event().wait()


def _reserve_all(url: str, tries: int, answers: Any) -> None:
    with open_ledger(url) as ledger:
        got = 0
        for _ in range(tries):
            try:
                ledger.reserve("0.30", purpose="race", now=NOON)
                got += 1
            except BudgetExceeded:
                pass
        answers.put(got)


@pytest.mark.parametrize("processes", [8, pytest.param(50, marks=[pytest.mark.torture, pytest.mark.timeout(600)])])
def test_processes_that_reserve_at_once_never_exceed_the_budget(
    ledger: Ledger, ledger_url: str, processes: int
) -> None:
    ledger.set_budget("day", "10")
    context = multiprocessing.get_context("fork")
    answers: Any = context.Queue()
    workers = [context.Process(target=_reserve_all, args=(ledger_url, 10, answers)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    got = sum(answers.get(timeout=500) for _ in workers)
    for worker in workers:
        worker.join()
    assert got == 33
    (budget,) = ledger.budgets(NOON)
    assert budget.reserved_usd == Decimal("9.90")


def test_processes_that_open_a_new_ledger_at_once_make_one_installation(ledger_url: str) -> None:
    answers: Any = CONTEXT.Queue()
    processes = [CONTEXT.Process(target=_open, args=(ledger_url, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    ids = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(ids) == 1


def _open(url: str, answers: Any) -> None:
    with open_ledger(url) as ledger:
        answers.put(ledger.installation_id)


def test_a_kill_in_a_transaction_leaves_nothing(ledger: Ledger, ledger_url: str) -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_die_while_charging, args=(ledger_url,))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert ledger.charges() == []
    assert ledger.charge("tokens", "1", key="a", what="t")


def _die_while_charging(url: str) -> None:
    import os
    import signal

    with open_ledger(url) as ledger, ledger.transaction():
        ledger.charge("tokens", "1", key="a", what="t")
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_migrations_make_the_tables_that_the_code_uses(ledger: Ledger) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    import storage.ledger.migrations

    with ledger.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    config = Config()
    config.set_main_option("script_location", str(Path(storage.ledger.migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_current_head() == schema.REVISION


def test_a_ledger_of_the_first_version_is_brought_up_to_date_with_what_it_holds(ledger_url: str) -> None:
    with open_ledger(ledger_url, now=NOON) as ledger, ledger.transaction() as connection:
        ledger.charge("tokens", "1.5", key="a", what="t", now=NOON)
        for table in ("charges", "transitions"):  # what the second one added
            trigger = f"{table}_no_truncate ON {table}" if "postgresql" in ledger_url else f"{table}_no_replace"
            connection.execute(sa.text(f"DROP TRIGGER {trigger}"))
        forget_migrations(connection)
        old = {"id": "m1", "state": "trained", "created_at": NOON, "updated_at": NOON}
        columns = schema.metadata.tables["models"].c
        old |= {"base_model": "b", "model_object_id": "ml_1"}
        insert = sa.insert(sa.table("models", *(sa.column(name, columns[name].type) for name in old)))
        connection.execute(insert.values(**old))
        for base_model in ("local/linear", "Qwen/Qwen3-8B"):
            _insert_old_job(connection, base_model)
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
        installation_id = ledger.installation_id
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_open_and_charge, args=(ledger_url, str(n))) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    with open_ledger(ledger_url) as ledger:
        assert ledger.installation_id == installation_id
        assert ledger.spent(now=NOON) == Decimal("4.5")
        model = ledger.get(Model, "m1")
        assert (model.provider, model.base_url, model.input_million_usd) == ("together", None, None)
        trained_at = {job.base_model: job.provider for job in ledger.find(FineTuneJob)}
        assert trained_at == {"local/linear": "local", "Qwen/Qwen3-8B": "together"}
        with ledger.read() as connection:
            version = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        assert version == schema.REVISION


def _insert_old_job(connection: sa.Connection, base_model: str) -> None:
    """A fine-tune as it was written before jobs had a provider."""
    old = {"id": base_model, "state": "running", "created_at": NOON, "updated_at": NOON, "suffix": base_model}
    old |= {"base_model": base_model, "parameters": "{}", "estimate_nano": 0}
    columns = schema.metadata.tables["fine_tune_jobs"].c
    insert = sa.insert(sa.table("fine_tune_jobs", *(sa.column(name, columns[name].type) for name in old)))
    connection.execute(insert.values(**old))


def _open_and_charge(url: str, key: str) -> None:
    with open_ledger(url) as ledger:
        ledger.charge("tokens", "1", key=key, what="t", now=NOON)


def test_a_ledger_of_a_newer_version_is_not_touched(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger, ledger.transaction() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LedgerError, match="newer version"):
        open_ledger(ledger_url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://u:secret@x/y", "names mysql, where the ledger cannot live: write postgresql://"),
        ("postgresql://u:secret@127.0.0.1:9/x", "cannot open the ledger postgresql"),
        ("postgresql://u:secret@h:port/x", "is not the URL of a database"),
        ("postgresql://u@127.0.0.1:9/x?password=secret&sslpassword=secret", "cannot open the ledger postgresql"),
        ("sqlite:////proc/none/ledger.sqlite", "cannot make /proc/none for the ledger"),
        ("sqlite://", "would forget what was spent"),
    ],
)
@pytest.mark.parametrize("by_setting", [True, False])
def test_a_ledger_that_cannot_be_opened_says_why(
    url: str, message: str, by_setting: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REASONING_LEDGER_URL", url)
    if not by_setting:
        monkeypatch.delenv("REASONING_LEDGER_URL")
    with pytest.raises(LedgerError) as caught:
        open_ledger(tmp_path if by_setting else url)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_setting_that_is_no_url_is_named_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REASONING_LEDGER_URL", "my-secret-word")
    with pytest.raises(LedgerError, match=r"^REASONING_LEDGER_URL is not the URL of a database: write ") as caught:
        open_ledger(tmp_path)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_a_broken_file_is_not_taken_for_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(LedgerError, match="not a database"):
        open_ledger(tmp_path)


def test_a_reader_sees_one_moment(ledger: Ledger, ledger_url: str) -> None:
    with open_ledger(ledger_url) as other, other.read() as connection:
        count = sa.select(sa.func.count()).select_from(schema.charges)
        assert connection.execute(count).scalar() == 0
        ledger.charge("tokens", "1", key="a", what="t", now=NOON)
        assert connection.execute(count).scalar() == 0
        assert other.spent(now=NOON) == 1  # a new look


def test_a_naive_time_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="without a time zone"):
        ledger.charge("tokens", "1", key="a", what="t", now=datetime(2026, 11, 22))


def test_reports(ledger: Ledger) -> None:
    job = {"suffix": "s", "base_model": "b", "parameters": "{}", "estimate_usd": 0}
    ledger.add(FineTuneJob, id="j", state="intended", **job)
    model = ledger.add(
        Model, state="trained", base_model="b", model_object_id="ml_1", decision_type="planning", job_id="j"
    ).id
    ledger.set_budget("month", "100")
    ledger.charge(
        "training",
        "4",
        key="t",
        what="job",
        now=NOON,
        of=ChargedTo(job_id="j", model_id=model, decision_type="planning"),
    )
    deployment = ledger.add(
        Deployment,
        state="intended",
        name="rsn-x-1",
        decision_type="planning",
        model_id=model,
        model_object_id="ml_1",
        config="c",
        hardware="h",
        hourly_usd=Decimal("6"),
        max_replicas=1,
        served_name="local/rsn-x-1",
        now=NOON,
    ).id
    ledger.transition(Deployment, deployment, "provisioning", now=NOON)
    ledger.transition(Deployment, deployment, "ready", replicas=1, ready_at=NOON, now=NOON)
    ledger.charge(
        "endpoint",
        "3",
        key="e",
        what="30 minutes",
        quantity=30,
        now=NOON,
        of=ChargedTo(deployment_id=deployment, model_id=model),
    )
    ledger.meter(
        "local/rsn-x-1", PLANNING, "2026-11-22", requests=10, input_tokens=5, output_tokens=6, cost_usd=0, now=NOON
    )
    report = cost_report(ledger, now=NOON, period="day")
    (line,) = report["models"]
    assert (line["total_usd"], line["hours"], line["requests"]) == (7, 0.5, 10)
    assert line["average_usd_per_request"] == Decimal("0.70")
    assert report["total_usd"] == 7
    assert report["forecast_usd"] == 7 + 12 * 6  # twelve hours of the day are left
    assert report["budgets"][0]["exhausted_at"] == NOON + timedelta(hours=93 / 6)
    ledger.set_budget("day", "43", "planning")
    report = cost_report(ledger, now=NOON, period="day")
    assert (report["forecast_usd"], report["budgets"][1]["exhausted_at"]) == (46, NOON + timedelta(hours=6.5))
    ledger.set_budget("day", None, "planning")
    assert report["budgets"][0]["used_fraction"] == 0.07
    assert cost_report(ledger, now=NOON + timedelta(days=40))["total_usd"] == 0

    usage = {"requests": 4, "input_tokens": 5, "output_tokens": 6}
    ledger.meter("a/strangers", PLANNING, "2026-11-22", cost_usd="0.20", now=NOON, **usage)
    ledger.meter("b/strangers", PLANNING, "2026-11-22", cost_usd="0.20", now=NOON, **usage)
    _, strangers = cost_report(ledger, now=NOON, period="day")["models"]
    assert (strangers["model_id"], strangers["requests"], strangers["input_tokens"]) == (None, 8, 10)
    assert (strangers["total_usd"], strangers["average_usd_per_request"]) == (Decimal("0.40"), Decimal("0.05"))

    (status,) = model_status(ledger, now=NOON + timedelta(minutes=5), routed={"local/rsn-x-1"})
    assert status["enabled"] is False  # it runs and has a route, but was not promoted
    later = NOON + timedelta(minutes=11)  # nobody has looked: as many may run as ever were to
    ledger.update(Deployment, deployment, replicas=0, metered_until=NOON)
    (unseen,) = model_status(ledger, now=later)
    assert (unseen["deployment_state"], unseen["replicas"], unseen["hourly_usd"]) == ("unknown", 1, 6)
    assert cost_report(ledger, now=later)["hourly_rate_usd"] == 6
    ledger.update(Deployment, deployment, replicas=1)
    ledger.transition(Model, model, "promoted")
    (status,) = model_status(ledger, now=NOON + timedelta(minutes=5), routed={"local/rsn-x-1"})
    assert status["enabled"] is True
    assert (status["idle_seconds"], status["requests"], status["cost_usd"], status["hourly_usd"]) == (300, 10, 7, 6)
    assert model_status(ledger, now=NOON)[0]["enabled"] is False  # no lease
    ledger.transition(Deployment, deployment, "stopped", replicas=0)
    (status,) = model_status(ledger, now=NOON, routed={"local/rsn-x-1"})
    assert (status["enabled"], status["replicas"], status["hourly_usd"]) == (False, 0, 0)
    assert status["cost_usd"] == 7  # what stopped is not forgotten
    assert [(step["object"], step["to_state"]) for step in model_history(ledger, model)] == [
        ("fine_tune_jobs", "intended"),
        ("models", "trained"),
        *(("deployments", state) for state in ("intended", "provisioning", "ready")),
        ("models", "promoted"),
        ("deployments", "stopped"),
    ]


def test_sums_of_odd_amounts_are_exact_in_every_report(ledger: Ledger) -> None:
    drawn, by_kind, total = random.Random(7), dict.fromkeys(["endpoint", "tokens", "training"], 0), 0
    with ledger.transaction():
        for number in range(40):
            kind, nano = drawn.choice(list(by_kind)), drawn.randrange(1, 10**12)
            kinds: Any = kind
            ledger.charge(
                kinds,
                from_nano(nano),
                key=str(number),
                what=kind,
                ts=NOON - timedelta(minutes=drawn.randrange(600)),
                now=NOON,
                of=ChargedTo(model_id=drawn.choice("ab"), decision_type=drawn.choice(["planning", "coding"])),
            )
            by_kind[kind] += nano
            total += nano
    report = cost_report(ledger, now=NOON, period="day")
    assert report["total_usd"] == from_nano(total) == ledger.spent("day", now=NOON) == ledger.spent("month", now=NOON)
    assert report["by_kind_usd"] == {kind: from_nano(nano) for kind, nano in by_kind.items()}
    assert sum(line["total_usd"] for line in report["models"]) == from_nano(total)
    of_types = [ledger.spent("total", decision_type=each) for each in ("planning", "coding")]
    assert sum(of_types) == from_nano(total)


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["reserve", "settle", "release", "charge"]), st.integers(1, 400), st.integers(0, 5)),
    max_size=30,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_whatever_is_done_no_reservation_exceeds_what_is_left(tmp_path_factory: Any, operations: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    with open_ledger(f"sqlite:///{folder / 'ledger.sqlite'}", now=NOON) as ledger:
        for period in ("hour", "day", "month"):
            ledger.set_budget(period, None)
        ledger.set_budget("total", "10")
        held: list[Any] = []
        charged = Decimal(0)
        for number, (what, cents, which) in enumerate(operations):
            amount = Decimal(cents) / 100
            reserved = sum((reservation.amount_usd for reservation in held), Decimal(0))
            if what == "reserve":
                fits = charged + reserved + amount <= 10
                try:
                    held.append(ledger.reserve(amount, purpose="p", now=NOON))
                    assert fits
                except BudgetExceeded:
                    assert not fits
            elif what == "charge":
                ledger.charge("tokens", amount, key=str(number), what="t", now=NOON)
                charged += amount
            elif held:
                reservation = held.pop(which % len(held))
                if what == "settle":
                    ledger.settle(reservation, amount, kind="training", what="t", now=NOON)
                    charged += amount
                else:
                    ledger.release(reservation, now=NOON)
            (budget,) = ledger.budgets(NOON)
            assert budget.spent_usd == charged == sum((c.amount_usd for c in ledger.charges()), Decimal(0))
            assert budget.reserved_usd == sum((reservation.amount_usd for reservation in held), Decimal(0))


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    with open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", now=NOON) as ledger:
        ledger.charge("tokens", "1", key="a", what="t", now=NOON)
        with ledger.read() as connection:
            pages = connection.execute(sa.text("PRAGMA page_count")).scalar_one()

        @sa.event.listens_for(ledger.engine, "checkout")
        def full(connection: sqlite3.Connection, *_: Any) -> None:
            connection.execute(f"PRAGMA max_page_count = {pages}")

        with pytest.raises(LedgerUnavailable, match=r"full.*free some space"):
            for number in range(1000):
                ledger.charge("tokens", "1", key=f"b{number}" * 20, what="x" * 2000, now=NOON)
        assert ledger.spent(now=NOON) == sum(charge.amount_usd for charge in ledger.charges())


def test_a_damaged_database_is_told(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        ledger.charge("tokens", "1", key="k", what="t")
    path = tmp_path / "ledger.sqlite"
    content = bytearray(path.read_bytes())
    content[8192:] = b"U" * (len(content) - 8192)
    with open_ledger(tmp_path) as ledger:
        ledger.close()
        path.write_bytes(content)
        for file in tmp_path.glob("ledger.sqlite-*"):
            file.unlink()
        with pytest.raises(LedgerUnavailable, match="put a backup in its place"):
            ledger.charges()
        with pytest.raises(LedgerUnavailable, match="put a backup in its place"):
            ledger.charge("tokens", "1", key="k2", what="t")
