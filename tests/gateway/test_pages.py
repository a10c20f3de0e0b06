"""The page over HTTP: what a browser gets without a token, what an attacker's page cannot do, and its own process."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any

import orjson
import pytest

import gateway.pages.http as http
from gateway.pages.worker import PageWorker
from gateway.settings import Key, hash_token
from tests.gateway.conftest import TOKEN, Running, Start
from tests.pipeline.test_labels import write_questions

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
READ_TOKEN = "a-reader-of-the-page-0123"


@pytest.fixture
async def running(start: Start) -> Running:
    found = await start()
    base = found.gateway.settings
    reader = Key("rita", hash_token(READ_TOKEN), pages=True)
    found.gateway.guard._keys[reader.token_sha256] = reader
    found.gateway.settings = replace(base, keys=(*base.keys, reader))
    return found


class Canned:
    """Instead of the process: what it was asked, and one answer."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def ask(self, question: dict[str, Any], *, seconds: float) -> dict[str, Any]:
        self.asked.append(question)
        return {"status": 200, "html": "<h1>Fine</h1>", "headers": {}}

    async def close(self) -> None:
        pass


@pytest.fixture
def canned(running: Running) -> Canned:
    running.gateway.worker = running.gateway.actor = Canned()  # type: ignore[assignment]
    return running.gateway.worker  # type: ignore[return-value]


@pytest.mark.parametrize("path", ["/", "/dashboard", "/pages/now", "/pages/decisions/x?text=y"])
async def test_a_browser_without_a_token_gets_a_shell_without_data(running: Running, canned: Canned, path: str) -> None:
    status, headers, page = await running.ask("GET", path, headers=BROWSER)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert not re.findall(rb"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", page), "nothing from elsewhere"
    assert not re.findall(rb"\s(?:style|on\w+)=", page) and b"<style" not in page, "the policy would not let it"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert TOKEN.encode() not in page and str(running.data).encode() not in page
    for name in set(re.findall(rb"/pages/static/[\w.]+\?\w+", page)):
        status, headers, content = await running.ask("GET", name.decode(), headers={})
        assert status == 200 and len(content) > 100 and headers["x-content-type-options"] == "nosniff"
    assert canned.asked == [] and running.anthropic.seen == running.openai.seen == []


async def test_data_needs_a_token_and_a_key_for_the_page(running: Running, canned: Canned) -> None:
    for headers in ({}, {"hx-request": "true", **BROWSER}, {"x-reasoning-token": "wrong" * 5, "hx-request": "true"}):
        assert (await running.ask("GET", "/pages/now", headers=headers))[0] == 401
    assert (await running.ask("POST", "/pages/now", headers={**FORM, **BROWSER}, data=b""))[0] == 401
    assert canned.asked == []
    status, headers, page = await running.ask("GET", "/pages/now?a=1", headers={"x-reasoning-token": READ_TOKEN})
    assert (status, page, headers["cache-control"]) == (200, b"<h1>Fine</h1>", "no-store")
    assert canned.asked[0]["key"] == {"name": "rita", "operator": False, "label": False}
    assert canned.asked[0]["query"] == {"a": "1"}
    assert TOKEN not in str(canned.asked) and READ_TOKEN not in str(canned.asked)
    other = Key("ci", hash_token("a-key-of-an-agent-0123456"))
    running.gateway.guard._keys[other.token_sha256] = other
    found = await running.ask("GET", "/pages/now", headers={"x-reasoning-token": "a-key-of-an-agent-0123456"})
    assert found[0] == 403 and b"pages = true" in found[2]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9"},  # another port of this machine
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
    ],
)
async def test_a_change_that_another_page_asks_for_is_refused_even_with_the_token(
    running: Running, canned: Canned, headers: dict[str, str]
) -> None:
    status, _, body = await running.ask(
        "POST", "/pages/act/stop", headers={**running.headers, **FORM, **headers}, data=b"confirm=x"
    )
    assert status == 403 and b"another site" in body
    assert canned.asked == []


async def test_a_change_of_the_page_itself_is_taken(running: Running, canned: Canned) -> None:
    headers = {**running.headers, **FORM, "origin": running.url, "sec-fetch-site": "same-origin"}
    assert (await running.ask("POST", "/pages/label/x", headers=headers, data=b"a=%C3%A4&b="))[0] == 200
    assert canned.asked[0]["form"] == {"a": "ä", "b": ""}


@pytest.mark.parametrize(
    ("method", "path", "headers", "data", "status"),
    [
        ("POST", "/pages/label/x", {"content-type": "application/json"}, b"{}", 400),
        ("POST", "/pages/label/x", FORM, b"&".join(b"a%d=1" % i for i in range(200)), 400),
        ("POST", "/pages/label/x", FORM, b"a=" + b"b" * 300_000, 413),
        ("PUT", "/pages/label/x", FORM, b"a=1", 405),
        ("GET", "/pages/%2e%2e/etc/passwd", {}, None, 400),
        ("GET", "/pages/static/../shell.html", {}, None, 400),
        ("GET", "/pages/static/shell.html", {}, None, 404),
        ("GET", "/pages/now", {"host": "evil.example"}, None, 403),
    ],
)
async def test_what_is_malformed_is_refused(
    running: Running, canned: Canned, method: str, path: str, headers: dict[str, str], data: bytes | None, status: int
) -> None:
    found = await running.ask(method, path, headers={**running.headers, **headers}, data=data)
    assert found[0] == status, found[2]
    assert canned.asked == []


@pytest.mark.processes
async def test_the_page_has_a_process_of_its_own_that_agents_do_not_wait_for(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real process: it answers, is killed where it takes too long, starts again, and is gone with the gateway."""
    await asyncio.to_thread(write_questions, running.data, 3)
    page = asyncio.create_task(running.ask("GET", "/pages/decisions"))
    loop, waits = asyncio.get_running_loop(), []
    while not page.done():
        begun = loop.time()
        assert (await running.ask("GET", "/healthz", headers={}))[0] == 200
        waits.append(loop.time() - begun)
        await asyncio.sleep(0.02)
    status, _, shown = await page
    assert status == 200 and b"3 shown" not in shown and shown.count(b"/pages/decisions/0") == 6
    assert sorted(waits)[len(waits) // 2] < 0.1, "health answers meanwhile"
    worker = running.gateway.worker
    process = worker._process
    assert process is not None
    monkeypatch.setattr(http, "READ_S", 0.0)
    status, _, body = await running.ask("GET", "/pages/decisions")
    assert status == 503 and b"took longer" in body
    assert process.returncode is not None, "it was killed"
    monkeypatch.setattr(http, "READ_S", 60.0)
    assert (await running.ask("GET", "/pages/label"))[0] == 200
    second = worker._process
    assert second is not None
    second.kill()
    await second.wait()
    assert (await running.ask("GET", "/pages/label"))[0] == 200, "a dead one is replaced"
    last = worker._process
    await worker.close()
    assert last is not None and last.returncode is not None


@pytest.mark.processes
async def test_the_process_ends_when_nobody_looks(running: Running) -> None:
    worker = PageWorker(running.data, idle_s=0.05)
    question = {"method": "GET", "path": "nope", "query": {}, "form": {}, "live": {}}
    key = {"name": "x", "operator": True, "label": True}
    answer = await worker.ask(question | {"key": key}, seconds=60)
    assert answer["status"] == 404 and orjson.dumps(answer)
    process = worker._process
    assert process is not None
    await asyncio.wait_for(process.wait(), 10)
    assert process.returncode == 0
    await worker.close()
