"""A third company's protocol is one object: Gemini's API, in `gateway/protocols/gemini.py` and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.app import create_app
from gateway.errors import GatewayConfigError
from gateway.protocols import PROTOCOLS
from gateway.protocols.answers import UpstreamAnswer
from gateway.protocols.anthropic import ANTHROPIC
from gateway.protocols.gemini import GEMINI, GENERATE
from gateway.protocols.openai import OPENAI
from gateway.protocols.table import DEFAULT_TABLE, make_table
from gateway.settings import UpstreamSettings, load_settings
from tests.gateway.conftest import TOKEN, UPSTREAM_KEY, Running, Start
from tests.gateway.scripted import ANTHROPIC_MESSAGE, Scripted, chat_answer, json
from tests.gateway.test_gateway_decisions import respond_xml

OPERATOR_KEY, CLIENT_KEY = "AIza" + "o" * 35, "AIza" + "c" * 35
PATH = "/v1beta/models/gemini-3-flash:generateContent"


TABLE = DEFAULT_TABLE
ANSWER = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "hello"}]}, "finishReason": "STOP", "index": 0}],
    "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2},
}


def read(body: bytes) -> UpstreamAnswer:
    return GENERATE.read(body, "application/json")


def question(text: str) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}]}


@pytest.fixture
async def started(start: Start, tmp_path: Path) -> Any:
    """A gateway that speaks three protocols, and the scripted Gemini."""
    settings = load_settings(tmp_path, tmp_path / "none.toml", {"REASONING_GATEWAY_TOKEN": TOKEN}, TABLE)
    async with Scripted() as google, Scripted() as anthropic, Scripted() as openai:
        google.script = json(ANSWER)
        anthropic.script, openai.script = json(ANTHROPIC_MESSAGE), json({})
        upstreams = {
            "anthropic": (UpstreamSettings(anthropic.url, api_key=UPSTREAM_KEY),),
            "openai": (UpstreamSettings(openai.url, api_key=UPSTREAM_KEY),),
            "gemini": (UpstreamSettings(google.url, api_key=OPERATOR_KEY),),
        }
        running = await start(protocols=TABLE, keys=settings.keys, upstreams=upstreams)
        running.anthropic, running.openai = anthropic, openai
        yield running, google


KEYS = ("x-goog-api-key", "x-api-key", "authorization", "x-reasoning-token")


def keys_of(seen: Any) -> dict[str, str]:
    return {name: seen.header(name) for name in KEYS if seen.header(name)}


@pytest.mark.parametrize("place", ["x-goog-api-key", "x-reasoning-token", "authorization"])
async def test_a_third_protocol_is_forwarded_with_its_own_key_only(
    started: tuple[Running, Scripted], place: str
) -> None:
    running, google = started
    token = f"Bearer {TOKEN}" if place == "authorization" else TOKEN
    status, _, body = await running.ask("POST", PATH, headers={place: token}, json=question("hi"))
    assert (status, orjson.loads(body)) == (200, ANSWER)
    assert (google.last.target, google.last.json) == (PATH, question("hi"))
    assert keys_of(google.last) == {"x-goog-api-key": OPERATOR_KEY}
    headers = {"x-reasoning-token": TOKEN, "x-goog-api-key": CLIENT_KEY}
    await running.ask("POST", PATH, headers=headers, json=question("hi"))
    assert keys_of(google.last) == {"x-goog-api-key": CLIENT_KEY}
    await running.ask("POST", "/v1/messages", headers={"x-api-key": TOKEN}, json={"messages": []})
    assert keys_of(running.anthropic.last) == {"x-api-key": UPSTREAM_KEY}
    await running.ask("POST", "/v1/chat/completions", headers={"authorization": f"Bearer {TOKEN}"}, json={})
    assert keys_of(running.openai.last) == {"authorization": f"Bearer {UPSTREAM_KEY}"}


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("/v1/messages", "x-goog-api-key", CLIENT_KEY),
        ("/v1/messages", "x-api-key", CLIENT_KEY),
        ("/v1/messages", "authorization", f"Bearer {CLIENT_KEY}"),
        ("/v1/chat/completions", "x-goog-api-key", "of-unknown-shape"),
        ("/v1/chat/completions", "authorization", f"Bearer {CLIENT_KEY}"),
        ("/v1/models", "x-note", CLIENT_KEY),
        (f"/v1/messages?key={CLIENT_KEY}", "accept", "*/*"),
        (PATH, "x-goog-api-key", "sk-ant-api03-abc"),
        (PATH, "authorization", "Bearer sk-proj-abc123"),
        (PATH, "x-api-key", "of-unknown-shape"),
        (PATH, "anthropic-version", "2023-06-01"),
        (f"{PATH}?key=sk-ant-abc", "accept", "*/*"),
    ],
)
async def test_no_credential_crosses_to_or_from_a_third_protocol(
    started: tuple[Running, Scripted], path: str, name: str, value: str
) -> None:
    running, google = started
    marks = {"anthropic-version": "2023-06-01"} if path == "/v1/models" else {}
    headers = {"x-reasoning-token": TOKEN, **marks, name: value}
    status, _, body = await running.ask("POST", path, headers=headers, json={})
    assert status == 400
    assert value.encode() not in body or name in ("accept", "anthropic-version")
    assert google.seen == running.anthropic.seen == running.openai.seen == []


async def test_decisions_in_a_third_protocol_are_recorded_and_answered(started: tuple[Running, Scripted]) -> None:
    running, google = started
    headers, said = {"x-goog-api-key": TOKEN}, "<response><name>Ada</name><action>IGNORE</action></response>"
    google.script = json(
        ANSWER | {"candidates": [{"content": {"parts": [{"text": said}]}, "finishReason": "STOP", "index": 0}]}
    )
    status, answered, body = await running.ask("POST", PATH, headers=headers, json=question(respond_xml()))
    assert (status, read(body).text) == (200, said)
    assert "x-reasoning-decision-id" in answered
    running.route("should_respond")
    running.model.script = json(chat_answer("<response><action>RESPOND</action></response>"))
    status, answered, body = await running.ask("POST", PATH, headers=headers, json=question(respond_xml()))
    assert (status, answered["x-reasoning-source"]) == (200, "custom")
    assert "RESPOND" in read(body).text
    assert len(google.seen) == 1
    original, custom = sorted(await running.records(), key=lambda row: row["source"], reverse=True)
    assert (original["source"], custom["source"]) == ("original", "custom")
    assert orjson.loads(original["decision"])["action"] == "IGNORE"
    assert {orjson.loads(row["tags"])["door"] for row in (original, custom)} == {"gemini"}


async def test_errors_of_a_third_protocol_have_its_own_form(started: tuple[Running, Scripted]) -> None:
    running, google = started
    for headers, expected in (
        ({"x-goog-api-key": "another-token-0123456789"}, (401, "UNAUTHENTICATED")),
        ({"x-goog-api-key": TOKEN, "x-api-key": "sk-ant-a"}, (400, "INVALID_ARGUMENT")),
    ):
        status, _, body = await running.ask("POST", PATH, headers=headers, json={})
        error = orjson.loads(body)["error"]
        assert (status, error["code"], error["status"]) == (expected[0], *expected)
        assert TOKEN not in error["message"]
    await google.__aexit__(None, None, None)
    status, _, body = await running.ask("POST", PATH, headers={"x-goog-api-key": TOKEN}, json={})
    assert (status, orjson.loads(body)["error"]["code"]) == (502, 502)
    status, _, body = await running.ask("POST", "/v1/messages", headers={}, json={})
    assert orjson.loads(body)["type"] == "error"


async def test_settings_and_pages_know_a_third_protocol(tmp_path: Path, started: tuple[Running, Scripted]) -> None:
    file = tmp_path / "reasoning.toml"
    file.write_text(
        '[[gateway.gemini]]\nurl = "https://g.example"\n'
        '[gateway.keys.g]\ntoken_env = "G"\nprotocols = ["gemini"]\n'
        '[gateway.keys.all]\ntoken_env = "H"\n'
    )
    env = {"G": "g-token-0123456789", "H": "h-token-0123456789", "GEMINI_API_KEY": "k"}
    settings = load_settings(tmp_path, file, env, TABLE)
    assert settings.upstreams["gemini"] == (UpstreamSettings("https://g.example", api_key="k"),)
    assert [key.protocols for key in settings.keys] == [
        {"gemini"},
        {"anthropic", "openai", "typesafe", "gemini", "decisions"},
    ]
    assert "POST /v1beta/models/*" in settings.keys[1].paths
    with pytest.raises(GatewayConfigError, match="gemini"):
        load_settings(tmp_path, file, env, make_table([ANTHROPIC, OPENAI]))
    replaced = load_settings(tmp_path, tmp_path / "none", {"REASONING_GEMINI_URL": "http://h"}, TABLE)
    assert replaced.upstreams["gemini"][0].url == "http://h"
    running, _ = started
    described = orjson.loads((await running.ask("GET", "/openapi.json"))[2])["paths"]
    assert "/v1beta/models/{model}:generateContent" in described
    assert "gemini" in orjson.loads((await running.ask("GET", "/stats"))[2])["upstreams"]


def test_two_protocols_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GatewayConfigError, match="each needs its own"):
        create_app(tmp_path, [*PROTOCOLS, GEMINI])


def test_no_module_outside_the_protocols_compares_a_company() -> None:
    """What is particular to a company is in its protocol. Sessions name the side that answers, `anthropic`, and
    persist it; coding requests have Anthropic's form."""
    root = Path(__file__).parents[2] / "gateway"
    compares = re.compile(r"is_(openai|anthropic|gemini)|[=!]= b?\"(openai|anthropic|chat|responses)\"")
    found = {
        f"{path.relative_to(root)}: {line.strip()}"
        for path in root.rglob("*.py")
        if path.relative_to(root).parts[0] != "protocols" and path.name != "sessions.py"
        for line in path.read_text().splitlines()
        if compares.search(line)
    }
    assert found == {
        'coding/anthropic.py: elif (side_in_conversation(request) or state.sessions.side(session)) == "anthropic":'
    }
