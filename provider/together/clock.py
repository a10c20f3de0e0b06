"""What time it is by Together's clock."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from provider.clock import time_from_headers

if TYPE_CHECKING:
    from together import Together


def ask_time(client: Together) -> datetime | None:
    """The provider's time, by the `Date` of one small answer, whatever its status; None when it tells none."""
    import httpx
    import together

    once = client.with_options(max_retries=0)  # a refusal tells the time as well
    for _ in range(2):
        try:
            return time_from_headers(once.get("/v3/whoami", cast_to=httpx.Response).headers)
        except together.APIStatusError as error:
            return time_from_headers(error.response.headers)
        except together.APIConnectionError:
            continue
    return None
