"""Coding over Anthropic's API: served by the model, fallen back from, kept on its side, and recorded."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.coding.sessions import Sessions
from gateway.decisions.episodes import Episodes
from gateway.store import Store
from reasoning.io.segments import read_segment
from reasoning.serving.routes import Arm
from tests.gateway import scripted
from tests.gateway.conftest import Running, Start
from tests.gateway.legal import read_legal_stream
from tests.gateway.scripted import (
    ANTHROPIC_MESSAGE,
    DONE,
    anthropic_stream,
    chat_answer,
    chat_chunk,
    chat_stream,
    json,
    message_events,
    stream,
    whole,
)

TOOLS = [
    {"name": "Bash", "description": "run", "input_schema": {"type": "object", "properties": {}}},
    {"name": "Edit", "description": "edit", "input_schema": {"type": "object", "properties": {}}},
]


def coding(text: str = "Please fix the bug in main.py", **fields: Any) -> dict[str, Any]:
    body = {
        "model": "claude-x",
        "max_tokens": 500,
        "system": [{"type": "text", "text": "You are a coding agent."}],
        "tools": TOOLS,
        "messages": [{"role": "user", "content": text}],
    }
    return body | fields


async def ask(running: Running, body: dict[str, Any], **options: Any) -> tuple[int, Any, bytes]:
    return await running.ask("POST", "/v1/messages", json=body, **options)


async def test_whole_answer(start: Start) -> None:
    running = await start()
    running.route()
    call = {"id": "c", "type": "function", "function": {"name": "Bash", "arguments": '{"command":"ls"}'}}
    running.model.script = json(chat_answer("I look.", [call], "tool_calls"))
    status, headers, body = await ask(running, coding())
    message = orjson.loads(body)
    assert status == 200
    assert headers["x-reasoning-source"] == "custom"
    assert headers["request-id"]
    assert message["stop_reason"] == "tool_use"
    assert message["content"][0] == {"type": "text", "text": "I look."}
    assert message["content"][1]["input"] == {"command": "ls"}
    assert message["content"][1]["id"].startswith("toolu_")
    assert message["usage"]["input_tokens"] == 12
    assert running.anthropic.seen == []
    sent = running.model.last.json
    assert sent["model"] == "ep/coder"
    assert [m["role"] for m in sent["messages"]] == ["system", "user"]
    assert [t["function"]["name"] for t in sent["tools"]] == ["Bash", "Edit"]
    assert running.model.last.header("authorization") == "Bearer local"


async def test_streamed_answer(start: Start) -> None:
    running = await start()
    running.route()
    running.model.script = stream(*chat_stream("Hel", "lo"))
    _, headers, body = await ask(running, coding(stream=True))
    message, error = read_legal_stream(body)
    assert error is None
    assert message is not None
    assert message["content"][0]["text"] == "Hello"
    assert headers["content-type"].startswith("text/event-stream")
    assert running.model.last.json["stream_options"] == {"include_usage": True}


async def test_streamed_answers_share_connections(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.coding.model.READ_OUT_S", 10)
    running = await start()
    running.route()
    running.model.script = stream(*chat_stream("Hel", "lo"))
    for _ in range(3):
        assert (await ask(running, coding(stream=True)))[0] == 200
    assert running.model.connections < 3  # one, unless a request overtakes the end of the answer before


UNAVAILABLE = {
    "429": whole(429, b"{}"),
    "500": whole(500, b"{}"),
    "529": whole(529, b"{}"),
    "401": whole(401, b"{}"),
    "400": whole(400, b"{}"),
    "402": whole(402, b"{}"),
    "redirect": whole(302, b"", ("location", "http://127.0.0.1:1/")),
    "cut": scripted.cut,
    "hang": scripted.hang,
    "empty": json(chat_answer("")),
    "filtered": json(chat_answer("x", finish="content_filter")),
    "html": whole(200, b"<html>oops</html>", content_type="text/html"),
    "bad arguments": json(chat_answer(None, [{"function": {"name": "Bash", "arguments": "{"}}], "tool_calls")),
}
REASONS = {
    "402": "over_budget",
    "hang": "timeout",
    "empty": "unparseable",
    "filtered": "unparseable",
    "bad arguments": "unparseable",
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("fault", UNAVAILABLE)
async def test_every_fault_before_the_first_byte_is_answered_by_anthropic(
    start: Start, fault: str, streamed: bool
) -> None:
    running = await start()
    running.route(deadline_ms=300.0 if fault == "hang" else 10_000.0)
    if streamed and fault in ("empty", "filtered", "bad arguments"):
        chunks = {
            "empty": chat_stream(),
            "filtered": chat_stream(finish="content_filter"),
            "bad arguments": [chat_chunk(content=" "), DONE],
        }
        running.model.script = stream(*chunks[fault])
    else:
        running.model.script = UNAVAILABLE[fault]
    answer = anthropic_stream() if streamed else None
    running.anthropic.script = stream(answer) if answer else json(ANTHROPIC_MESSAGE)
    status, headers, body = await ask(running, coding(stream=streamed))
    assert status == 200
    assert "x-reasoning-source" not in headers
    assert (answer or b"msg_upstream") in body
    rows = await running.records()
    assert [(row["source"], row["served"]) for row in rows] == [("custom", False), ("original", True)]
    assert rows[0]["fallback_reason"] == rows[1]["fallback_reason"]
    if not streamed:
        if fault == "html":
            assert rows[0]["fallback_reason"] == "provider_error"
        else:
            assert rows[0]["fallback_reason"] == REASONS.get(fault, "provider_error")
    assert running.gateway.state.metrics.statistics()["fallback"] == 1
    assert len(running.model.seen) == 1


@pytest.mark.parametrize("fault", ["cut", "error", "no finish", "garbage", "silence"])
async def test_fault_within_the_stream_is_an_error_event_and_the_retry_is_anthropics(start: Start, fault: str) -> None:
    running = await start(coding_idle_timeout_s=0.2)
    running.route()
    arrived = asyncio.Event()

    async def script(seen: scripted.Seen, writer: asyncio.StreamWriter) -> None:
        def send(chunk: bytes) -> None:
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        send(chat_chunk(content="Half an "))
        await asyncio.wait_for(arrived.wait(), 5)
        if fault == "silence":
            await seen.closed.wait()
        elif fault != "cut":
            send(
                {"error": b'data: {"error": {"message": "x"}}\n\n', "no finish": DONE, "garbage": b"data: {{{\n\n"}[
                    fault
                ]
            )
            writer.write(b"0\r\n\r\n")
            return
        writer.close()

    running.model.script = script
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    async with running.http.post(
        running.url + "/v1/messages", json=coding(stream=True), headers=running.headers
    ) as response:
        body = await response.content.readany()
        arrived.set()
        body += await response.content.read()
    message, error = read_legal_stream(body)
    assert message is None
    assert error is not None
    assert error["type"] == "api_error"
    running.model.script = json(chat_answer())
    _, headers, body = await ask(running, coding())  # the client's non-streaming retry
    assert "x-reasoning-source" not in headers
    assert b"msg_upstream" in body
    follow = coding(
        messages=[*coding()["messages"], {"role": "assistant", "content": "x"}, {"role": "user", "content": "go on"}]
    )
    _, headers, _ = await ask(running, follow)  # and so is the rest of the session
    assert "x-reasoning-source" not in headers
    rows = await running.records()
    assert [(row["source"], row["served"]) for row in rows][:2] == [("custom", True), ("original", True)]
    assert rows[0]["fallback_reason"] in ("provider_error", "unparseable", "timeout")


async def test_a_silent_model_is_bridged_by_pings(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.coding.model.PING_S", 0.03)
    running = await start()
    running.route()
    pinged = asyncio.Event()

    async def waits(seen: scripted.Seen, writer: asyncio.StreamWriter) -> None:
        first, *rest = chat_stream("a", "b")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + first)
        await pinged.wait()
        writer.write(b"".join(rest))
        await writer.drain()
        writer.close()

    running.model.script = waits
    body = b""
    async with running.http.post(
        f"{running.url}/v1/messages", json=coding(stream=True), headers=running.headers
    ) as response:
        async for chunk in response.content.iter_any():
            body += chunk
            if body.count(b"event: ping") == 3:
                pinged.set()
    message, _ = read_legal_stream(body)
    assert message is not None
    assert message["content"] == [{"type": "text", "text": "ab"}]


async def test_client_that_goes_stops_the_model(start: Start) -> None:
    running = await start()
    running.route()

    async def endless(seen: scripted.Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk = chat_chunk(content="x")
        while not seen.closed.is_set():
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await asyncio.sleep(0.01)

    running.model.script = endless
    async with running.http.post(
        running.url + "/v1/messages", json=coding(stream=True), headers=running.headers
    ) as response:
        await response.content.readany()
        response.close()
    await asyncio.wait_for(running.model.last.closed.wait(), 5)
    assert running.anthropic.seen == []
    async with asyncio.timeout(5):
        while running.gateway.active:
            await asyncio.sleep(0.01)
    assert [len(server.under_way) for server in running.gateway.state.coding._calls._servers.values()] == [0]
    [row] = await running.records()  # what it had said is on record, and teaches nothing
    assert (row["source"], row["served"], row["valid"]) == ("custom", True, False)
    assert row["error"] == "the client went away"


@pytest.mark.parametrize(
    ("why", "reason"),
    [("disabled", "disabled"), ("no routes", "no_route"), ("expired", "lease_expired"), ("other type", "no_route")],
)
async def test_without_a_lease_all_goes_to_anthropic(start: Start, why: str, reason: str) -> None:
    running = await start(config={"enabled": why != "disabled"})
    if why == "expired":
        running.route(expires_in=-0.5)
    elif why != "no routes":
        running.route("planning" if why == "other type" else "coding")
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    assert (await ask(running, coding()))[0] == 200
    assert running.model.seen == []
    assert running.anthropic.last.json == coding()
    [row] = await running.records()
    assert (row["source"], row["served"], row["fallback_reason"]) == ("original", True, reason)
    assert orjson.loads(row["decision"]) == {"code": "print(1)", "explanation": "Explained.", "language": "python"}
    assert row["messages"][-1] == {"role": "user", "content": "Please fix the bug in main.py"}
    assert row["input_tokens"] == 11


async def test_breaker_opens_and_spares_the_model(start: Start) -> None:
    running = await start(config={"breaker_failures": 2})
    running.route()
    running.model.script = whole(500, b"{}")
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    for i in range(5):
        assert (await ask(running, coding(f"fix bug {i} in the code")))[0] == 200
    assert len(running.model.seen) == 2
    assert running.gateway.state.metrics.statistics()["fallback_by_reason"]["coding:circuit_open"] == 3


async def test_session_stays_where_it_began(start: Start) -> None:
    running = await start()
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    running.model.script = json(chat_answer())
    session = {"metadata": {"user_id": "user_x_account__session_11111111-2222-3333-4444-555555555555"}}
    running.route(weight=0.0, arms=(Arm("original", "original", weight=1.0),))
    await ask(running, coding(**session))
    running.route()  # all weight on the model now
    _, headers, _ = await ask(running, coding("another question of it: fix the code", **session))
    assert "x-reasoning-source" not in headers
    _, headers, _ = await ask(running, coding("fix the code of another session"))
    assert headers["x-reasoning-source"] == "custom"


@pytest.mark.parametrize(
    "turn",
    [
        [{"type": "thinking", "thinking": "hm", "signature": "EqQB"}, {"type": "text", "text": "a"}],
        [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "a"}],
        [{"type": "tool_use", "id": "toolu_01ABC", "name": "Bash", "input": {}}],
    ],
)
async def test_conversation_that_anthropic_wrote_stays_there(start: Start, turn: list[Any]) -> None:
    # CLIProxyAPI #1584: a signature after a switch of the model.
    running = await start()
    running.route()
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    last: Any = "go on with the code"
    if turn[0]["type"] == "tool_use":
        last = [{"type": "tool_result", "tool_use_id": "toolu_01ABC", "content": "ok"}]
    body = coding(
        messages=[
            {"role": "user", "content": "fix it"},
            {"role": "assistant", "content": turn},
            {"role": "user", "content": last},
        ]
    )
    assert (await ask(running, body))[0] == 200
    assert running.model.seen == []


async def test_conversation_of_our_tools_goes_on_at_the_model(start: Start) -> None:
    running = await start()
    running.route()
    call = {"id": "c", "function": {"name": "Bash", "arguments": "{}"}}
    running.model.scripts = [json(chat_answer(None, [call], "tool_calls")), json(chat_answer("Done."))]
    _, _, body = await ask(running, coding())
    message = orjson.loads(body)
    tool_id = message["content"][0]["id"]
    result = [{"type": "tool_result", "tool_use_id": tool_id, "content": "ok"}]
    turns = [
        *coding()["messages"],
        {"role": "assistant", "content": message["content"]},
        {"role": "user", "content": result},
    ]
    _, headers, _ = await ask(running, coding(messages=turns))
    assert headers["x-reasoning-source"] == "custom"
    sent = running.model.last.json["messages"]
    assert sent[-1] == {"role": "tool", "tool_call_id": tool_id, "content": "ok"}
    rows = await running.records()
    assert len({row["episode_id"] for row in rows}) == 1
    assert "<tool_call>" in rows[0]["completion"]
    assert rows[1]["messages"][-1] == {"role": "user", "content": "<tool_response>\nok\n</tool_response>"}


PDF = b"%PDF-1.7 secret bytes"
PDF_NAME = f"[document: application/pdf, {len(PDF)} bytes, sha256 {sha256(PDF).hexdigest()}]"
DOCUMENT = {
    "type": "document",
    "source": {"type": "base64", "media_type": "application/pdf", "data": b64encode(PDF).decode()},
}


def turn(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*blocks, {"type": "text", "text": "fix the code"}]}]}


@pytest.mark.parametrize(
    ("fields", "untranslated", "said"),
    [
        ({"tools": [*TOOLS, {"type": "web_search_20260209", "name": "web_search"}]}, "server_tool", "fix the bug"),
        (
            turn({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}}),
            "image",
            "[image: image/png, 1 bytes, sha256 ",
        ),
        (turn(DOCUMENT), "document", f"{PDF_NAME}\nfix the code"),
        (
            turn({"type": "document", "source": {"type": "url", "url": "https://u:p@x.org/a.pdf?sig=secret#s"}}),
            "document",
            "[document: https://x.org/a.pdf]\nfix",
        ),
        (
            turn({"type": "container_upload", "file_id": "file_1"}),
            "container_upload",
            "[container_upload: JSON, 46 bytes, sha256 ",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "fix the code"},
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "text", "text": "I read."},
                            {"type": "tool_use", "id": "toolu_rsn1", "name": "Read", "input": {"path": "a.pdf"}},
                        ],
                    },
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "tool_use_id": "toolu_rsn1", "content": [DOCUMENT]}],
                    },
                ]
            },
            "document",
            f"<tool_response>\n{PDF_NAME}\n</tool_response>",
        ),
        (
            {"messages": [{"role": "user", "content": "fix the code"}, {"role": "assistant", "content": "def f("}]},
            "prefill",
            "def f(",
        ),
        ({"mcp_servers": [{"url": "https://x", "authorization_token": "secret"}]}, "unknown_field", "fix the bug"),
        ({"a_field_of_the_future": 1}, "unknown_field", "fix the bug"),
    ],
)
async def test_what_cannot_be_translated_goes_to_anthropic_unchanged_and_is_on_record(
    start: Start, fields: dict[str, Any], untranslated: str, said: str
) -> None:
    running = await start()
    running.route()
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    status, headers, _ = await ask(running, coding(**fields))
    assert status == 200
    assert running.model.seen == []
    assert running.anthropic.last.json == coding(**fields)
    [reason] = running.gateway.state.metrics.statistics()["fallback_by_reason"]
    assert reason.startswith("coding:untranslatable_")
    [row] = await running.records()
    assert (row["source"], row["served"], row["valid"]) == ("original", True, True)
    assert str(row["decision_id"]) == headers["x-reasoning-decision-id"]
    assert orjson.loads(row["tags"])["untranslated"] == untranslated
    assert said in row["messages"][-1]["content"]
    assert b64encode(PDF).decode() not in str(row)
    assert "secret" not in str(row)


async def test_a_session_that_left_for_what_cannot_be_translated_does_not_come_back(start: Start) -> None:
    running = await start()
    running.route()
    running.model.script, running.anthropic.script = json(chat_answer()), json(ANTHROPIC_MESSAGE)
    session = {"x-claude-code-session-id": "s1", **running.headers}
    served = []
    for fields in ({}, turn(DOCUMENT), {}):
        _, headers, _ = await ask(running, coding(**fields), headers=session)
        served.append(headers.get("x-reasoning-source"))
    assert served == ["custom", None, None]


async def test_a_picture_that_the_model_saw_is_but_named_in_the_log(start: Start) -> None:
    running = await start(coding_images=True)
    running.route()
    running.model.script = json(chat_answer())
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}
    _, headers, _ = await ask(running, coding(**turn(image)))
    assert headers["x-reasoning-source"] == "custom"
    assert running.model.last.json["messages"][-1]["content"][0]["image_url"]["url"] == "data:image/png;base64,QUJD"
    [row] = await running.records()
    assert orjson.loads(row["tags"])["untranslated"] == "image"
    assert row["messages"][-1]["content"].startswith(
        f"[image: image/png, 3 bytes, sha256 {sha256(b'ABC').hexdigest()}]"
    )


async def test_a_model_that_is_asked_in_text_is_not_asked_about_pictures(start: Start) -> None:
    running = await start(coding_images=True, coding_tools="text")
    running.route()
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}
    assert (await ask(running, coding(**turn(image))))[0] == 200
    assert running.model.seen == []
    assert running.gateway.state.metrics.statistics()["fallback_by_reason"] == {"coding:untranslatable_image": 1}


def on_disk(running: Running) -> list[dict[str, Any]]:
    """What a kill at this moment would leave."""
    return [row for path in (running.data / "spool").glob("*.open") for _, row in read_segment(path).lines]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("by", ["custom", "anthropic"])
async def test_who_has_an_answer_can_give_feedback_on_it(start: Start, by: str, streamed: bool) -> None:
    running = await start()
    if by == "custom":
        running.route()
        running.model.script = stream(*chat_stream("Hel", "lo")) if streamed else json(chat_answer())
    answer = anthropic_stream() if streamed else orjson.dumps(ANTHROPIC_MESSAGE)
    running.anthropic.script = stream(answer) if streamed else whole(200, answer)
    for size in (0, 300_000):  # a large one is written by the recorder's thread
        _, headers, body = await ask(running, coding("fix the bug" + " " * size, stream=streamed))
        row = next(row for row in on_disk(running) if str(row["decision_id"]) == headers["x-reasoning-decision-id"])
        assert (row["source"], row["served"]) == ("custom" if by == "custom" else "original", True)
        if by == "anthropic":  # nothing else of the answer is touched
            assert body == answer
            length = "transfer-encoding" if streamed else "content-length"
            assert {name.lower() for name in headers} - {"request-id"} == {
                *("content-type", length, "x-reasoning-decision-id")
            }
    given = {"decision_id": headers["x-reasoning-decision-id"], "metric": "tests_passed", "value": True}
    assert (await running.ask("POST", "/v1/feedback", json=given))[0] == 202


async def test_what_was_cut_on_its_way_is_on_record_and_teaches_nobody(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start()
    call = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}}
    events = message_events(ANTHROPIC_MESSAGE | {"content": [{"type": "text", "text": "Hi you"}, call]})
    text, within_call = events[:6], events[:13]
    failure = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"m"}}\n\n'
    whole_answer = orjson.dumps(ANTHROPIC_MESSAGE)
    scripts = {
        "cut": (stream(*text, end=False), "upstream", "Hi "),
        "cut within a call": (stream(*within_call, end=False), "upstream", 'Hi you\n<tool_call>\n{"name":"Bash"'),
        "ended without its last event": (stream(*events[:-1]), "upstream", "Hi you\n<tool_call>"),
        "an error": (stream(*text, failure), "upstream", "Hi "),
        "half a JSON": (stream(whole_answer[:50], end=False, content_type="application/json"), "upstream", ""),
        "no JSON": (whole(200, b"<html>"), "upstream", ""),
        "a limit": (json(ANTHROPIC_MESSAGE | {"stop_reason": "max_tokens"}), "max_tokens", "Explained."),
    }
    told = {}
    for name, (script, cut, said) in scripts.items():
        running.anthropic.script = script
        async with running.http.post(
            f"{running.url}/v1/messages", json=coding(f"fix the code of {name}"), headers=running.headers
        ) as response:
            told[response.headers["x-reasoning-decision-id"]] = (cut, said)
            with suppress(aiohttp.ClientError):
                await response.read()
    running.anthropic.script = stream(*text, *[b": wait\n\n"] * 1000, pause=0.01)
    async with running.http.post(f"{running.url}/v1/messages", json=coding(), headers=running.headers) as response:
        await response.content.readany()
        told[response.headers["x-reasoning-decision-id"]] = ("client", "")
    await asyncio.wait_for(running.anthropic.last.closed.wait(), 5)
    monkeypatch.setattr("gateway.http.forward.MAX_COPY_BYTES", 600)
    running.anthropic.script = stream(*events)
    _, headers, _ = await ask(running, coding("fix the code of the long one"))
    told[headers["x-reasoning-decision-id"]] = ("size", "")
    rows = {str(row["decision_id"]): row for row in await running.records()}
    assert rows.keys() == told.keys()
    for decision_id, (cut, said) in told.items():
        row = rows[decision_id]
        assert (row["served"], row["valid"], row["decision"], orjson.loads(row["tags"])["cut"]) == (
            True,
            False,
            None,
            cut,
        )
        assert (row["completion"] or "").startswith(said)
        assert (row["error"] is None) == (cut == "max_tokens")


async def test_answers_that_are_not_recorded_have_no_decision(start: Start) -> None:
    running = await start()
    running.anthropic.script = whole(529, b"{}", ("retry-after", "7"))
    assert "x-reasoning-decision-id" not in (await ask(running, coding()))[1]
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    assert "x-reasoning-decision-id" not in (await ask(running, coding("hi", tools=[], system="")))[1]
    silent = await start(record=False)
    silent.anthropic.script = json(ANTHROPIC_MESSAGE)
    silent.model.script = json(chat_answer())
    assert "x-reasoning-decision-id" not in (await ask(silent, coding()))[1]
    silent.route()
    _, headers, _ = await ask(silent, coding("fix another bug"))
    assert headers["x-reasoning-source"] == "custom"
    assert "x-reasoning-decision-id" not in headers
    assert await running.records() == await silent.records() == []


async def test_least_busy_deployment_of_a_model_is_asked(start: Start) -> None:
    running = await start()
    async with scripted.Scripted(json(chat_answer())) as second:
        arms = (
            Arm("a", "custom", weight=1.0, model="ep/coder", base_url=running.model.url),
            Arm("b", "custom", weight=1.0, model="ep/coder", base_url=second.url),
        )
        running.route(arms=arms)
        running.model.script = scripted.hang
        running.anthropic.script = json(ANTHROPIC_MESSAGE)
        second.script = scripted.hang
        tasks = [asyncio.create_task(ask(running, coding(f"fix code {i}"))) for i in range(6)]
        async with asyncio.timeout(5):
            while len(running.model.seen) + len(second.seen) < 6:
                await asyncio.sleep(0.01)
        assert (len(running.model.seen), len(second.seen)) == (3, 3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_count_tokens_is_anthropics(start: Start) -> None:
    running = await start()
    running.route()
    running.anthropic.script = json({"input_tokens": 3})
    status, _, body = await running.ask("POST", "/v1/messages/count_tokens", json=coding())
    assert (status, body) == (200, b'{"input_tokens":3}')
    assert running.model.seen == []


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The disk hangs in every write of a segment while this event is not set."""
    works, write = threading.Event(), os.write
    works.set()

    def hangs(fd: int, text: bytes) -> int:
        if Path(f"/proc/self/fd/{fd}").readlink().parent.name == "spool":
            works.wait()
        return write(fd, text)

    monkeypatch.setattr(os, "write", hangs)
    monkeypatch.setattr("gateway.ops.record.LOOK_S", 0.02)
    yield works
    works.set()


async def test_recorder_never_blocks_an_answer_and_counts_what_it_drops(start: Start, disk: threading.Event) -> None:
    running = await start(record_queue_mb=1.0)
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    disk.clear()
    large = coding("fix the code " + "x" * 300_000)
    for _ in range(4):  # the first waits for a moment, the others do not, the last does not fit
        assert (await ask(running, large))[0] == 200
    assert (await ask(running, coding()))[0] == 200  # nor does a small one go past a disk that is stuck
    statistics = running.gateway.state.metrics.statistics()
    assert (statistics["records_late"], statistics["records_dropped"]) == (4, {"queue_full": 1})
    disk.set()
    assert len(await running.records()) == 4


async def test_a_disk_that_hangs_keeps_no_door_waiting(start: Start, disk: threading.Event) -> None:
    running = await start()
    running.route("should_respond")
    running.anthropic.script = running.openai.script = stream(anthropic_stream())
    running.model.script = json(chat_answer("<response><action>STOP</action></response>"))
    disk.clear()
    context = {"agent_name": "Ada", "messages": [{"speaker": "Ann", "text": "Ada?"}]}
    status, headers, _ = await ask(running, coding(stream=True))
    assert (status, "x-reasoning-decision-id" in headers) == (200, True)
    question = {"context": context, "original": "IGNORE"}
    status, _, answer = await running.ask("POST", "/v1/decide/should_respond", json=question)
    assert (status, orjson.loads(answer)["source"]) == (200, "custom")
    told = {"metric": "helpful", "value": True, "decision_id": orjson.loads(answer)["decision_id"]}
    assert (await running.ask("POST", "/v1/feedback", json=told))[0] == 503  # nobody can promise that it is kept
    assert (await running.ask("GET", "/readyz"))[0] == 200
    assert running.gateway.state.metrics.statistics()["records_late"] == 3
    disk.set()
    while running.gateway.state.metrics.statistics()["recorded"] < 3:
        await asyncio.sleep(0.01)
    assert (await running.ask("POST", "/v1/feedback", json=told))[0] == 202
    assert [row["record"] for row in await running.records()] == ["decision", "decision", "feedback", "feedback"]


async def test_full_disk_costs_records_and_no_answers(start: Start) -> None:
    running = await start()
    (running.data / "spool").rmdir() if (running.data / "spool").exists() else None
    (running.data / "spool").write_text("in the way")
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    assert (await ask(running, coding()))[0] == 200
    await asyncio.to_thread(running.gateway.state.recorder.close)
    assert running.gateway.state.metrics.statistics()["records_dropped"] == {"not_written": 1}


def test_sessions_are_shared_by_gateways_and_move_once(tmp_path: Path) -> None:
    now = [0.0]
    stores = [Store(tmp_path / "s.sqlite") for _ in range(2)]
    one, two = (Sessions(store, clock=lambda: now[0]) for store in stores)
    assert one.side("s") is None
    one.put("s", "custom")
    stores[0].flush()
    assert two.side("s") == "custom"
    two.put("s", "anthropic")
    stores[1].flush()
    assert one.side("s") == "anthropic"
    one.put("s", "custom")
    stores[0].flush()
    assert two.side("s") == one.side("s") == "anthropic"
    now[0] = 25 * 3600
    assert one.side("s") is None
    two.put("t", "custom")
    Sessions(stores[1], clock=lambda: now[0]).put("u", "custom")  # the first of every so many sweeps
    stores[1].flush()
    assert [row[0] for row in stores[0].read("SELECT session FROM sessions ORDER BY 1")] == ["t", "u"]
    for store in stores:
        store.close()


def test_a_writer_of_another_gateway_keeps_no_reader_waiting(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite")
    sessions = Sessions(store)
    sessions.put("s", "custom")
    store.flush()
    with closing(sqlite3.connect(tmp_path / "s.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        sessions.put("t", "anthropic")  # waits, in its thread
        assert (sessions.side("s"), sessions.side("t")) == ("custom", "anthropic")
        other.execute("COMMIT")
    store.flush()
    assert len(store.read("SELECT session FROM sessions")) == 2
    store.close()


def test_what_waits_for_the_store_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.MAX_WAITING", 5)
    store = Store(tmp_path / "s.sqlite")
    insert, count = "INSERT INTO sessions VALUES (?, 'custom', 1.0)", "SELECT count(*) FROM sessions"
    with closing(sqlite3.connect(tmp_path / "s.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(20):
            store.write(insert, (str(number),))
        other.execute("COMMIT")
    store.flush()
    assert store.read(count) == [(5,)]
    store.write(insert, ("later",))
    store.flush()
    assert store.read(count) == [(6,)]
    store.close()


def test_sessions_and_episodes_without_a_store_are_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "s.sqlite")
    sessions, episodes = Sessions(store), Episodes(store)
    sessions.put("s", "anthropic")
    assert sessions.side("s") == "anthropic"
    assert sessions.count() == {"anthropic": 1}
    assert episodes.find("", ["a", "b"]) == episodes.find("", ["b", "c"])
    store.close()
