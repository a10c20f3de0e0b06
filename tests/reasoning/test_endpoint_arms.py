"""Arms of models at other people's URLs: their name there, their key, and how they are asked for log-probabilities."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reasoning import AsyncDecisionClient, DecisionClient
from reasoning.config import Config, api_key_for, load_config
from reasoning.errors import CallFailed, ConfigError
from reasoning.serving.model_calls import ModelCalls
from reasoning.serving.routes import Arm, Routes, format_routes, parse_routes
from tests.reasoning.conftest import CONTEXT, ModelServer, Request, rows

KEY = "vk-0123456789abcdef"
Write = Callable[..., Routes]


def arm_of(server: ModelServer, **changes: Any) -> Arm:
    own = {"request_model": "org/small", "key_variable": "VLLM_KEY", "logprobs": "flag", **changes}
    return Arm("custom", "custom", 1.0, model="endpoint/mine", base_url=server.url, **own)


def config_of(data: Path, bound: str, **env: str) -> Config:
    return load_config(data, env={"REASONING_KEYS": bound, **env})


def rule(context: Any) -> str:
    return "RESPOND"


def test_the_server_is_asked_by_its_own_name_with_its_own_key_and_the_log_has_ours(
    data: Path, server: ModelServer, route: Write
) -> None:
    route(arm_of(server))
    with DecisionClient(config=config_of(data, f"VLLM_KEY={server.url}", VLLM_KEY=KEY)) as client:
        answer = client.decide_should_respond(CONTEXT, rule)
    (asked,) = server.requests
    assert (asked.json["model"], asked.json["logprobs"], asked.json["top_logprobs"]) == ("org/small", True, 1)
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert (answer.source, answer.model) == ("custom", "endpoint/mine")
    (row,) = rows(data)
    assert row["model"] == "endpoint/mine" and KEY not in str(row) + repr(client.config)


def test_a_server_without_log_probabilities_is_not_asked_for_them(
    data: Path, server: ModelServer, route: Write
) -> None:
    route(arm_of(server, logprobs="none", key_variable=None))
    with DecisionClient(data) as client:
        assert client.decide_should_respond(CONTEXT, rule).source == "custom"
    assert not {"logprobs", "top_logprobs"} & set(server.requests[0].json)


@pytest.mark.parametrize(
    ("bound", "env", "told"),
    [
        ("VLLM_KEY=https://elsewhere.example", {"VLLM_KEY": KEY}, "the key in VLLM_KEY is not for http://127.0.0.1"),
        ("OTHER={url}", {"VLLM_KEY": KEY}, "the key in VLLM_KEY is not for"),
        ("VLLM_KEY={url}", {}, "VLLM_KEY is not set"),
        ("", {"VLLM_KEY": KEY}, "the key in VLLM_KEY is not for"),
    ],
)
async def test_a_routes_file_cannot_send_a_key_to_a_server_that_the_configuration_does_not_name(
    data: Path, server: ModelServer, route: Write, bound: str, env: dict[str, str], told: str
) -> None:
    route(arm_of(server))
    config = config_of(data, bound.format(url=server.url), **env)
    with DecisionClient(config=config) as client:
        assert client.decide_should_respond(CONTEXT, rule).fallback_reason == "disabled"
        assert rows(data)[0]["error"].startswith(f"CallFailed: {told}")
    async with AsyncDecisionClient(config=config) as asynchronous:
        assert (await asynchronous.decide_should_respond(CONTEXT, rule)).fallback_reason == "disabled"
    assert server.requests == []
    calls = ModelCalls(config, lambda: 0.0)  # the gateway's way
    with pytest.raises(CallFailed, match=told):
        calls.target(arm_of(server))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_error_and_takes_the_key_nowhere(
    data: Path, server: ModelServer, route: Write, status: int
) -> None:
    other = ModelServer()

    def redirect(request: Request, connection: socket.socket) -> None:
        head = f"HTTP/1.1 {status} X\r\nLocation: {other.url}/v1/chat/completions\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(head.encode())

    server.answer = redirect
    route(arm_of(server))
    try:
        with DecisionClient(config=config_of(data, f"VLLM_KEY={server.url}", VLLM_KEY=KEY)) as client:
            assert client.decide_should_respond(CONTEXT, rule).fallback_reason == "provider_error"
        assert other.connections == 0
    finally:
        other.close()


def test_keys_are_bound_by_the_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "reasoning.toml"
    file.write_text('[keys]\nA = "https://a.example/v1"\nB = ["https://b.example", "http://c.example:8000"]\n')
    config = load_config(path=file, env={"A": "ka", "B": "kb"})
    assert api_key_for(config, "https://a.example/x", "A") == "ka"
    assert api_key_for(config, "http://c.example:8000", "B") == "kb"
    for url, variable in (("https://a.example:8443", "A"), ("http://a.example", "A"), ("https://b.example", "A")):
        with pytest.raises(ConfigError, match=f"key in {variable} is not for"):
            api_key_for(config, url, variable)
    config = load_config(path=file, env={"A": "ka", "REASONING_KEYS": "A=https://d.example, A=https://e.example"})
    assert api_key_for(config, "https://e.example", "A") == "ka"
    with pytest.raises(ConfigError):
        api_key_for(config, "https://a.example", "A")
    assert "ka" not in repr(config) and config.secrets == ("ka",)


@pytest.mark.parametrize(
    ("text", "env", "message"),
    [
        ('A = "ftp://x"', {}, "is not an http"),
        ('A = "https://u:p@x"', {}, "must not hold a user name or password; set the variable instead"),
        ("A = []", {}, "text is needed"),
        ('"A-B" = "https://x"', {}, "a name of an environment variable"),
        ('A = "https://x"', {"A": "k k"}, "A: holds a blank"),
        ("", {"REASONING_KEYS": "sk-secret"}, "REASONING_KEYS: needs VARIABLE=URL"),
        ("", {"REASONING_KEYS": "sk-secret=https://x"}, "a name of an environment variable"),
    ],
)
def test_a_wrong_binding_is_refused_without_showing_what_may_be_a_key(
    tmp_path: Path, text: str, env: dict[str, str], message: str
) -> None:
    (tmp_path / "reasoning.toml").write_text(f"[keys]\n{text}\n")
    with pytest.raises(ConfigError, match=message) as raised:
        load_config(path=tmp_path / "reasoning.toml", env=env)
    assert "secret" not in str(raised.value) and "u:p" not in str(raised.value)


def test_routes_of_the_older_form_are_read_and_the_new_fields_come_back() -> None:
    old = (
        b'{"version": 1, "issued_at": "2026-11-22T10:00:00Z", "expires_at": "2026-11-22T10:02:00Z", "routes": '
        b'{"planning": {"arms": [{"name": "c", "source": "custom", "weight": 1, "model": "acme/x", "base_url": "http://h:1"}]}}}'
    )
    (arm,) = parse_routes(old).routes["planning"].arms
    assert (arm.asked_as, arm.key_variable, arm.logprobs) == ("acme/x", None, "count")
    new = parse_routes(
        old.replace(b'"model"', b'"request_model": "m", "key_variable": "K", "logprobs": "flag", "model"')
    )
    assert parse_routes(format_routes(new)) == new
    assert new.routes["planning"].arms[0].asked_as == "m"
    with pytest.raises(Exception, match="'yes' is none of count, flag, none"):
        parse_routes(old.replace(b'"model"', b'"logprobs": "yes", "model"'))
