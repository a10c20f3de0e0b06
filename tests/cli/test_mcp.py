"""The tools that a coding agent gets from `reasoning mcp`, asked by the protocol's own client."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from storage.log.land import land_decisions
from tests.storage.logs import make_days, write_segment

if find_spec("mcp") is None:
    pytest.skip("install the extra `mcp`", allow_module_level=True)


@pytest.fixture(autouse=True)
def uvicorn_as_it_was() -> Iterator[None]:
    """The SDK's server of events replaces a method of uvicorn when it is imported."""
    handle_exit = uvicorn.Server.handle_exit
    yield
    uvicorn.Server.handle_exit = handle_exit  # type: ignore[method-assign]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_segment(tmp_path, make_days(2, 3))
    land_decisions(tmp_path)
    return tmp_path


async def ask(data: Path, tool: str, label_as: str | None = None, **arguments: Any) -> Any:
    import mcp

    from cli.mcp import make_server

    async with mcp.Client(make_server(data, label_as)) as client:
        return await client.call_tool(tool, arguments)


async def test_a_query_gives_rows_and_cannot_write(data: Path) -> None:
    found = await ask(data, "query", sql="SELECT decision_type, count(*) AS n FROM decisions GROUP BY ALL")
    assert found.structured_content["rows"] == [["should_respond", 6]]
    target = data / "stolen.csv"
    refused = await ask(data, "query", sql=f"COPY (SELECT 1) TO '{target}'")
    assert refused.is_error and not target.exists()
    refused = await ask(data, "query", sql="SELECT * FROM read_text('/etc/hostname')")
    assert refused.is_error


async def test_a_decision_is_listed_and_shown_in_full(data: Path) -> None:
    [first, *_] = (await ask(data, "latest_decisions", limit=2)).structured_content["result"]
    shown = (await ask(data, "show_decision", decision_id=first["decision_id"])).structured_content
    assert shown["decision_id"] == first["decision_id"] and shown["messages"]


@pytest.mark.parametrize("tool", ["does_it_pay", "costs", "models"])
async def test_reports_are_json(data: Path, tool: str) -> None:
    assert not (await ask(data, tool)).is_error


async def test_labels_are_offered_only_where_allowed_and_land_under_the_authors_name(data: Path) -> None:
    import mcp

    from cli.mcp import make_server

    async with mcp.Client(make_server(data)) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert "label_decision" not in tools
    assert all(tool.annotations.read_only_hint for tool in tools.values())

    found = await ask(data, "questions_to_label", "claude", decision_type="should_respond")
    question = found.structured_content["questions"][0]["decision_id"]
    wrong = await ask(
        data,
        "label_decision",
        "claude",
        decision_type="should_respond",
        decision_id=question,
        answer={"action": "X"},
        why="",
    )
    assert wrong.is_error and "RESPOND" in wrong.content[0].text
    await ask(
        data,
        "label_decision",
        "claude",
        decision_type="should_respond",
        decision_id=question,
        answer={"action": "STOP"},
        why="said goodbye",
    )
    land_decisions(data)
    rows = await ask(data, "query", sql="SELECT author, value->>'$' FROM feedback WHERE kind = 'demonstration'")
    assert rows.structured_content["rows"] == [["claude", '{"action":"STOP"}']]


@pytest.mark.torture
async def test_the_command_speaks_the_protocol_on_standard_output(data: Path) -> None:
    import mcp

    server = mcp.StdioServerParameters(command=sys.executable, args=["-m", "cli", "mcp", "--data", str(data)])
    async with mcp.Client(server) as client:
        assert len((await client.list_tools()).tools) == 6
