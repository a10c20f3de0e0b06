"""Every outcome of asking a model means the same to the agent's clients and to the gateway's coding model.

Both go through `reasoning.serving.model_calls`. A second table of statuses or failures, on either side, fails here.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from gateway.coding.text_filters import ThinkingFilter
from reasoning.async_client import AsyncDecisionClient
from reasoning.client import DecisionClient
from reasoning.config import BoundKey, Config
from reasoning.records import FallbackReason
from reasoning.serving.routes import Arm
from tests.gateway.conftest import Running, Start
from tests.gateway.legal import read_legal_stream
from tests.gateway.scripted import (
    ANTHROPIC_MESSAGE,
    Script,
    Scripted,
    Seen,
    chat_answer,
    chat_stream,
    cut,
    hang,
    json,
    stream,
    whole,
)
from tests.gateway.test_gateway_coding import ask, coding

CONTEXT = {"agent_name": "Ada", "messages": [{"speaker": "Bob", "text": "hi"}]}
ROOT = Path(__file__).parents[2]


class Case(NamedTuple):
    script: Script
    reason: FallbackReason | None
    opens: bool
    """Does it open the circuit breaker?"""


def status(code: int) -> Case:
    reason: FallbackReason = "over_budget" if code == 402 else "timeout" if code in (408, 504) else "provider_error"
    return Case(whole(code, b'{"error":{"message":"no"}}'), reason, code not in (400, 409, 413, 422))


STATUSES = [
    *(201, 204, 301, 302, 307, 400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417),
    *(418, 421, 422, 423, 424, 425, 426, 428, 429, 431, 451, 500, 501, 502, 503, 504, 507, 508, 511, 520, 524, 529),
]
CASES: dict[str, Case] = {
    **{str(code): status(code) for code in STATUSES},
    "connection cut": Case(cut, "provider_error", True),
    "silence": Case(hang, "timeout", True),
    "no JSON": Case(whole(200, b"<html>oops</html>"), "provider_error", True),
    "an empty body": Case(whole(200, b""), "provider_error", True),
    "no completion": Case(json({"hello": 1}), "provider_error", True),
    "no choices": Case(json({"choices": []}), "provider_error", True),
    "too large to read": Case(whole(200, b'{"a":"' + b"x" * (9 << 20) + b'"}'), "unparseable", False),
    "too many values": Case(whole(200, b'{"choices":[' + b"[]," * 300_000 + b"0]}"), "unparseable", False),
    "empty": Case(json(chat_answer("")), "unparseable", False),
    "longer than asked": Case(json(chat_answer("x" * 100_000)), "unparseable", False),
    "filtered": Case(json(chat_answer("x", finish="content_filter")), "unparseable", False),
    "aborted": Case(json(chat_answer("x", finish="abort")), "unparseable", False),
    "cut by its limit": Case(json(chat_answer(None, finish="length")), "unparseable", False),
}
FAILURES = 2
ASKED = FAILURES + 1


async def by_sync_client(running: Running, config: Config) -> tuple[set[Any], set[str]]:
    def decide() -> tuple[set[Any], set[str]]:
        with DecisionClient(config=config) as client:
            answers = [client.decide("should_respond", CONTEXT, lambda _: "IGNORE") for _ in range(ASKED)]
            return {a.fallback_reason for a in answers}, set(client.stats()["breakers"].values())

    return await asyncio.to_thread(decide)


async def by_async_client(running: Running, config: Config) -> tuple[set[Any], set[str]]:
    async with AsyncDecisionClient(config=config) as client:
        answers = [await client.decide("should_respond", CONTEXT, lambda _: "IGNORE") for _ in range(ASKED)]
        return {a.fallback_reason for a in answers}, set(client.stats()["breakers"].values())


async def by_gateway(running: Running, config: Config) -> tuple[set[Any], set[str]]:
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    for number in range(ASKED):
        request = coding(f"fix the code {number}", max_tokens=1024)
        assert (await ask(running, request))[0] == 200
    states = set(running.gateway.state.coding.breaker_states().values())
    rows = [row for row in await running.records() if row["source"] == "original"]
    return {row["fallback_reason"] for row in rows}, states


@pytest.mark.parametrize("name", CASES)
async def test_every_outcome_means_the_same_to_all_callers(start: Start, name: str) -> None:
    script, reason, opens = CASES[name]
    running = await start(config={"breaker_failures": FAILURES})
    running.model.script = script
    for asked_by in (by_sync_client, by_async_client, by_gateway):
        decision_type = "coding" if asked_by is by_gateway else "should_respond"
        running.route(decision_type, deadline_ms=100.0 if name == "silence" else 10_000.0)
        running.model.seen.clear()
        reasons, states = await asked_by(running, running.gateway.config)
        assert states == ({"open"} if opens else {"closed"}), asked_by
        assert reasons == ({reason, "circuit_open"} if opens else {reason}), asked_by
        assert len(running.model.seen) == (FAILURES if opens else ASKED), asked_by


def test_statuses_are_read_in_one_place():
    tables = re.compile(r"\b(40[0-9]|413|422|429|50[0-9])\b.*\b(40[0-9]|413|422|429|50[0-9])\b")
    found = {
        path.name
        for path in [*(ROOT / "reasoning").rglob("*.py"), *(ROOT / "gateway").glob("coding*.py")]
        for line in path.read_text().splitlines()
        if tables.search(line.partition("#")[0]) and not line.startswith('    """')
    }
    assert found == {"model_calls.py"}


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_of_more_than_16_characters_a_token_is_none(start: Start, streamed: bool) -> None:
    running = await start(config={"breaker_failures": 1})
    running.route(deadline_ms=10_000)
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    for length, source in ((160, "custom"), (161, None)):
        text = "x" * length
        answer = stream(*chat_stream(text)) if streamed else json(chat_answer(text))
        running.model.script = answer
        _, headers, _ = await ask(running, coding(f"fix the code {length}", max_tokens=10, stream=streamed))
        assert headers.get("x-reasoning-source") == source
    assert set(running.gateway.state.coding.breaker_states().values()) == {"closed"}
    rows = await running.records()
    assert [row["fallback_reason"] for row in rows if not row["served"]] == ["unparseable"]


async def test_arguments_count_as_well(start: Start) -> None:
    running = await start()
    running.route(deadline_ms=10_000)
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    arguments = orjson.dumps({"command": "x" * 200}).decode()
    call = {"id": "c", "type": "function", "function": {"name": "Bash", "arguments": arguments}}
    running.model.script = json(chat_answer("I look.", [call], "tool_calls"))
    assert "x-reasoning-source" not in (await ask(running, coding(max_tokens=10)))[1]
    assert (await ask(running, coding("fix it again", max_tokens=100)))[1]["x-reasoning-source"] == "custom"


async def test_a_long_event_of_a_stream_is_served(start: Start) -> None:
    running = await start()
    running.route(deadline_ms=10_000)
    running.model.script = stream(*chat_stream("y" * 300_000, "end"))
    _, headers, body = await ask(running, coding(max_tokens=32_000, stream=True))
    message, error = read_legal_stream(body)
    assert headers["x-reasoning-source"] == "custom" and error is None and message is not None
    assert message["content"][0]["text"] == "y" * 300_000 + "end"


@pytest.mark.parametrize("text", ["<think>a</think>\n", "<think> a\n", "</think>", "<think>a</think>\n   <thi"])
def test_thoughts_in_one_piece_take_linear_time(text: str) -> None:
    def seconds(size: int) -> float:
        best = 60.0
        for _ in range(3):
            started = time.process_time()
            ThinkingFilter().feed(text * (size // len(text)))
            best = min(best, time.process_time() - started)
        return best

    assert seconds(256_000) < 12 * seconds(32_000) + 0.02  # 8 times as much; a square would be 64


async def test_the_copies_of_answers_count_in_the_budget(start: Start) -> None:
    running = await start()
    budget, seen = running.gateway.budget, []

    async def answer(request: Seen, writer: asyncio.StreamWriter) -> None:
        body = b"data: " + b"z" * 500_000 + b"\n\n"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%b\r\n" % (len(body), body))
        while budget.used < 500_000:  # would hang here if the copy did not count
            await asyncio.sleep(0.005)
        seen.append(budget.used)
        writer.write(b"0\r\n\r\n")

    running.anthropic.script = answer
    assert (await asyncio.wait_for(ask(running, coding(stream=True)), 20))[0] == 200
    assert seen
    await asyncio.sleep(0)
    assert budget.used == 0


async def test_the_gateway_asks_a_registered_model_by_its_own_name_and_key(start: Start) -> None:
    async with Scripted(json(chat_answer("done"))) as own:
        arm = Arm(
            *("custom", "custom", 1.0),
            model="endpoint/mine",
            base_url=own.url,
            request_model="org/coder",
            key_variable="VLLM_KEY",
            logprobs="flag",
        )
        running = await start(config={"keys": (BoundKey("VLLM_KEY", (own.url,), "vk-0123456789"),)})
        running.anthropic.script = json(ANTHROPIC_MESSAGE)
        running.route(arms=(arm,), min_confidence=0.01)
        assert (await ask(running, coding("fix the code", max_tokens=64)))[0] == 200
        assert own.last.header("authorization") == "Bearer vk-0123456789"
        assert (own.last.json["model"], own.last.json["logprobs"]) == ("org/coder", True)
        running.route(arms=(replace(arm, base_url=running.model.url),))  # as whoever can write the file might
        running.model.script = json(chat_answer("done"))
        assert (await ask(running, coding("fix another", max_tokens=64)))[0] == 200
        assert running.model.seen == []
    rows = await running.records()
    assert {row["model"] for row in rows if row["source"] == "custom"} == {"endpoint/mine"}
    assert [row["fallback_reason"] for row in rows if row["served"]] == ["low_confidence", "disabled"]
    assert "vk-0123456789" not in str(rows)
