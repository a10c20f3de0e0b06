from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tasks.rooms import start_emulator


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
