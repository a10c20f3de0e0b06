"""No credential goes to the other company: every path of both SDKs, and what a client can mix."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import RequestRefused
from gateway.http.companies import choose_protocol
from gateway.http.security import Admission
from gateway.protocols.table import DEFAULT_TABLE
from tests.gateway.conftest import TOKEN, Start
from tests.gateway.scripted import json

_CALL = re.compile(r"self\._(get|post|put|patch|delete|get_api_list)\(\s*(?:path_template\(\s*)?f?\"(/[^\"]*)\"")
OPENAI_KEYS = ("sk-proj-abc123", "sk-svcacct-abc", "sk-admin-abc", "sk-" + "a" * 20 + "T3BlbkFJ" + "b" * 20, "sk-plain")
ANTHROPIC_KEYS = ("sk-ant-api03-abc", "sk-ant-admin01-abc", "sk-ant-oat01-abc")


def paths_of(sdk: Any, prefix: str) -> list[str]:
    found = set()
    for file in (Path(sdk.__file__).parent / "resources").rglob("*.py"):
        for _, path in _CALL.findall(file.read_text()):
            found.add(prefix + re.sub(r"\{[^}]*\}", "x1", path.partition("?")[0]))
    return sorted(found)


def chosen(path: str, headers: dict[str, str], query: str = "") -> str:
    raw = {name.encode(): value.encode() for name, value in headers.items()}
    try:
        return choose_protocol(DEFAULT_TABLE, path.encode(), query.encode(), Admission(None, raw, frozenset())).name
    except RequestRefused as error:
        assert 400 <= error.status < 500
        return "refused"


def test_every_request_of_the_openai_sdk_goes_to_openai() -> None:
    import openai

    paths = paths_of(openai, "/v1")
    assert len(paths) > 200
    for path in [*paths, "/v1/something_new", "/v1/sessions", "/v1/organizations/x"]:
        for key in OPENAI_KEYS:
            for agent in ("OpenAI/Python 3.57.0", "AsyncOpenAI/JS 6", "codex_cli_rs/1", "python-requests/2"):
                said = chosen(path, {"authorization": f"Bearer {key}", "user-agent": agent})
                assert said != "anthropic", (path, key, agent)
                if path in paths:
                    assert said == "openai", (path, key, agent)


def test_every_request_of_the_anthropic_sdk_goes_to_anthropic() -> None:
    import anthropic

    paths = paths_of(anthropic, "")
    assert len(paths) > 100
    for path in [*paths, "/v1/something_new"]:
        for key in ANTHROPIC_KEYS:
            for credential in ({"x-api-key": key}, {"authorization": f"Bearer {key}"}):
                for marks in ({"anthropic-version": "2023-06-01"}, {}, {"user-agent": "Anthropic/Python 2.12"}):
                    assert chosen(path, {**credential, **marks}) == "anthropic", (path, credential, marks)


def test_a_credential_in_disguise_is_known_by_its_shape() -> None:
    def basic(text: str) -> dict[str, str]:
        return {"authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}

    anthropic = {"x-api-key": "sk-ant-a", "anthropic-version": "2023-06-01"}
    assert chosen("/v1/messages", basic("sk-proj-abc123:")) == "refused"
    assert chosen("/v1/chat/completions", basic("user:sk-ant-abc")) == "refused"
    assert chosen("/v1/messages", anthropic, "key=sk%2Dproj%2Dabc123") == "refused"
    assert chosen("/v1/messages", anthropic, "key=sk%252Dproj%252Dabc123") == "refused"
    assert chosen("/v1/chat/completions", {"authorization": "Bearer SK-ANT-API03-ABC"}) == "refused"
    assert chosen("/v1/messages", anthropic | {"x-note": "Basic of no base64"}) == "anthropic"


def test_what_contradicts_itself_goes_nowhere() -> None:
    openai, anthropic = {"authorization": "Bearer sk-proj-a"}, {"x-api-key": "sk-ant-a"}
    for path, headers in (
        ("/v1/messages", openai),
        ("/v1/messages", openai | {"anthropic-version": "2023-06-01"}),
        ("/v1/chat/completions", anthropic),
        ("/v1/chat/completions", {"authorization": "Bearer sk-ant-a", "user-agent": "OpenAI/Python 3"}),
        ("/v1/models", openai | anthropic),
        ("/v1/models", openai | {"x-hidden": "sk-ant-a"}),
        ("/v1/models", anthropic | {"openai-organization": "org"}),
        ("/v1/models", {"authorization": "Bearer of-unknown-shape"}),
        ("/v1/nobody_knows", {"authorization": "Bearer of-unknown-shape"}),
        ("/v1/nobody_knows", {}),
        ("/v1/chat/completions", {"x-api-key": "of-unknown-shape"}),
    ):
        assert chosen(path, headers) == "refused", (path, headers)
    assert chosen("/v1/chat/completions", {}, "key=sk-ant-a") == "refused"
    assert chosen("/v1/models", anthropic) == "anthropic"
    assert chosen("/v1/models", openai) == "openai"
    # a server that speaks Anthropic's protocol, with keys of its own shape
    assert chosen("/v1/messages", {"x-api-key": "sk-1234", "anthropic-version": "2023-06-01"}) == "anthropic"


@pytest.mark.parametrize(
    "path", ["/v1/skills", "/v1/agents", "/v1/vaults", "/v1/chatkit/sessions", "/v1/live/x", "/v1/new"]
)
async def test_an_openai_key_never_reaches_anthropic(start: Start, path: str) -> None:
    running = await start()
    running.openai.script = json({})
    headers = {"x-reasoning-token": TOKEN, "authorization": "Bearer sk-proj-client", "user-agent": "OpenAI/Python 3.57"}
    assert (await running.ask("GET", path, headers=headers))[0] == 200
    assert running.openai.last.header("authorization") == "Bearer sk-proj-client"
    assert running.anthropic.seen == []


async def test_a_refusal_names_the_remedy_and_no_key(start: Start) -> None:
    running = await start()
    headers = {"x-reasoning-token": TOKEN, "x-api-key": "sk-ant-secret", "user-agent": "OpenAI/Python 3.57"}
    status, _, body = await running.ask("POST", "/v1/responses", headers=headers, data=b"{}")
    assert status == 400
    assert b"anthropic-version" in body
    assert b"sk-ant-secret" not in body
    assert running.anthropic.seen == running.openai.seen == []
