"""UUIDv7 identifiers made from a record's own time (RFC 9562, section 5.7).

Layout: 48 bits of Unix milliseconds, 12 bits of the microseconds within the millisecond (section 6.2, method 3), 62
random bits. So ids sort by time, and the time of one of ours is recovered to the microsecond.
"""

from __future__ import annotations

import os
import random
from datetime import UTC, datetime, timedelta
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_US = (1 << 48) * 1000 - 1
_VERSION_AND_VARIANT = (0x7 << 76) | (0b10 << 62)
# Our own generator: an agent that calls random.seed() must not make its processes repeat each other's ids.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


def uuid7(ts: datetime | float) -> UUID:
    """Make a UUIDv7 of `ts`: an aware datetime, or seconds since the epoch.

    Raises ValueError for a naive datetime and for a time outside 1970..10889.
    """
    if isinstance(ts, datetime):
        if ts.tzinfo is None:
            raise ValueError(f"uuid7 needs an aware datetime, got the naive {ts!r}")
        age = ts - _EPOCH
        us = (age.days * 86_400 + age.seconds) * 1_000_000 + age.microseconds
    else:
        us = round(ts * 1_000_000)
    if not 0 <= us <= _MAX_US:
        raise ValueError(f"uuid7 cannot hold the time {ts!r}: it is outside 1970..10889")
    ms, us = divmod(us, 1000)
    return UUID(int=ms << 80 | us * 4096 // 1000 << 64 | _random.getrandbits(62) | _VERSION_AND_VARIANT)


def uuid7_time(value: UUID) -> datetime:
    """The time in a UUIDv7, UTC. Exact to the millisecond for anyone's, to the microsecond for those of `uuid7`.

    Raises ValueError when `value` is of another version.
    """
    if value.version != 7:
        raise ValueError(f"{value} is not a UUIDv7")
    number = value.int
    fraction = number >> 64 & 0xFFF
    return _EPOCH + timedelta(milliseconds=number >> 80, microseconds=-(-fraction * 1000 // 4096))
