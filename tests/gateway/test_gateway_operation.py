"""Running it: health, metrics, statistics, documentation, traces, drain, and the command itself."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.ops.logs import JsonFormatter, Sink
from gateway.settings import UpstreamSettings
from reasoning.io.segments import read_segment
from tests.gateway import scripted
from tests.gateway.conftest import TOKEN, Start
from tests.gateway.scripted import ANTHROPIC_MESSAGE, chat_answer, json, stream, whole
from tests.gateway.test_gateway_coding import coding


async def test_metrics_and_statistics_tell_the_same(start: Start) -> None:
    running = await start()
    running.route()
    running.model.scripts = [json(chat_answer()), whole(500, b"{}")]
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    running.openai.script = json({})
    await running.ask("POST", "/v1/messages", json=coding("fix the code of one"))
    await running.ask("POST", "/v1/messages", json=coding("fix the code of two"))
    await running.ask("GET", "/v1/models")
    await running.ask("GET", "/v1/models", headers={})
    await asyncio.to_thread(running.gateway.state.recorder.close)
    status, headers, body = await running.ask("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float:
        return found[f"reasoning_gateway_{name}", tuple(sorted(labels.items()))]

    assert value("requests_total", route="messages", served_by="custom", status="200") == 1
    assert value("requests_total", route="messages", served_by="anthropic", status="200") == 1
    assert value("requests_total", route="other", served_by="gateway", status="401") == 1
    assert value("fallbacks_total", kind="coding", reason="provider_error") == 1
    assert value("tokens_total", served_by="custom", direction="input") == 20
    assert value("tokens_total", served_by="anthropic", direction="output") == 7
    assert value("spend_usd_total") == pytest.approx(20e-6)
    assert value("time_to_first_token_seconds_count", route="messages", served_by="custom") == 1
    assert value("latency_seconds_count", route="messages", served_by="anthropic") == 1
    stats = orjson.loads((await running.ask("GET", "/stats"))[2])
    assert (stats["custom"], stats["fallback"]) == (1, 1)
    assert stats["by_route"]["messages"] == {"custom": 1, "anthropic": 1}
    assert stats["fallback_by_reason"] == {"coding:provider_error": 1}
    assert stats["sessions"].keys() <= {"custom", "anthropic"}
    assert stats["lease"]["in_force"] is True
    assert {arm["name"] for arm in stats["lease"]["arms"]} == {"custom", "original"}
    for found in (stats["latency_ms"], stats["first_token_ms"]):
        assert found["messages/custom"]["count"] >= 1
        assert 0 < found["messages/custom"]["p50"] <= found["messages/custom"]["p95"]
    assert stats["recorded"] == 3
    assert stats["breakers"] == {f"ep/coder@{running.model.url}": "closed"}
    assert stats["upstreams"]["anthropic"][0]["active"] == 0


async def test_the_documentation_needs_nothing_from_elsewhere(start: Start) -> None:
    running = await start()
    status, headers, page = await running.ask("GET", "/docs", headers={"accept": "text/html,*/*;q=0.8"})
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert not re.findall(rb"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", page)
    assert not re.findall(rb"\s(?:style|on\w+)=", page), "the policy would not let it"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        [text] = re.findall(rb"<%b>(.*?)</%b>" % (tag.encode(), tag.encode()), page, re.S)
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" in policy
    assert running.anthropic.seen == running.openai.seen == []
    assert TOKEN.encode() not in page
    assert str(running.data).encode() not in page


async def test_a_program_at_the_root_is_told_where_the_documentation_is(start: Start) -> None:
    running = await start()
    status, _, body = await running.ask("GET", "/", headers={"accept": "*/*"})
    assert status == 401
    assert b"/docs" in body


async def test_documentation(start: Start) -> None:
    running = await start()
    api = orjson.loads((await running.ask("GET", "/openapi.json", headers={}))[2])
    assert api["openapi"] == "3.1.0"
    for name in ("should_respond", "planning", "coding"):
        body = api["paths"][f"/v1/decide/{name}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["required"] == ["context", "original"]
    assert "/v1/feedback" in api["paths"]


def test_traces_without_the_package_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.errors import GatewayConfigError
    from gateway.ops.tracing import open_tracer

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(GatewayConfigError, match="extra `tracing`"):
        open_tracer()


def test_logs_are_json_without_traces() -> None:
    import logging

    try:
        raise ValueError("Bearer sk-abcdefgh12345")
    except ValueError:
        record = logging.LogRecord("gateway", 40, "f", 1, "failed %s", ("x",), sys.exc_info())
    line = orjson.loads(JsonFormatter().format(record))
    assert (line["message"], line["level"]) == ("failed x", "error")
    assert "sk-abcdefgh12345" not in str(line)
    assert "Traceback" not in str(line)


async def begin(data: Path, upstream: str, **env: str) -> tuple[asyncio.subprocess.Process, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "--data", str(data), "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=data,
        env={**os.environ, "REASONING_GATEWAY_TOKEN": TOKEN, "REASONING_ANTHROPIC_URL": upstream, **env},
    )
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
    return process, line.removeprefix("gateway: ").strip()


async def ready(http: aiohttp.ClientSession, url: str) -> int:
    for _ in range(600):
        try:
            async with http.get(url + "/readyz") as response:
                return response.status
        except aiohttp.ClientConnectionError:
            await asyncio.sleep(0.05)
    raise AssertionError("never ready")


def test_logs_wait_for_nobody() -> None:
    reader, writer = os.pipe()
    sink = Sink(writer, max_bytes=1 << 20)
    line = b"x" * 99 + b"\n"
    for _ in range(20_000):  # twice what may wait, while nobody reads
        sink.write(line)
    got, left_out = b"", 0
    while got.count(line) + left_out < 20_000:
        got += os.read(reader, 1 << 20)
        left_out = sum(map(int, re.findall(rb'"(\d+) log lines left out"', got)))
    assert left_out > 5_000
    os.close(reader)
    sink.write(line)  # and nobody minds that the reader has gone
    sink.flush()
    os.close(writer)


async def test_sigterm_finishes_what_is_under_way(tmp_path: Path) -> None:
    (tmp_path / "reasoning.toml").write_text("[gateway]\ndrain_s = 1.0\n")
    gate = asyncio.Event()

    async def slow(seen: scripted.Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await writer.drain()
        await gate.wait()
        writer.write(b"4\r\nlast\r\n0\r\n\r\n")

    async with scripted.Scripted(slow) as upstream, aiohttp.ClientSession() as http:
        process, url = await begin(tmp_path, upstream.url)
        try:
            assert await ready(http, url) == 200
            headers = {"authorization": f"Bearer {TOKEN}"}
            async with http.post(url + "/v1/messages", data=b"{}", headers=headers) as response:
                assert await response.content.readexactly(5) == b"first"
                process.send_signal(signal.SIGTERM)
                while await ready(http, url) == 200:
                    await asyncio.sleep(0.01)
                assert await ready(http, url) == 503  # a load balancer sees it, and the door is still open
                gate.set()
                assert await response.content.read() == b"last"
            assert await asyncio.wait_for(process.wait(), 20) in (0, -signal.SIGTERM)
        finally:
            if process.returncode is None:
                process.kill()
        assert process.stderr is not None
        lines = [orjson.loads(line) for line in (await process.stderr.read()).splitlines()]
        [access] = [line for line in lines if line.get("route") == "messages"]
        assert (access["status"], access["served_by"], access["key"]) == (200, "anthropic", "default")


async def test_two_gateways_on_one_data_folder_and_one_is_killed(tmp_path: Path) -> None:
    answered: list[str] = []

    async def ask(http: aiohttp.ClientSession, url: str) -> None:
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with http.post(url + "/v1/messages", json=coding(), headers=headers) as response:
            assert response.status == 200
            await response.read()
            answered.append(response.headers["x-reasoning-decision-id"])

    async def ask_until_it_dies(http: aiohttp.ClientSession, url: str) -> None:
        with suppress(aiohttp.ClientError):
            while True:
                await ask(http, url)

    async with scripted.Scripted(json(ANTHROPIC_MESSAGE)) as upstream, aiohttp.ClientSession() as http:
        started = [await begin(tmp_path, upstream.url) for _ in range(2)]
        (killed, at), (_, url) = started
        try:
            assert [await ready(http, at), await ready(http, url)] == [200, 200]
            asking = [asyncio.create_task(ask_until_it_dies(http, at)) for _ in range(16)]
            while len(answered) < 100:
                await asyncio.sleep(0.001)
            killed.kill()
            await asyncio.gather(*asking)
            await ask(http, url)
        finally:
            for process, _ in started:
                if process.returncode is None:
                    process.send_signal(signal.SIGINT)
            ended = await asyncio.gather(*(asyncio.wait_for(process.wait(), 20) for process, _ in started))
    assert ended == [-signal.SIGKILL, 0]
    spool = tmp_path / "spool"
    assert (len(list(spool.glob("*.open"))), len(list(spool.glob("*.seal")))) == (1, 1)
    recorded = {str(row["decision_id"]) for path in spool.iterdir() for _, row in read_segment(path).lines}
    assert recorded >= set(answered)  # what was answered is on record, whatever became of the process


async def test_wrong_configuration_ends_it_with_a_clear_word(tmp_path: Path) -> None:
    (tmp_path / "reasoning.toml").write_text("[gateway]\nports = 3\n")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "--data", str(tmp_path), "--port", "0"),
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
    )
    _, error = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert error.startswith(b"error: reasoning.toml: [gateway] ports is not known")
    assert b"Traceback" not in error


async def test_many_streams_at_once_are_all_whole(start: Start) -> None:
    running = await start()
    answers: list[Any] = [b"event: ping\ndata: {}\n\n" * 20]
    running.anthropic.script = stream(*answers * 5, pause=0.01)
    found = await asyncio.gather(*(running.ask("POST", "/v1/messages", data=b"{}") for _ in range(100)))
    assert all(body == answers[0] * 5 for _, _, body in found)


async def test_the_dashboard_shows_whether_a_model_pays(start: Start) -> None:
    running = await start()
    file = running.gateway.config.data / "pays.json"
    for content, shown in ((b"", None), (b"[1]", None), (b'{"at": "now", "types": []}', {"at": "now", "types": []})):
        file.write_bytes(content)
        assert orjson.loads((await running.ask("GET", "/stats"))[2])["pays"] == shown


async def test_a_gateway_without_any_upstream_credential_is_not_ready(start: Start) -> None:
    """Nothing is asked of the upstreams: theirs are names of the public internet."""
    bare = {"anthropic": (UpstreamSettings("https://a.example"),), "openai": (UpstreamSettings("https://o.example"),)}
    running = await start(upstreams=bare)
    status, _, body = await running.ask("GET", "/readyz")
    assert status == 503 and b"ANTHROPIC_API_KEY or OPENAI_API_KEY" in body and b"client_credentials" in body
    assert (await running.ask("GET", "/healthz"))[0] == 200
    for ready in (
        {"upstreams": bare | {"openai": (UpstreamSettings("https://o.example", api_key="sk-x"),)}},
        {"upstreams": bare | {"openai": (UpstreamSettings("http://127.0.0.1:9"),)}},  # a local server needs none
        {"upstreams": bare, "client_credentials": True},
    ):
        assert (await (await start(**ready)).ask("GET", "/readyz"))[0] == 200
