"""The guard's whole work with the ledger in PostgreSQL: two guards at once, one that is killed, the bill."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from provider.lifecycle.guard import guard_costs
from provider.lifecycle.guard_report import GuardReport
from provider.lifecycle.reconcile import reconcile_provider
from storage.ledger.ledger import open_ledger
from tests.forkserver import start_forkserver
from tests.postgres import fresh_database, run_postgres
from tests.provider import deaths
from tests.provider.deaths import Death
from tests.provider.world import Emulator, World

MINUTE = Decimal("5.49") / 60


@pytest.fixture
def ledger_url() -> Iterator[str]:
    with run_postgres() as server, fresh_database(server) as url:
        yield url


@pytest.fixture
def world(
    emulator: Emulator, trained_object: str, ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    start_forkserver()
    monkeypatch.setenv("REASONING_LEDGER_URL", ledger_url)
    world = World(emulator, tmp_path / "data").by_daylight()
    world.trained_object = trained_object
    yield world
    world.close()


def test_guards_and_reconciliation_on_postgresql(world: World, ledger_url: str) -> None:
    row = world.deploy()
    guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    spent = world.ledger.spent()
    world.minutes(7)
    now, reports = world.now(), list[GuardReport]()

    def tick() -> None:
        with open_ledger(ledger_url) as ledger:
            reports.append(guard_costs(world.data, world.provider, ledger=ledger, now=now))

    threads = [threading.Thread(target=tick) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.errors for report in reports] == [[]] * 4
    assert any(not report.skipped for report in reports)
    assert world.ledger.spent() - spent == 7 * MINUTE

    world.minutes(5)
    killed = deaths.run(deaths.guard, world.emulator, ledger_url, str(world.data), Death(answered=True))
    assert killed == -signal.SIGKILL
    with world.ledger.exclusive("guard", wait=True):  # its lock ends with it, once the server has noticed
        pass
    report = guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert (report.skipped, report.charged_usd) == (False, 5 * MINUTE)

    def cut(_: object) -> None:
        """As when the server is restarted: every connection ends, the guard's lock with its own."""
        world.revive()
        admin = sa.create_engine(ledger_url)
        with admin.connect() as connection:
            others = "datname = current_database() AND pid <> pg_backend_pid()"
            connection.execute(sa.text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))
        admin.dispose()

    world.minutes(2)
    world.client._client.event_hooks = {"request": [cut]}
    spent = world.ledger.spent()
    report = guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    (error,) = report.errors
    assert "make the database reachable, then run the same again" in error
    report = guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert (report.errors, world.ledger.spent() - spent) == ([], 2 * MINUTE)

    world.ledger.set_budget("total", world.ledger.spent())
    report = guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert report.level == "stop"
    assert world.ours() == []
    world.await_bill()
    assert reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now()).errors == []
    assert world.ledger.spent() == world.emulator.bill({row.remote_id})
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0
