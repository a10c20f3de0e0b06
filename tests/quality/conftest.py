from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from tests.quality.log import START, conversations, land, records

NOW = START + timedelta(days=20)


@pytest.fixture(scope="session")
def landed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 120 conversations, landed. Not to be changed: copy it, as `data` does."""
    data = tmp_path_factory.mktemp("landed") / "data"
    land(data, [[record for turn in conversations(120) for record in records(turn)]])
    return data


@pytest.fixture
def data(landed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(landed, tmp_path / "data")
