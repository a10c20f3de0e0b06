"""Whose a decision is: its id says so, to this gateway only.

A decision may be labelled by the key that it was made for. There are millions of ids, and labels come days later, so
nothing is stored: the last 24 of the 62 random bits of a UUIDv7 are a keyed hash of the rest and the key's name. A key
cannot choose the id of another's decision, so it has one chance in 16 million for each id, however often it tries. 38
random bits within a microsecond remain, which is enough for ids to differ.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime
from pathlib import Path
from uuid import UUID

from gateway.errors import GatewayConfigError
from reasoning.ids import uuid7
from storage.files import make_folder, write_once

_BITS = 24
_MASK = (1 << _BITS) - 1


class Owners:
    """Makes the ids of decisions, and tells whether an id was made for a key."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def make_id(self, ts: datetime, key_name: str) -> UUID:
        """A UUIDv7 of `ts` for a decision of `key_name`."""
        number = uuid7(ts).int & ~_MASK
        return UUID(int=number | self._mark(number, key_name))

    def is_owner(self, decision_id: UUID, key_name: str) -> bool:
        """Was this id made for `key_name`?"""
        number = decision_id.int & ~_MASK
        return decision_id.int & _MASK == self._mark(number, key_name)

    def _mark(self, number: int, key_name: str) -> int:
        text = number.to_bytes(16) + key_name.encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=_BITS // 8, key=self._secret).digest())


def open_owners(path: Path) -> Owners:
    """The owners by the secret in `path`, which the gateways of one data folder share. Made when there is none (0600).

    Raises `GatewayConfigError`.
    """
    try:
        if not path.exists():
            make_folder(path.parent)
            write_once(path, secrets.token_bytes(32))
        secret = path.read_bytes()
    except OSError as error:
        raise GatewayConfigError(f"{path}: {error.strerror}; make the data folder writable") from None
    if len(secret) != 32:
        raise GatewayConfigError(f"{path}: 32 bytes are needed, not {len(secret)}; remove it, and a new one is made")
    return Owners(secret)
