"""The unmodified client takes every answer of the emulator."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.server import ROUTES
from tests.emulator.conformance import Transcript, check_cli, check_sdk, write_dataset
from tests.emulator.conftest import Server


@pytest.mark.parametrize("use_async", [False, True], ids=["sync", "async"])
async def test_sdk_takes_every_answer(server: Server, tmp_path: Path, use_async: bool) -> None:
    transcript = Transcript()
    dataset = write_dataset(tmp_path / f"dataset-{use_async}.jsonl")
    await check_sdk(server.url, transcript, dataset, use_async=use_async)
    called = {call for _, call in transcript.calls}
    print("\n" + transcript.render())
    assert len(called) == 53
    assert "all passed" in transcript.render()


@pytest.mark.torture  # a dozen starts of a command that takes its second to start
def test_command_takes_every_answer(server: Server, tmp_path: Path) -> None:
    transcript = Transcript()
    check_cli(server.url, transcript, write_dataset(tmp_path / "dataset.jsonl"), tmp_path)
    print("\n" + transcript.render())
    assert {call.removeprefix("together ") for _, call in transcript.calls} == {
        "files check",
        "files upload",
        "fine-tuning create",
        "fine-tuning list",
        "fine-tuning list-events",
        "fine-tuning retrieve",
        "fine-tuning download",
        "endpoints deploy",
        "endpoints ls",
        "endpoints update",
        "endpoints rm",
    }


def test_docs_list_every_route() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "emulator.md").read_text()
    for route in ROUTES:
        (method,) = (route.methods or set()) - {"HEAD"}
        assert f"`{method} {route.path}`" in page
