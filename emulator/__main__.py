"""`python -m emulator`: serve a local Together."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from emulator.errors import ApiError, StartError
from emulator.world.context import Settings
from emulator.world.serving import TRAINERS


def _parser(defaults: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m emulator", description="A local Together, for development and tests."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder for its state; made if it is not there")
    parser.add_argument("--port", type=int, required=True, help="0: any free port")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument(
        "--clock", metavar="ISO", help="set the clock, e.g. 2026-11-22T12:00:00Z; it runs on from there"
    )
    parser.add_argument("--trainer", choices=sorted(TRAINERS), default=defaults.trainer)
    parser.add_argument("--workers", type=int, default=defaults.workers, help="trainings at a time (%(default)s)")
    parser.add_argument(
        "--cold-start",
        type=float,
        default=defaults.cold_start_seconds,
        metavar="SECONDS",
        help="until a replica is ready (%(default)s)",
    )
    parser.add_argument(
        "--stop-delay",
        type=float,
        default=defaults.stop_seconds,
        metavar="SECONDS",
        help="until a replica has stopped (%(default)s)",
    )
    parser.add_argument(
        "--honour-inactive-timeout",
        action="store_true",
        help="stop idle deployments as inactiveTimeout says; the real service was seen not to",
    )
    parser.add_argument(
        "--form",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="answer in another documented form; docs/guides/emulator.md lists them",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="serve this name in the header Host besides 127.0.0.1, localhost, ::1 and --host; *: any. Repeatable",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal comes; the process's exit status."""
    defaults = Settings()
    options = _parser(defaults).parse_args(arguments)
    os.umask(0o077)  # its files hold what was uploaded: for their owner alone
    settings = Settings(
        trainer=options.trainer,
        workers=options.workers,
        cold_start_seconds=options.cold_start,
        stop_seconds=options.stop_delay,
        honour_inactive_timeout=options.honour_inactive_timeout,
        forms=tuple((name, value) for name, _, value in (entry.partition("=") for entry in options.form)),
        allowed_hosts=(*defaults.allowed_hosts, *options.allow_host),
    )
    from emulator.server import run
    from emulator.world.clock import parse_time

    try:
        now = parse_time(options.clock) if options.clock else None
        run(options.data, port=options.port, host=options.host, settings=settings, now=now)
    except (StartError, ApiError) as error:
        print(f"emulator: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
