"""What a key may do, and what it may not: each of these was possible for any key."""

from __future__ import annotations

import base64
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.decisions.owners import Owners, open_owners
from gateway.errors import GatewayConfigError
from gateway.http.known_tokens import KnownTokens, mark_token
from gateway.http.paths import is_allowed
from gateway.protocols.table import DEFAULT_TABLE
from gateway.settings import hash_token, load_settings
from tests.gateway.conftest import TOKEN, UPSTREAM_KEY, Running, Start
from tests.gateway.scripted import ANTHROPIC_MESSAGE, json
from tests.gateway.test_gateway_decisions import CONTEXT

A, B, LAB, OFF, STATS, ONE, FILES = (f"{name}-token-0123456789" for name in ("a", "b", "lab", "off", "st", "one", "fi"))
TOML = """
[gateway.keys.a]
token_sha256 = "{A}"
[gateway.keys.b]
token_sha256 = "{B}"
[gateway.keys.lab]
token_sha256 = "{LAB}"
label = true
[gateway.keys.off]
token_sha256 = "{OFF}"
coding = false
decisions = false
[gateway.keys.prometheus]
token_sha256 = "{STATS}"
protocols = []
stats = true
[gateway.keys.one]
token_sha256 = "{ONE}"
protocols = ["openai"]
[gateway.keys.files]
token_sha256 = "{FILES}"
paths = ["*", "DELETE /v1/files/*", "/v1/organizations/api_keys"]
"""


@pytest.fixture
async def running(start: Start, tmp_path: Path) -> Running:
    tokens = {"A": A, "B": B, "LAB": LAB, "OFF": OFF, "STATS": STATS, "ONE": ONE, "FILES": FILES}
    file = tmp_path / "reasoning.toml"
    file.write_text(TOML.format(**{name: hash_token(token).hex() for name, token in tokens.items()}))
    made = await start(keys=load_settings(tmp_path, file, {"REASONING_GATEWAY_TOKEN": TOKEN}).keys)
    made.anthropic.script = json(ANTHROPIC_MESSAGE)
    made.openai.script = json({})
    return made


async def ask(running: Running, token: str, method: str, path: str, value: Any = None, **headers: str) -> int:
    data = None if value is None else orjson.dumps(value)
    status, _, _ = await running.ask(method, path, data=data, headers={"authorization": f"Bearer {token}", **headers})
    return status


async def decide(running: Running, token: str, **fields: Any) -> str:
    body = orjson.dumps({"context": CONTEXT, "original": "IGNORE", **fields})
    headers = {"authorization": f"Bearer {token}"}
    status, _, answer = await running.ask("POST", "/v1/decide/should_respond", data=body, headers=headers)
    assert status == 200, answer
    return str(orjson.loads(answer)["decision_id"])


PASSED = [
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"),
]
REFUSED = [
    ("DELETE", "/v1/files/f_1"),
    ("GET", "/v1/files"),
    ("POST", "/v1/files"),
    ("GET", "/v1/organizations/api_keys"),
    ("POST", "/v1/organization/admin_api_keys"),
    ("GET", "/v1/responses/resp_of_another"),
    ("GET", "/v1/messages/batches/b_of_another/results"),
    ("DELETE", "/v1/models/ft-1"),
    ("POST", "/v1/fine_tuning/jobs"),
    ("POST", "/V1/Messages"),
    ("POST", "/v1/messages/"),
    ("POST", "/v1/messages;a"),
    ("POST", "/v1/mess%61ges"),
    ("GET", "/v1/%6frganizations/api_keys"),
    ("GET", "/stats"),
    ("GET", "/metrics"),
]


async def test_a_key_reaches_the_models_and_nothing_else(running: Running) -> None:
    for method, path in PASSED:
        assert await ask(running, A, method, path, {} if method == "POST" else None) == 200, path
    seen = len(running.anthropic.seen) + len(running.openai.seen)
    for method, path in REFUSED:
        assert await ask(running, A, method, path) == 403, path
    assert await ask(running, A, "POST", "/v1/messages", {}, **{"x-http-method-override": "DELETE"}) == 200
    assert running.anthropic.last.header("x-http-method-override") is None
    assert len(running.anthropic.seen) + len(running.openai.seen) == seen + 1
    assert await ask(running, A, "HEAD", "/") == 200  # answered here


async def test_the_operators_key_has_all_but_administration(running: Running) -> None:
    for method, path in (
        ("DELETE", "/v1/files/f_1"),
        ("GET", "/v1/responses/r"),
        ("GET", "/stats"),
        ("GET", "/metrics"),
    ):
        assert await ask(running, TOKEN, method, path) == 200, path
    for path in (
        *("/v1/organizations/api_keys", "/v1/organization/users", "/v1/ORGANIZATION/users", "/v1/organization;x/users"),
        *("/v1/%6frganization/users", "/v1/%256frganization/users", "/organizations/x"),
    ):
        assert await ask(running, TOKEN, "GET", path) == 403, path


async def test_paths_are_widened_by_name(running: Running) -> None:
    assert await ask(running, FILES, "DELETE", "/v1/files/f_1") == 200
    assert await ask(running, FILES, "GET", "/v1/responses/r") == 200
    assert await ask(running, FILES, "GET", "/v1/organizations/api_keys") == 200
    for method, path in (
        ("DELETE", "/v1/responses/r"),
        ("GET", "/v1/organizations/users"),
        ("DELETE", "/v1/organizations/api_keys"),
    ):
        assert await ask(running, FILES, method, path) == 403, path


async def test_protocols_and_statistics(running: Running) -> None:
    assert await ask(running, ONE, "POST", "/v1/chat/completions", {}) == 200
    assert await ask(running, ONE, "POST", "/v1/messages", {}) == 403
    assert await ask(running, ONE, "GET", "/v1/models", **{"anthropic-version": "2023-06-01"}) == 403
    assert await ask(running, ONE, "POST", "/v1/decide/should_respond", DECISION) == 403
    for path in ("/stats", "/metrics"):
        assert await ask(running, STATS, "GET", path) == 200
    for path in ("/v1/messages", "/v1/chat/completions", "/v1/feedback", "/v1/decide/should_respond"):
        assert await ask(running, STATS, "POST", path, {}) == 403


async def test_a_key_without_decisions_neither_decides_nor_labels(running: Running) -> None:
    made = await decide(running, A)
    body = {"metric": "demonstration", "kind": "demonstration", "value": {"action": "RESPOND"}, "decision_id": made}
    assert await ask(running, OFF, "POST", "/v1/decide/should_respond", DECISION) == 403
    assert await ask(running, OFF, "POST", "/v1/feedback", body) == 403
    assert await ask(running, OFF, "POST", "/v1/messages", {}) == 200


async def test_feedback_is_on_ones_own_decisions_and_under_ones_own_name(running: Running) -> None:
    mine, others = await decide(running, A), await decide(running, B)
    body = {"metric": "rating", "value": 1, "author": "the boss"}
    assert await ask(running, A, "POST", "/v1/feedback", body | {"decision_id": mine}) == 202
    for target in (others, str(uuid4()), others.upper(), others.replace("-", "")):
        assert await ask(running, A, "POST", "/v1/feedback", body | {"decision_id": target}) == 403
    assert await ask(running, A, "POST", "/v1/feedback", body | {"episode_id": "room-1"}) == 202
    assert await ask(running, LAB, "POST", "/v1/feedback", body | {"decision_id": others}) == 202
    assert await ask(running, TOKEN, "POST", "/v1/feedback", {"metric": "r", "value": 1, "decision_id": others}) == 202
    rows = [row for row in await running.records() if "metric" in row]
    assert [(row["author"], row["decision_id"], row["episode_id"]) for row in rows] == [
        ("a", mine, None),
        ("a", None, "a:room-1"),
        ("the boss", others, None),
        ("default", others, None),
    ]


async def test_episodes_are_per_key(running: Running) -> None:
    for token in (A, B, TOKEN):
        await decide(running, token, episode_id="room-1")
        await decide(running, token, episode_id="a:room-1", tags={"key": "a", "door": "x", "own": "1"})
        headers = {"x-reasoning-episode-id": "room-1", "user-agent": "claude-cli/2"}
        assert await ask(running, token, "POST", "/v1/messages", CODING, **headers) == 200
    rows = [row for row in await running.records() if "decision_type" in row]
    # `a:room-1` of the operator is the one that it means: the operator names conversations as the log does.
    expected = Counter({"a:room-1": 2, "a:a:room-1": 1, "b:room-1": 2, "b:a:room-1": 1, "room-1": 2})
    assert Counter(row["episode_id"] for row in rows) == expected + Counter({"a:room-1": 1})


async def test_an_episode_without_a_name_is_per_key_as_well(running: Running) -> None:
    for token in (A, B):
        await decide(running, token, episode_id="")
        await decide(running, token, context=CONTEXT | {"episode_id": ""})
        feedback = {"metric": "liked", "value": 1, "episode_id": ""}
        assert await ask(running, token, "POST", "/v1/feedback", feedback) == 202
    rows = await running.records()
    assert Counter(row["episode_id"] for row in rows) == Counter({"a:": 3, "b:": 3})


DECISION = {"context": CONTEXT, "original": "IGNORE"}
CODING = {
    "model": "m",
    "max_tokens": 99,
    "system": "You are a software engineer",
    "messages": [{"role": "user", "content": "Fix this function:\n```python\nx=\n```"}],
}


async def test_a_known_token_goes_nowhere_upstream(running: Running) -> None:
    basic = base64.b64encode(f"user:{B}".encode()).decode()
    for name, value in (
        ("x-custom", B),
        ("cookie", f"a=b; session={B}"),
        ("x-api-key", f"Bearer {B}"),
        ("referer", f"http://127.0.0.1/stats?token={B}"),
        ("x-forwarded-authorization", f"Bearer {TOKEN}"),
        ("api-key", A),
        ("proxy-authorization", f"Basic {basic}"),
        ("x-quoted", f'token="{B}"'),
        ("x-escaped", quote(B, safe="").replace("-", "%2D")),
        (B, "1"),
        (f"x-{TOKEN}", "1"),
    ):
        assert await ask(running, A, "POST", "/v1/chat/completions", {}, **{name: value}) == 400, name
    for value in (B, f"Token {B}", f"Basic {basic}"):  # beside the token in its own header
        headers = {"x-reasoning-token": A, "authorization": value}
        assert (await running.ask("POST", "/v1/chat/completions", data=b"{}", headers=headers))[0] == 400
    for path in (f"/v1/chat/completions?key={B}", f"/v1/chat/completions?a=1&k=%62{B[1:]}", f"/v1/models/{B}"):
        assert await ask(running, A, "GET" if "models" in path else "POST", path) == 400
    assert running.openai.seen == running.anthropic.seen == []
    headers = {"x-api-key": A, "authorization": f"Bearer {B}"}  # two of ours: both stay here
    assert (await running.ask("POST", "/v1/messages", data=b"{}", headers=headers))[0] == 200
    assert A not in str(running.anthropic.last) and B not in str(running.anthropic.last)


def encoded(token: str) -> list[str]:
    """A token in the encodings that a client or a proxy may put it in, also twice, and glued to other text."""
    raw = token.encode()
    plain, url = base64.b64encode(raw).decode(), base64.urlsafe_b64encode(b"?" + raw + b">>?").decode()
    once = [token, raw.hex(), raw.hex().upper(), plain, plain.rstrip("="), url]
    once += ["".join(f"%{byte:02x}" for byte in raw), quote(quote(token, safe="").replace("-", "%2D"))]
    twice = [base64.b64encode(raw.hex().encode()).decode(), plain.encode().hex(), quote(quote(plain, safe=""), safe="")]
    return [
        glued for text in [*once, *twice] for glued in (text, f"v1.{text}", f"X{text}", f"ab{text}yz", f"x_{text}-y")
    ]


@pytest.mark.parametrize("token", [A, TOKEN, UPSTREAM_KEY])
async def test_a_known_token_is_found_in_any_encoding_and_glued_to_other_text(running: Running, token: str) -> None:
    """A is of the settings by its digest: it is known as it is presented."""
    assert await ask(running, A, "POST", "/v1/chat/completions", {}, **{"x-note": "nothing"}) == 200
    seen = len(running.openai.seen)
    for text in encoded(token):
        assert await ask(running, A, "POST", "/v1/chat/completions", {}, **{"x-custom": text}) == 400, text
        assert await ask(running, A, "POST", f"/v1/chat/completions?key={quote(text)}", {}) == 400, text
    assert len(running.openai.seen) == seen


async def test_other_encoded_text_passes(running: Running) -> None:
    for other in ("another-token-0123456789", "sk-client-of-its-own-0123456789", A[:-1]):
        for text in encoded(other):
            assert await ask(running, A, "POST", "/v1/chat/completions", {}, **{"x-custom": text}) == 200, text


async def test_the_clients_credential_may_be_the_operators(running: Running) -> None:
    """One key in the environment of both is usual."""
    headers = {"x-reasoning-token": A, "authorization": f"Bearer {UPSTREAM_KEY}"}
    assert (await running.ask("POST", "/v1/chat/completions", data=b"{}", headers=headers))[0] == 200
    assert running.openai.last.header("authorization") == f"Bearer {UPSTREAM_KEY}"


def test_looking_for_tokens_takes_time_in_proportion_to_the_text() -> None:
    known = KnownTokens([mark_token("rsn-" + "x1Y2" * 10)])
    for pump in (b"rsn-", b"A", b"0", b"%41", b"%2541", b"a/+"):
        seconds = []
        for size in (16 << 10, 32 << 10):
            begun = time.process_time()
            assert not known.is_in(pump * (size // len(pump)))
            seconds.append(time.process_time() - begun)
        assert seconds[1] < 0.05 and seconds[1] < 3 * max(seconds[0], 0.005), (pump, seconds)


@pytest.mark.parametrize(
    "name",
    [
        *("x-http-method-override", "x-http-method", "x-method-override", "x-original-method", "x-forwarded-method"),
        *("x-original-url", "x-rewrite-url", "x-forwarded-uri", "x-forwarded-prefix", "x-original-uri"),
    ],
)
async def test_no_header_changes_what_was_judged(running: Running, name: str) -> None:
    assert await ask(running, A, "POST", "/v1/messages", {}, **{name: "/v1/organizations/api_keys"}) == 200
    assert running.anthropic.last.header(name) is None


@pytest.mark.parametrize("query", ["_method=DELETE", "a=1&X-HTTP-Method-Override=DELETE", "%5Fmethod=DELETE"])
async def test_no_query_names_another_method(running: Running, query: str) -> None:
    assert await ask(running, A, "POST", f"/v1/messages?{query}", {}) == 400
    assert running.anthropic.seen == []


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ('paths = ["v1/files"]', "write a path"),
        ('paths = ["FETCH /v1/files"]', "'FETCH' is not one of"),
        ('paths = ["/v1/*/x"]', "at its end only"),
        ('paths = "/v1/files"', "a list is needed"),
        ('protocols = ["vertex"]', "'vertex' is none of"),
        ("label = 1", "neither true nor false"),
    ],
)
def test_wrong_scopes_are_named(tmp_path: Path, toml: str, problem: str) -> None:
    file = tmp_path / "reasoning.toml"
    file.write_text(f'[gateway.keys.a]\ntoken_sha256 = "{hash_token(A).hex()}"\n{toml}\n')
    with pytest.raises(GatewayConfigError, match=problem):
        load_settings(tmp_path, file, {})


def test_names_of_keys_hold_no_separator(tmp_path: Path) -> None:
    file = tmp_path / "reasoning.toml"
    file.write_text(f'[gateway.keys."a:b"]\ntoken_sha256 = "{hash_token(A).hex()}"\n')
    with pytest.raises(GatewayConfigError, match="a name has"):
        load_settings(tmp_path, file, {})


def test_an_id_tells_its_owner_after_a_restart(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    path = tmp_path / "gateway.secret"
    made = [open_owners(path).make_id(datetime.now(UTC), "a") for _ in range(200)]
    again = open_owners(path)
    assert all(id.version == 7 and again.is_owner(id, "a") and not again.is_owner(id, "b") for id in made)
    assert len(set(made)) == 200
    assert not any(Owners(os.urandom(32)).is_owner(id, "a") for id in made)
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"short")
    with pytest.raises(GatewayConfigError, match="32 bytes"):
        open_owners(path)


@given(st.text("v1organizts/%6f2;.AZ* ", max_size=40))
def test_everything_is_never_administration(rest: str) -> None:
    path = b"/v1/organizations/" + rest.encode()
    assert not is_allowed(
        ("*", "DELETE *", "/v1/*", "/v1/organization-like/*"), "GET", path, DEFAULT_TABLE.administration
    )
