from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.ids import uuid7, uuid7_time

times = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))


@given(times)
def test_the_time_of_an_id_is_exact_to_the_microsecond(ts: datetime) -> None:
    made = uuid7(ts)
    assert made.version == 7 and made.variant == "specified in RFC 4122"
    assert uuid7_time(made) == ts


@given(times, times)
def test_ids_sort_by_time(a: datetime, b: datetime) -> None:
    if a != b:
        assert (uuid7(a) < uuid7(b)) == (a < b)


def test_ids_of_one_instant_differ() -> None:
    now = datetime.now(UTC)
    assert len({uuid7(now) for _ in range(10_000)}) == 10_000


def test_seconds_are_taken_too() -> None:
    assert uuid7_time(uuid7(1_700_000_000.25)) == datetime.fromtimestamp(1_700_000_000.25, UTC)


@pytest.mark.parametrize("bad", [datetime(2026, 1, 1), -1.0, datetime(1969, 1, 1, tzinfo=UTC), 2.0**60])
def test_what_no_id_can_hold_is_refused(bad: datetime | float) -> None:
    with pytest.raises(ValueError, match="uuid7"):
        uuid7(bad)


def test_other_versions_have_no_time() -> None:
    with pytest.raises(ValueError, match="not a UUIDv7"):
        uuid7_time(uuid4())


def test_an_id_of_another_maker_is_exact_to_the_millisecond() -> None:
    from uuid import UUID

    rfc_example = UUID("017F22E2-79B0-7CC3-98C4-DC0C0C07398F")  # RFC 9562, appendix A.6
    made_at = datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)
    assert made_at <= uuid7_time(rfc_example) < made_at + timedelta(milliseconds=1)
