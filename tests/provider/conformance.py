"""What the conformance suite knows of each provider: how to reach it, and what may be asked of it.

To add a provider, add it to `SUBJECTS`, with its capabilities and one function that gives a `Subject`. Which tests ask
it anything follows from its capabilities (`provider.capabilities.Capabilities`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from provider.capabilities import Capabilities
from provider.endpoint.adapter import EndpointProvider
from provider.endpoint.arms import served_name
from provider.local.adapter import LocalProvider
from provider.port import Provider
from provider.providers import capabilities_of
from provider.together.adapter import TogetherProvider
from provider.together.client import connect
from reasoning.config import Config
from storage.ledger.ledger import open_ledger
from storage.ledger.rows import ENDPOINT, Model
from tests.provider.local.test_local import stop_server
from tests.provider.world import Emulator, conversation
from tests.reasoning.conftest import ModelServer


def _sleep(_: float) -> None:
    time.sleep(0.01)


@dataclass(frozen=True)
class Subject:
    """A provider under test.

    `tier` can be trained on. `served` is a model that answers without our doing, None where one is deployed first.
    `pass_time` lets as many seconds pass, in which the provider works. `lose_answers` gives a block in which creates
    (`POST` to a path that ends so) are done and not answered.
    """

    provider: Provider
    tier: str = "small"
    served: str | None = None
    pass_time: Callable[[float], None] = _sleep
    lose_answers: Callable[[str], AbstractContextManager[None]] = lambda path: nullcontext()


@contextmanager
def together(request: pytest.FixtureRequest, folder: Path) -> Iterator[Subject]:
    """Together, played by the emulator: the real SDK over HTTP."""
    emulator: Emulator = request.getfixturevalue("emulator")

    def pass_time(seconds: float) -> None:
        emulator.advance(seconds)
        time.sleep(0.01)  # training is real, and takes real time

    @contextmanager
    def lose_answers(path: str) -> Iterator[None]:
        emulator.fault("lost_response", f"POST {path}", times=1)
        yield
        emulator.clear_faults()

    with TogetherProvider(connect(base_url=emulator.url)) as provider:
        yield Subject(provider, pass_time=pass_time, lose_answers=lose_answers)


@contextmanager
def endpoint(request: pytest.FixtureRequest, folder: Path) -> Iterator[Subject]:
    """A model that somebody else runs at a URL."""
    server = ModelServer()
    request.addfinalizer(server.close)
    with open_ledger(folder) as ledger:
        model = ledger.add(
            Model,
            state="trained",
            provider=ENDPOINT,
            name="theirs",
            base_model="org/small",
            model_object_id="org/small",
            base_url=server.url,
            logprobs="none",
        )
    with EndpointProvider(Config(data=folder), [model]) as provider:
        yield Subject(provider, served=served_name("theirs"))


@contextmanager
def local(request: pytest.FixtureRequest, folder: Path) -> Iterator[Subject]:
    """Models that are trained and served on this machine."""
    provider = LocalProvider(folder)

    def pass_time(_: float) -> None:
        time.sleep(0.1)  # its processes take real time

    yield Subject(provider, tier="local/linear", pass_time=pass_time)
    stop_server(provider.folder)


Open = Callable[[pytest.FixtureRequest, Path], AbstractContextManager[Subject]]

SUBJECTS: dict[str, tuple[Capabilities, Open]] = {
    name: (capabilities_of(name), opened)
    for name, opened in (("together", together), ("local", local), ("endpoint", endpoint))
}
TRAINERS = [name for name, (can, _) in SUBJECTS.items() if can.trains]
SERVERS = [name for name, (can, _) in SUBJECTS.items() if not can.trains]
SHARERS = [name for name, (can, _) in SUBJECTS.items() if can.adapters_per_replica != 0]
BILLERS = [name for name, (can, _) in SUBJECTS.items() if can.bills]


def write_training_file(path: Path, rows: int = 40) -> Path:
    """A file of rows that nobody else has: a provider may answer with the file that it has."""
    lines = (orjson.dumps({"messages": conversation(f"{path} {row}")}) for row in range(rows))
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path
