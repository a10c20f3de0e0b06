"""A full cycle through the gateway with a real local provider: what agents asked is logged and learned, the model
serves through the same endpoints, the guard withdraws it, and feedback arrives where labels are read."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

import storage
from gateway.app import Gateway
from gateway.settings import UpstreamSettings, load_settings
from pipeline.models import deploy, export, fine_tune
from provider.lifecycle.guard import guard_costs
from provider.lifecycle.routes import publish_route
from provider.providers import open_provider
from reasoning.config import load_config
from reasoning.serving.routes import Arm, Route
from storage.layout import Layout
from storage.ledger.ledger import open_ledger
from storage.log.land import land_decisions
from tests.gateway.conftest import TOKEN, serving
from tests.gateway.scripted import ANTHROPIC_MESSAGE, Scripted, Seen, chat_answer, json
from tests.gateway.test_gateway_coding import DOCUMENT, TOOLS, coding, turn
from tests.gateway.test_gateway_decisions import plan_xml, respond_xml
from tests.tasks.rooms import start_emulator

TYPES = ("should_respond", "planning", "coding")
ASKED = 60
UNSEEN = 61  # shows a document that no model of ours can see
HEADERS = {"authorization": f"Bearer {TOKEN}"}
WORDS = ("harbour", "lantern", "violet", "copper", "meadow", "thunder", "pencil", "orbit", "saddle", "garden")


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with start_emulator(tmp_path / "emulator", "--trainer", "majority") as url:
        monkeypatch.setenv("REASONING_PROVIDER", "local")
        monkeypatch.setenv("REASONING_PROVIDER_URL", url)
        monkeypatch.delenv("REASONING_LEDGER_URL", raising=False)
        yield url


def question(kind: str, number: int) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Path, body and headers of a request that asks for a decision, no two alike."""
    draw = random.Random(number)
    words = " ".join(draw.choice(WORDS) + str(draw.randrange(10_000)) for _ in range(12))
    headers = HEADERS | {"x-reasoning-episode-id": f"{kind}-{number}"}
    if kind == "coding":
        session = {"metadata": {"user_id": orjson.dumps({"session_id": f"session-{number}"}).decode()}}
        body = coding(f"Please fix the bug in main.py: {words}", **session)
        if number == UNSEEN:
            body |= turn(DOCUMENT)
        return "/v1/messages", body, headers
    prompt = (respond_xml() if kind == "should_respond" else plan_xml()).replace("Is the build red again?", words)
    return "/v1/chat/completions", {"model": "gpt", "messages": [{"role": "user", "content": prompt}]}, headers


async def ask(http: aiohttp.ClientSession, url: str, kind: str, number: int) -> tuple[str | None, dict[str, Any], str]:
    """Who answered, the answer, and the decision's id where a model took it."""
    path, body, headers = question(kind, number)
    async with http.post(url + path, json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        source, decision = response.headers.get("x-reasoning-source"), response.headers.get("x-reasoning-decision-id")
        return source, await response.json(), decision or ""


def upstreams(anthropic: Scripted, openai: Scripted) -> None:
    """The original logic: mostly one answer, at times another, as the words of the question have it."""

    async def decide(seen: Seen, writer: asyncio.StreamWriter) -> None:
        rare = sum(seen.body) % 5 == 0
        if b"Generate dialog" in seen.body:
            actions = "REPLY" if rare else "REPLY, RUN_BUILD"
            rest = "<thought>t</thought><providers></providers><text>On it</text>"
            said = f"<response><actions>{actions}</actions>{rest}</response>"
        else:
            said = f"<response><action>{'IGNORE' if rare else 'RESPOND'}</action></response>"
        await json(chat_answer(said))(seen, writer)

    async def code(seen: Seen, writer: asyncio.StreamWriter) -> None:
        command = "cat main.py" if sum(seen.body) % 5 == 0 else "pytest -x"
        call = {"type": "tool_use", "id": "toolu_01Up", "name": "Bash", "input": {"command": command}}
        content = [{"type": "text", "text": "I look."}, call]
        await json(ANTHROPIC_MESSAGE | {"content": content, "stop_reason": "tool_use"})(seen, writer)

    anthropic.script, openai.script = code, decide


def train_and_deploy(data: Path, kind: str) -> str:
    """The name under which a model of `kind` is served; it has no traffic yet."""
    manifest = export(data, kind)
    assert manifest.label_sources == {"original": manifest.rows}
    assert manifest.dropped.get("untranslated", 0) == (kind == "coding")
    job = fine_tune(data, manifest.path, tier="small", anyway=True)  # all labels are the original's own
    assert job.state == "completed"
    return str(deploy(data, kind).served_name)


async def test_what_the_gateway_logs_teaches_the_model_that_it_serves(tmp_path: Path, provider: str) -> None:
    data = Layout(tmp_path / "data").create().data
    with open_ledger(data) as ledger:
        ledger.set_budget("hour", None)
        ledger.set_budget("day", None)  # three cycles at once, of which each holds an hour of its candidate
        ledger.set_budget("total", "1000")
    env = {"REASONING_GATEWAY_TOKEN": TOKEN}

    async with Scripted() as anthropic, Scripted() as openai, aiohttp.ClientSession() as http:
        upstreams(anthropic, openai)
        settings = replace(
            load_settings(data, tmp_path / "none.toml", env),
            upstreams={
                "anthropic": (UpstreamSettings(anthropic.url),),
                "openai": (UpstreamSettings(openai.url),),
            },
            log_requests=False,
        )
        config = load_config(data)
        async with serving(Gateway(config, settings)) as url:
            for kind in TYPES:
                answers = await asyncio.gather(*(ask(http, url, kind, n) for n in range(ASKED)))
                assert {source for source, _, _ in answers} == {None}
            await ask(http, url, "coding", UNSEEN)
        land_decisions(data)

        with ThreadPoolExecutor(len(TYPES)) as pool:
            served = await asyncio.gather(
                *(asyncio.get_running_loop().run_in_executor(pool, train_and_deploy, data, kind) for kind in TYPES)
            )
        for kind, model in zip(TYPES, served, strict=True):
            arm = Arm("custom", "custom", weight=1.0, model=model, base_url=provider)
            publish_route(data / "routes.json", kind, Route((arm,), deadline_ms=10_000.0), lease=timedelta(hours=1))

        async with serving(Gateway(config, settings)) as url:
            asked_before = len(anthropic.seen) + len(openai.seen)
            source, responded, decision_id = await ask(http, url, "should_respond", 1000)
            assert source == "custom"
            assert "<action>RESPOND</action>" in responded["choices"][0]["message"]["content"]
            assert responded["usage"]["prompt_tokens"] > 0
            source, planned, _ = await ask(http, url, "planning", 1000)
            assert source == "custom"
            assert "<actions>REPLY,RUN_BUILD</actions>" in planned["choices"][0]["message"]["content"]
            source, coded, coding_id = await ask(http, url, "coding", 1000)
            assert source == "custom"
            assert coded["stop_reason"] == "tool_use"
            assert [block["type"] for block in coded["content"]] == ["text", "tool_use"]
            assert coded["content"][1]["input"] == {"command": "pytest -x"}
            assert len(anthropic.seen) + len(openai.seen) == asked_before

            with open_ledger(data) as ledger:
                ledger.set_budget("total", "0.01")
            with open_provider(data) as opened:
                report = guard_costs(data, opened)
            assert report.level == "stop", report
            for kind in TYPES:  # at once, and without anybody having failed
                source, _, _ = await ask(http, url, kind, 2000)
                assert source is None
            assert len(anthropic.seen) + len(openai.seen) == asked_before + len(TYPES)

            given = {"metric": "demonstration", "kind": "demonstration", "decision_id": decision_id}
            given |= {"value": {"action": "IGNORE"}, "author": "test"}
            async with http.post(url + "/v1/feedback", json=given, headers=HEADERS) as response:
                assert response.status == 202
            given = {"metric": "tests_passed", "value": True, "decision_id": coding_id}
            async with http.post(url + "/v1/feedback", json=given, headers=HEADERS) as response:
                assert response.status == 202
        land_decisions(data)

    rows = storage.sql(
        data,
        "SELECT decision_type, source, served, label, label_source, fallback_reason FROM labelled_decisions "
        "WHERE episode_id LIKE '%-1000' OR episode_id LIKE '%-2000' ORDER BY ts",
    ).rows
    assert [(row[0], row[1], row[2]) for row in rows] == [
        *((kind, "custom", True) for kind in TYPES),
        *((kind, "original", True) for kind in TYPES),
    ]
    assert (orjson.loads(rows[0][3]), rows[0][4]) == ({"action": "IGNORE"}, "demonstration")
    assert orjson.loads(rows[2][3])["tool_calls"] == [{"name": "Bash", "arguments": {"command": "pytest -x"}}]
    assert {row[5] for row in rows[3:]} == {"no_route"}
    passed = (
        "SELECT d.episode_id FROM decisions AS d JOIN feedback USING (date, decision_id) WHERE metric = 'tests_passed'"
    )
    assert storage.sql(data, passed).rows == [("coding-1000",)]
    assert (
        TOOLS[0]["name"]
        in storage.sql(data, "SELECT tools FROM decisions WHERE decision_type = 'coding' LIMIT 1").rows[0][0]
    )
