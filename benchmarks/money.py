"""Months of an installation's life against the emulator, with faults and deaths, in simulated time.

    python -m benchmarks.money [--days 90] [--seed 1] [--guard-dead-on DAY] [--wall-seconds 3600]

Every day has a few commands at random moments (train, deploy, use, undeploy, cancel), faults of the provider, kills of
our process at a random request, and a reconciliation every ten minutes while anything runs. The guard ticks every
minute while anything of ours is at the provider; with --guard-dead-on it is dead for that whole day. The budget is
raised by the same amount each day, so that it is reached often. Prints the worst overshoot, the ages of orphans and the
number of faults, and fails where an invariant of `tests/provider/life.py` does. Stops early after --wall-seconds.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import together._base_client

from provider.client import connect
from tests.provider.life import FAULTS, Life
from tests.provider.world import Emulator, World, run_emulator

DAY = 24 * 3600
DAILY_USD = Decimal("2.50")  # about 27 minutes of a replica: reached on most days


def live_a_day(life: Life, chance: random.Random) -> None:
    """One day of commands, faults and deaths."""
    left = float(DAY)
    commands: list[Callable[[], None]] = [life.deploy, life.deploy, life.undeploy, life.use, life.use, life.train]
    while left > 0:
        for _ in range(chance.randint(0, 4)):
            life.fault(*chance.choice(FAULTS), times=chance.randint(1, 4))
        command = chance.choice([*commands, life.cancel] if chance.random() < 0.9 else [life.upload])
        if chance.random() < 0.3:
            life.kill(command, request=chance.randint(1, 12), answered=chance.random() < 0.5)
        else:
            command()
        life.check()
        left -= pass_time(life, chance, min(left, chance.expovariate(1 / 7200)))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guard-dead-on", type=int, metavar="DAY", default=None)
    parser.add_argument("--wall-seconds", type=float, default=3600)
    options = parser.parse_args()
    # The SDK retries as ever, but does not wait for seconds of real time in between.
    together._base_client.INITIAL_RETRY_DELAY = 0.001  # type: ignore[misc]
    together._base_client.MAX_RETRY_DELAY = 0.002  # type: ignore[misc]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, run_emulator(Path(folder) / "emulator") as url:
        world = World(Emulator(url), Path(folder) / "data")
        world.client.close()
        world.client = connect(base_url=url, timeout=2)  # a hang costs two seconds of real time
        world.trained_object = world.ledger.get("models", world.train("first")["model_id"])["model_object_id"]
        life = Life(world, limit=DAILY_USD)
        chance, days = random.Random(options.seed), 0
        dead_day_overshoot = Decimal(0)
        for day in range(options.days):
            life.raise_limit(world.ledger.spent() + DAILY_USD)
            life.guard_alive = day != options.guard_dead_on
            live_a_day(life, chance)
            if day == options.guard_dead_on:
                life.guard_alive = True
                life.guard()  # it meters what ran unseen
                dead_day_overshoot = max(world.ledger.spent() - life.limit, Decimal(0))
            days += 1
            if time.monotonic() - began > options.wall_seconds:
                break
        life.end()
        minute = Decimal("5.49") / 60
        print(
            f"{days} days of {options.days} in {time.monotonic() - began:.0f} s: {life.faults:,} faults, "
            f"{life.kills:,} kills, {life.ticks:,} guard ticks, {len(world.ledger.find('fine_tune_jobs')):,} jobs, "
            f"{len(world.ledger.find('deployments')):,} deployments, ${world.ledger.spent():.2f} spent and billed.\n"
            f"Worst overshoot seen by a live guard: ${life.worst_overshoot:.4f} = "
            f"{life.worst_overshoot / minute:.1f} minutes of one replica. "
            f"Oldest orphan: {life.worst_orphan_reconciliations} reconciliations."
        )
        if options.guard_dead_on is not None:
            print(f"Overshoot at the end of the day without a guard: ${dead_day_overshoot:.4f}")
        world.close()


if __name__ == "__main__":
    main()
