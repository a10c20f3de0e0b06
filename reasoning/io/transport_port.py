"""The port between a client and the network: one request to a model, whole or as a stream.

`reasoning.io.transport` is the real one, `reasoning.mock_transport` the one for tests. Both raise `CallFailed` for
whatever a network does; `seconds` is the deadline of all of a call, from connecting to the last byte.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol

Headers = Sequence[tuple[bytes, bytes]]


class SyncPort(Protocol):
    """What `DecisionClient` asks models through. Threads share it."""

    def post(self, url: str, headers: Headers, body: bytes, seconds: float) -> tuple[int, bytes]:
        """Status and body of the answer."""

    def stream(
        self, url: str, headers: Headers, body: bytes, seconds: float
    ) -> AbstractContextManager[tuple[int, Iterator[bytes]]]:
        """Status, and the body as it comes: reading on may raise `CallFailed` as well."""

    def close(self) -> None:
        """Close idle connections. It may be used again."""


class AsyncPort(Protocol):
    """What `AsyncDecisionClient` asks models through. Event loops may come and go."""

    async def apost(self, url: str, headers: Headers, body: bytes, seconds: float) -> tuple[int, bytes]:
        """Status and body of the answer."""

    def astream(
        self, url: str, headers: Headers, body: bytes, seconds: float
    ) -> AbstractAsyncContextManager[tuple[int, AsyncIterator[bytes]]]:
        """Status, and the body as it comes: reading on may raise `CallFailed` as well."""

    async def aclose(self) -> None:
        """Close this loop's idle connections. It may be used again."""
