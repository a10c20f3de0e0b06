"""A bound on the memory that requests under way hold: bodies, decompressed copies, and the objects made of them."""

from __future__ import annotations

from gateway.errors import RequestRefused

FREE_BYTES = 64 << 10
"""A request up to this size is never refused for want of memory: `max_concurrency` bounds these."""


class Budget:
    """Bytes under way in all requests together. For one event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> None:
        """Raises `RequestRefused` (503) where that would be more than the limit."""
        if self.used + size > self.limit:
            raise RequestRefused(
                503,
                "overloaded_error",
                f"the requests under way hold {self.used >> 20} MB of {self.limit >> 20} MB (body_budget_mb in "
                "[gateway]); send this one again in a moment",
            )
        self.used += size

    def give(self, size: int) -> None:
        """Take back what `take` was given."""
        self.used -= size
