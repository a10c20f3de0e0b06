from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.layout import Layout
from storage.ledger.ledger import Ledger, open_ledger
from tests.tasks.rooms import NOON, start_emulator


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a local provider that starts and stops its replicas at once."""
    with start_emulator(tmp_path_factory.mktemp("emulator")) as url:
        yield url


@pytest.fixture
def local(emulator: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The local provider, set as the one to use."""
    monkeypatch.setenv("REASONING_PROVIDER", "local")
    monkeypatch.setenv("REASONING_PROVIDER_URL", emulator)
    monkeypatch.delenv("REASONING_LEDGER_URL", raising=False)
    return emulator


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """The ledger of a new data folder; the provider that is set cannot be reached."""
    monkeypatch.delenv("REASONING_LEDGER_URL", raising=False)
    monkeypatch.setenv("REASONING_PROVIDER", "local")
    monkeypatch.setenv("REASONING_PROVIDER_URL", "http://127.0.0.1:9")
    with open_ledger(Layout(tmp_path).create().data, now=NOON) as found:
        yield found
