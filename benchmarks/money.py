"""Months of an installation's life against the emulator, with faults and deaths, in simulated time.

    python -m benchmarks.money [--days 90] [--seeds 1 2 3] [--guard-dead-on DAY] [--wall-seconds 3600]

Every day has a few commands at random moments (upload, train, deploy, use, undeploy, cancel), faults of the provider,
kills of our process at a random request (also of the guard and of the reconciliation), and a reconciliation every ten
minutes while anything runs. The guard ticks every minute while anything of ours is at the provider; with
--guard-dead-on it is dead for that whole day, with a model deployed. The budget is raised anew each day, mostly by so
little that it is reached. A stranger at the same provider has a deployment and a job, which must stay as they are.
Prints a table, a row for each seed and way, and fails where an invariant of `tests/provider/life.py` does; to stderr a
line a day of how far it is. A run ends early after --wall-seconds.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path

import together._base_client

from provider.together.client import connect
from storage.ledger.rows import Deployment, FineTuneJob, Model
from tests.provider.life import FAULTS, Life
from tests.provider.world import Emulator, World, run_emulator

DAY = 24 * 3600
DAILY_USD = (Decimal("2.50"), Decimal("2.50"), Decimal(8), Decimal(15))  # the smallest: 27 minutes of a replica
RATE = Decimal("5.49")
MINUTE = RATE / 60


def live_a_day(life: Life, chance: random.Random) -> None:
    """One day of commands, faults and deaths."""
    left = float(DAY)
    commands: list[Callable[[], None]] = [
        *(
            life.deploy,
            partial(life.deploy, 2),
            partial(life.deploy, 3),
            life.undeploy,
            life.use,
            life.train,
            life.upload,
            life.cancel,
        )
    ]
    while left > 0:
        for _ in range(chance.randint(0, 3)):
            kind, match = chance.choice(FAULTS)
            life.fault(kind, match, times=1 if kind == "hang" else chance.randint(1, 2))
        command = chance.choice(commands)
        if chance.random() < 0.4:
            dying = chance.choice([command, command, life.guard_dying, life.reconcile])
            life.kill(dying, request=chance.randint(1, 12), answered=chance.random() < 0.5)
        else:
            command()
        life.check()
        left -= pass_time(life, chance, min(left, chance.expovariate(1 / 5400)))


def pass_time(life: Life, chance: random.Random, seconds: float) -> float:
    """Minute by minute while anything of ours may cost something, else in one leap. Returns the seconds."""
    passed = 0.0
    while passed < seconds:
        # The provider is asked as well: an orphan is not in the ledger.
        busy = life.busy()
        step = min(seconds - passed, 600.0) if busy else seconds - passed
        if busy:
            if chance.random() < 0.7:
                life.use()  # so that the budget ends most deployments, and not their idling
            life.wait(step)
            life.reconcile()
        else:
            life.world.emulator.advance(step)
            life.guard()
        passed += step
    return passed


COLUMNS = (
    *("seed", "guard", "days", "took", "faults struck", "kills", "guard ticks", "jobs / deployments"),
    *("worst overshoot", "oldest orphan: reconciliations / age", "charged / billed", "strangers' objects touched"),
    "overshoot of the dead day",
)


def live(seed: int, days: int, dead_on: int | None, wall_seconds: float) -> list[str]:
    """A whole life, from a fresh emulator and a fresh ledger to the last bill. Returns the cells of its row."""
    began = time.monotonic()
    options = ("--cold-start", "45", "--stop-delay", "20")
    with tempfile.TemporaryDirectory() as folder, run_emulator(Path(folder) / "emulator", *options) as url:
        world = World(Emulator(url), Path(folder) / "data")
        world.client.close()
        world.client = connect(base_url=url, timeout=2)  # a hang costs real time
        world.trained_object = world.ledger.get(Model, world.train("first").model_id).model_object_id
        life = Life(world, limit=DAILY_USD[0])
        chance, day, dead_day_usd = random.Random(seed), 0, Decimal(0)
        while day < days and time.monotonic() - began < wall_seconds:
            life.raise_limit(world.ledger.spent() + chance.choice(DAILY_USD))
            if day == dead_on:
                life.deploy()
                life.guard_alive = False
            live_a_day(life, chance)
            if day == dead_on:
                life.guard_alive = True
                life.guard()  # it meters what ran unseen
                dead_day_usd = max(world.ledger.spent() - life.limit, Decimal(0))
            day += 1
            billed = world.emulator.bill(life.remote_ids())
            print(
                f"seed {seed}: day {day} of {days}, {time.monotonic() - began:.0f} s; {life.faults:,} faults, "
                f"{life.kills:,} kills; ${world.ledger.spent():.2f} charged, ${billed:.2f} billed",
                file=sys.stderr,
            )
        life.end()
        orphan_minutes = life.oldest_orphan.total_seconds() / 60
        cells = [
            *(str(seed), "lives" if dead_on is None else f"dead on day {dead_on}", str(day)),
            f"{time.monotonic() - began:.0f} s",
            *(f"{life.faults:,}", f"{life.kills:,}", f"{life.ticks:,}"),
            f"{len(world.ledger.find(FineTuneJob))} / {len(world.ledger.find(Deployment))}",
            f"${life.worst_overshoot:.4f} = {life.worst_overshoot / MINUTE:.1f} min",
            f"{life.worst_orphan_reconciliations} / {orphan_minutes:.0f} min",
            f"${life.charged:.4f} / ${life.billed:.4f}",
            "none",  # else `Life.check` had failed
            "" if dead_on is None else f"${dead_day_usd:.4f} = {dead_day_usd / MINUTE:.0f} min",
        ]
        world.close()
    print("; ".join(f"{name}: {cell}" for name, cell in zip(COLUMNS, cells, strict=True) if cell), flush=True)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--guard-dead-on", type=int, metavar="DAY", default=None)
    parser.add_argument("--wall-seconds", type=float, default=3600)
    options = parser.parse_args()
    # The SDK retries as ever, but does not wait for seconds of real time in between.
    together._base_client.INITIAL_RETRY_DELAY = 0.001
    together._base_client.MAX_RETRY_DELAY = 0.002
    rows = [live(seed, options.days, options.guard_dead_on, options.wall_seconds) for seed in options.seeds]
    print("\n| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
