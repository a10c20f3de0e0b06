"""Who may come in, what must never leave, and what a client cannot do."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from pathlib import Path

import pytest

from gateway.errors import GatewayConfigError, RequestRefused
from gateway.http.security import check_path
from gateway.ops.logs import AccessLog
from gateway.settings import hash_token, load_settings
from tests.gateway.conftest import TOKEN, UPSTREAM_KEY, Running, Start
from tests.gateway.scripted import ANTHROPIC_MESSAGE, chat_answer, json

BODY = b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"hello"}]}'


async def raw(running: Running, request: bytes) -> bytes:
    """Bytes in, bytes out, on a connection of their own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
    writer.write(request)
    await writer.drain()
    try:
        return await asyncio.wait_for(reader.read(65536), 5)
    finally:
        writer.close()


def request(
    path: bytes = b"/v1/messages", *headers: bytes, host: bytes = b"127.0.0.1:8001", method: bytes = b"POST"
) -> bytes:
    lines = [
        method + b" " + path + b" HTTP/1.1",
        b"Host: " + host,
        b"Connection: close",
        b"Content-Length: %d" % len(BODY),
    ]
    return b"\r\n".join([*lines, *headers]) + b"\r\n\r\n" + BODY


AUTH = b"Authorization: Bearer " + TOKEN.encode()


async def test_a_token_is_needed_even_here(start: Start) -> None:
    running = await start()
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"x-api-key": TOKEN + "x"},
        {"authorization": "Bearer "},
        {"cookie": f"token={TOKEN}"},
    ):
        for method, path in (
            ("POST", "/v1/messages"),
            ("GET", "/stats"),
            ("GET", "/metrics"),
            ("GET", "/"),
            ("POST", "/healthz"),
        ):
            status, _, body = await running.ask(method, path, headers=headers, data=BODY if method == "POST" else None)
            assert status == 401
            assert b"authentication_error" in body
    assert running.anthropic.seen == []
    for headers in ({"authorization": f"Bearer {TOKEN}"}, {"x-api-key": TOKEN}, {"x-reasoning-token": TOKEN}):
        assert (await running.ask("POST", "/v1/messages", headers=headers, data=BODY))[0] == 200
    asked = len(running.anthropic.seen)
    for path in ("/", "/api/hello"):  # Claude Code asks so whether anyone is there
        assert (await running.ask("HEAD", path, headers={}))[0] == 200
    assert len(running.anthropic.seen) == asked
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert (await running.ask("GET", path, headers={}))[0] == 200


async def test_only_known_hosts_are_served(start: Start) -> None:
    running = await start()
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    for host in (b"evil.example", b"127.0.0.1.evil.example", b"localhost.", b"127.0.0.1@evil", b"", b"a b", b"[::1"):
        answer = await raw(running, request(b"/v1/messages", AUTH, host=host))
        assert answer.startswith((b"HTTP/1.1 403", b"HTTP/1.1 400")), (host, answer[:80])
        assert (await raw(running, request(b"/docs", host=host, method=b"GET")))[9:12] in (b"403", b"400")
    for host in (b"localhost:1", b"127.0.0.1", b"[::1]:8001", b"LOCALHOST"):
        assert (await raw(running, request(b"/v1/messages", AUTH, host=host))).startswith(b"HTTP/1.1 200")


async def test_no_leave_for_web_pages(start: Start) -> None:
    running = await start()
    running.anthropic.script = json(ANTHROPIC_MESSAGE, 200, ("access-control-allow-origin", "*"))
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    status, got, _ = await running.ask("OPTIONS", "/v1/messages", headers=headers)
    assert status == 401
    assert not [name for name in got if name.lower().startswith("access-control-")]
    _, got, _ = await running.ask(
        "POST", "/v1/messages", headers=running.headers | {"origin": "https://evil.example"}, data=BODY
    )
    assert not [name for name in got if name.lower().startswith("access-control-")]


@pytest.mark.parametrize(
    "twice",
    [
        (AUTH, AUTH),
        (AUTH, b"Authorization: Bearer other"),
        (AUTH, b"x-api-key: a", b"X-Api-Key: b"),
        (b"x-reasoning-token: " + TOKEN.encode(), b"X-Reasoning-Token: b"),
        (AUTH, b"Host: evil.example"),
        (AUTH, b"Content-Length: 3"),
        (AUTH, b"Transfer-Encoding: chunked"),
        (AUTH, b"Content-Type: a", b"Content-Type: b"),
    ],
)
async def test_doubled_headers_are_refused(start: Start, twice: tuple[bytes, ...]) -> None:
    running = await start()
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    assert (await raw(running, request(b"/v1/messages", *twice))).startswith(b"HTTP/1.1 400")
    assert running.anthropic.seen == []


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/../admin",
        b"/v1/%2e%2e/admin",
        b"/v1/%252e%252e/admin",
        b"/v1/.%2e/x",
        b"/v1/messages/..;/admin",
        b"/v1/..%2fadmin",
        b"/v1%2Fmessages",
        b"/v1/%5c..%5cadmin",
        b"//evil.example/v1/messages",
        b"/v1//messages",
        b"/v1/messages%00",
        b"/v1/messages%0d%0ax: y",
        b"/v1/./messages",
    ],
)
async def test_paths_that_mean_two_things_are_refused(start: Start, path: bytes) -> None:
    running = await start()
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    answer = await raw(running, request(path.replace(b" ", b"+"), AUTH))
    assert answer.startswith(b"HTTP/1.1 400"), answer[:60]
    assert running.anthropic.seen == []


@pytest.mark.parametrize(
    "path",
    [b"/healthz/../v1/messages", b"/v1/messages?/healthz", b"/healthz;x", b"/HEALTHZ", b"/healthz%2f", b"/readyz/"],
)
async def test_a_public_path_is_public_as_it_is_written_only(start: Start, path: bytes) -> None:
    running = await start()  # CVE-2026-49468: authorised on one form of the path, served on another
    answer = await raw(running, request(path, method=b"GET"))
    assert answer[9:12] in (b"400", b"401"), answer[:60]


@pytest.mark.parametrize(
    "path",
    [b"/v1/models/claude-3.5", b"/v1/files/a%20b", b"/v1/x;y=1", b"/", b"/v1/models/a..b", b"/v1/models/org:ft-1.2"],
)
def test_honest_paths_pass(path: bytes) -> None:
    check_path(path)


def test_long_paths_are_refused() -> None:
    with pytest.raises(RequestRefused, match="too long"):
        check_path(b"/" + b"a" * 9000)


async def test_where_a_request_goes_is_not_the_clients_to_say(start: Start) -> None:
    running = await start()
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    evil = running.openai.url.encode()
    answer = await raw(running, request(evil + b"/v1/messages", AUTH))
    assert running.openai.seen == []
    await raw(running, request(b"/v1/messages?url=" + evil, AUTH, b"X-Forwarded-Host: evil", b"X-Base-Url: " + evil))
    body = b'{"api_base":"' + evil + b'","base_url":"' + evil + b'","model":"m","messages":[]}'
    await running.ask("POST", "/v1/messages", data=body)
    assert running.openai.seen == []
    assert answer.startswith(b"HTTP/1.1 ")


async def test_endless_headers_are_cut_off(start: Start) -> None:
    running = await start()
    many = b"".join(b"X-%d: y\r\n" % i for i in range(200))
    assert b" 431 " in await raw(running, b"GET / HTTP/1.1\r\nHost: localhost\r\n" + AUTH + b"\r\n" + many + b"\r\n")
    for flood in (b"X: " + b"a" * (1 << 20), b"".join(b"X-%d: %b\r\n" % (i, b"a" * 500) for i in range(2000))):
        try:
            answer = await raw(running, b"GET / HTTP/1.1\r\nHost: localhost\r\n" + flood)
        except ConnectionError:
            answer = b""
        assert answer == b""  # closed, and nothing kept


async def test_keys_stay_apart(start: Start) -> None:
    running = await start(config={"api_key": "together-secret", "provider_url": "http://127.0.0.1:1"})
    running.route()
    running.model.script = json(chat_answer())
    coding = (
        b'{"model":"m","max_tokens":99,"system":"You are a software engineer","messages":'
        b'[{"role":"user","content":"Fix this function:\\n```python\\nx=\\n```"}],'
        b'"metadata":{"user_id":"secret-person"}}'
    )
    headers = {"x-reasoning-token": TOKEN, "x-api-key": "sk-client", "cookie": "c=1", "anthropic-beta": "b"}
    status, got, _ = await running.ask("POST", "/v1/messages", data=coding, headers=headers)
    assert (status, got["x-reasoning-source"]) == (200, "custom")
    sent = str(running.model.last.headers) + running.model.last.body.decode()
    for secret in (TOKEN, "sk-client", UPSTREAM_KEY, "together-secret", "c=1", "secret-person"):
        assert secret not in sent  # a loopback server gets the word "local"
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    await running.ask("POST", "/v1/messages", data=BODY, headers=headers)
    assert "together-secret" not in str(running.anthropic.last.headers)


async def test_nothing_secret_in_logs_and_records(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    running = await start(log_requests=True)
    lines: list[bytes] = []
    running.gateway.access_log = AccessLog(lines.append, interval_s=0)
    running.route()
    running.model.script = json(chat_answer(), 500)
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    body = BODY.replace(b"hello", b"PRIVATE words: fix this function in python")
    headers = {"x-reasoning-token": TOKEN, "x-api-key": "sk-client-secret-123"}
    assert (await running.ask("POST", "/v1/messages", data=body, headers=headers))[0] == 200
    records = await running.records()
    logged = "\n".join(f"{r.getMessage()} {r.__dict__}" for r in caplog.records if r.name.startswith("gateway"))
    logged += b"".join(lines).decode()
    assert "provider_error" in logged
    for secret in ("PRIVATE", TOKEN, "sk-client-secret-123", UPSTREAM_KEY):
        assert secret not in logged
    assert len(records) == 2
    for secret in (TOKEN, "sk-client-secret-123", UPSTREAM_KEY):
        assert secret not in str(records)
    for path in (running.data / "spool").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
    assert stat.S_IMODE((running.data / "gateway.sqlite").stat().st_mode) == 0o600


async def test_our_own_failures_show_no_trace(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await start()

    async def broken(*_: object) -> None:
        raise RuntimeError("secret inner state")

    monkeypatch.setattr("gateway.app.answer", broken)
    status, _, body = await running.ask("POST", "/v1/messages", data=BODY)
    assert status == 500
    assert b"secret" not in body
    assert b"Traceback" not in body
    assert b'"api_error"' in body


def test_a_token_is_made_for_the_owner_alone(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, tmp_path / "none.toml", {})
    file = tmp_path / "gateway.token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    token = file.read_text().strip()
    assert settings.keys[0].token_sha256 == hash_token(token)
    assert token not in repr(settings)
    assert load_settings(tmp_path, tmp_path / "none.toml", {}).keys == settings.keys
    file.chmod(0o644)
    with pytest.raises(GatewayConfigError, match="chmod 600"):
        load_settings(tmp_path, tmp_path / "none.toml", {})


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("[gateway]\nmax_concurency = 3", "max_concurency is not known"),
        ("[gateway]\nmax_concurrency = 0", "not a whole number within"),
        ("[gateway]\nrecord = 1", "neither true nor false"),
        ("[gateway]\nallowed_hosts = 'x'", "a list is needed"),
        ("[gateway]\nprompts = 5", "a list is needed"),
        ('[[gateway.anthropic]]\nurl = "ftp://x"', "not an http"),
        ('[[gateway.anthropic]]\nurl = "https://user:pw@x"', "api_key_env"),
        ('[gateway.anthropic]\nurl = "https://x"', "two brackets"),
        ('[gateway.keys.a]\ntoken_sha256 = "abc"', "64 hex digits"),
        ('[gateway.keys.a]\ntoken_env = "MISSING"', "MISSING is not set"),
        ("[gateway.coding]\nthreshold = true", "not a number"),
        ("[gateway]\nallowed_hosts = [3]", "text is needed"),
        ("not toml", "not TOML"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, toml: str, problem: str) -> None:
    file = tmp_path / "reasoning.toml"
    file.write_text(toml)
    with pytest.raises(GatewayConfigError, match=problem):
        load_settings(tmp_path, file, {})


def test_short_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GatewayConfigError, match="at least 16"):
        load_settings(tmp_path, tmp_path / "none.toml", {"REASONING_GATEWAY_TOKEN": "short"})


async def test_keys_have_their_switches(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "reasoning.toml"
    digest = hash_token("another-token-0123456").hex()
    file.write_text(f'[gateway.keys.plain]\ntoken_sha256 = "{digest}"\ncoding = false\n')
    keys = load_settings(tmp_path, file, {"REASONING_GATEWAY_TOKEN": TOKEN}).keys
    running = await start(keys=keys)
    running.route()
    running.model.script = json(chat_answer())
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    body = BODY.replace(b"hello", b"fix this function in python")
    _, got, _ = await running.ask("POST", "/v1/messages", data=body)
    assert got["x-reasoning-source"] == "custom"
    _, got, _ = await running.ask("POST", "/v1/messages", data=body, headers={"x-api-key": "another-token-0123456"})
    assert "x-reasoning-source" not in got
    assert len(running.anthropic.seen) == 1


def test_loopback_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gateway import __main__ as main

    served: dict[str, object] = {}
    monkeypatch.setattr(main, "serve", lambda gateway, **options: served.update(options))
    monkeypatch.setattr("sys.argv", ["gateway", "--data", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "REASONING_GATEWAY_TOKEN", TOKEN)
    main.main()
    assert served["host"] == "127.0.0.1"


async def test_no_echo_shows_the_gateways_own_key(start: Start) -> None:
    running = await start()
    status, _, _ = await running.ask("TRACE", "/v1/messages")
    assert status == 405
    assert running.anthropic.seen == running.openai.seen == []
