"""Requests whose body is compressed: read for what they ask, passed on as they came."""

from __future__ import annotations

import gzip
import zlib

import brotli
import orjson
import pytest

from gateway.http import bodies
from gateway.http.bodies import zstd
from tests.gateway.conftest import Running, Start
from tests.gateway.scripted import ANTHROPIC_MESSAGE, chat_answer, json
from tests.gateway.test_gateway_coding import coding
from tests.gateway.test_gateway_decisions import CONTEXT, OURS, PROMPTS, request


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


CODINGS = {
    "gzip": gzip.compress,
    "X-Gzip": lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:]),
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "br": brotli.compress,
    "zstd": zstd.compress,
    "identity": bytes,
}


async def post(running: Running, path: str, body: bytes, coding: str) -> tuple[int, dict[str, str], bytes]:
    headers = {**running.headers, "content-encoding": coding, "content-type": "application/json"}
    return await running.ask("POST", path, data=body, headers=headers)


async def test_a_compressed_request_is_seen_for_what_it_is_and_passes_as_it_came(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start()
    running.route(weight=1.0)
    running.model.script, running.anthropic.script = json(chat_answer("x = 1")), json(ANTHROPIC_MESSAGE)
    for inline in (bodies.INLINE_BYTES, 100):  # in the event loop, and in a thread
        monkeypatch.setattr(bodies, "INLINE_BYTES", inline)
        for name, pack in CODINGS.items():
            body = orjson.dumps(coding(f"fix the code, {name} {inline}"))
            status, headers, answer = await post(running, "/v1/messages", pack(body), name)
            assert (status, headers.get("x-reasoning-source")) == (200, "custom"), name
            assert orjson.loads(answer)["content"][0]["text"] == "x = 1"
            assert running.model.last.header("content-encoding") is None
            assert running.model.last.json["messages"][-1]["content"] == f"fix the code, {name} {inline}"
    running.model.script = json({}, 500)
    packed = zstd.compress(orjson.dumps(coding("fix the code of the other")))
    assert (await post(running, "/v1/messages", packed, "zstd"))[0] == 200
    assert (running.anthropic.last.body, running.anthropic.last.header("content-encoding")) == (packed, "zstd")
    rows = await running.records()
    assert len(rows) == 2 * len(CODINGS) + 2
    assert all("fix the code" in row["messages"][-1]["content"] for row in rows)


async def test_decisions_may_come_compressed(start: Start) -> None:
    running = await start()
    running.route("should_respond")
    running.model.script = json(chat_answer(OURS["should_respond"]))
    for form in ("chat", "responses", "anthropic"):
        path, prompt = request(form, PROMPTS["should_respond", "xml"], streamed=False)
        _, headers, _ = await post(running, path, gzip.compress(orjson.dumps(prompt)), "gzip")
        assert headers["x-reasoning-source"] == "custom"
    packed = brotli.compress(orjson.dumps({"context": CONTEXT, "original": "IGNORE"}))
    assert (await post(running, "/v1/decide/should_respond", packed, "br"))[0] == 200
    status, _, answer = await post(running, "/v1/decide/should_respond", packed[:-2], "br")
    assert (status, orjson.loads(answer)["error"]["type"]) == (400, "BadRequest")


async def test_what_swells_is_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_BODY_BYTES", 1 << 20)
    running = await start()
    bomb = b'{"a":"' + b"x" * bodies.MAX_BODY_BYTES + b'"}'
    for name, packed in (
        ("gzip", gzip.compress(bomb, 1)),
        ("br", brotli.compress(bomb, quality=1)),
        ("zstd", zstd.compress(bomb)),
    ):
        for path, shape in (("/v1/messages", "type"), ("/v1/chat/completions", "code")):
            status, _, answer = await post(running, path, packed, name)
            assert (status, orjson.loads(answer)["error"][shape]) == (413, "request_too_large")
    assert running.anthropic.seen == running.openai.seen == []


async def test_what_is_damaged_passes_unread(start: Start) -> None:
    running = await start()
    running.route()
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    body = orjson.dumps(coding())
    unread = [
        ("gzip", b"".join(gzip.compress(b"") for _ in range(1000)) + gzip.compress(body)),
        *((name, CODINGS[name](body)[:-5]) for name in ("gzip", "deflate", "Deflate", "br", "zstd")),
        *((name, body) for name in ("gzip", "deflate", "br", "zstd", "compress")),
        ("gzip, br", brotli.compress(gzip.compress(body))),
    ]
    for name, packed in unread:
        assert (await post(running, "/v1/messages", packed, name))[0] == 200
        assert running.anthropic.last.body == packed, name
    assert len(running.anthropic.seen) == len(unread)
    assert running.model.seen == await running.records() == []
