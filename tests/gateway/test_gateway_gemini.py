"""Gemini's API with the requests that google-genai 3.6.1 sends, recorded: that SDK is too large for the suite."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.protocols.gemini import GENERATE, STREAM
from reasoning.question_catalog import load_catalog
from tests.gateway.conftest import TOKEN, UPSTREAM_KEY, Running, Start
from tests.gateway.scripted import chat_answer, json, whole
from tests.gateway.test_gateway_decisions import respond_xml
from tests.gateway.test_gateway_forced import find, found

HEADERS = {
    "content-type": "application/json",
    "x-goog-api-key": TOKEN,
    "user-agent": "google-genai-sdk/3.6.1 gl-python/3.11.7",
    "x-goog-api-client": "google-genai-sdk/3.6.1 gl-python/3.11.7",
}
PATH = "/v1/models/gemini-3-flash:generateContent"
STREAMED = "/v1/models/gemini-3-flash:streamGenerateContent"
TOOL: dict[str, Any] = {
    "contents": [{"parts": [{"text": "ok thanks"}], "role": "user"}],
    "systemInstruction": {"parts": [{"text": "You are Sam."}], "role": "user"},
    "tools": [
        {
            "functionDeclarations": [
                {
                    "description": "Chooses.",
                    "name": "route",
                    "parameters": {
                        "properties": {"action": {"enum": ["IGNORE", "ANSWER"], "type": "STRING"}},
                        "required": ["action"],
                        "type": "OBJECT",
                    },
                }
            ]
        }
    ],
    "toolConfig": {"functionCallingConfig": {"allowedFunctionNames": ["route"], "mode": "ANY"}},
    "generationConfig": {},
}
SCHEMA: dict[str, Any] = {
    "contents": [{"parts": [{"text": "ok thanks"}], "role": "user"}],
    "generationConfig": {
        "responseMimeType": "application/json",
        "responseSchema": {
            "properties": {
                "action": {"enum": ["IGNORE", "ANSWER"], "title": "A", "type": "STRING"},
                "urgent": {"title": "Urgent", "type": "BOOLEAN", "nullable": True},
            },
            "property_ordering": ["action", "urgent"],
            "required": ["action", "urgent"],
            "title": "D",
            "type": "OBJECT",
        },
    },
}


def answer(*parts: dict[str, Any], finish: str = "STOP") -> dict[str, Any]:
    content = {"role": "model", "parts": list(parts)}
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 3, "thoughtsTokenCount": 4, "totalTokenCount": 16}
    return {"candidates": [{"content": content, "finishReason": finish, "index": 0}], "usageMetadata": usage}


CALL = {"functionCall": {"name": "route", "args": {"action": "IGNORE"}}}


async def ask(running: Running, path: str, body: Any) -> tuple[int, Any, bytes]:
    return await running.ask("POST", path, headers=HEADERS, json=body)


async def test_a_request_passes_with_the_operators_key_alone(start: Start) -> None:
    running = await start()
    running.google.script = json(answer({"text": "Hello."}))
    body = {"contents": TOOL["contents"]}
    status, _, got = await ask(running, PATH, body)
    assert (status, orjson.loads(got)) == (200, answer({"text": "Hello."}))
    assert (running.google.last.target, running.google.last.json) == (PATH, body)
    assert running.google.last.header("x-goog-api-key") == UPSTREAM_KEY
    assert TOKEN not in str(running.google.last.headers)


@pytest.mark.parametrize(
    ("body", "written"),
    [
        (
            TOOL,
            {
                "functionCall": {"name": "route", "args": {"action": "IGNORE"}},
                "thoughtSignature": "skip_thought_signature_validator",  # without one Gemini 3 refuses the next turn
            },
        ),
        (SCHEMA, {"action": "IGNORE", "urgent": None}),
    ],
)
async def test_forced_decisions_are_logged_and_answered_in_its_form(start: Start, body: Any, written: Any) -> None:
    running = await start(forced_after=1)
    said = CALL if body is TOOL else {"text": '{"action": "IGNORE", "urgent": null}'}
    running.google.script = json(answer({"text": "Hm.", "thought": True}, said))
    _, headers, _ = await ask(running, PATH, body)
    assert "x-reasoning-decision-id" in headers
    [kind] = load_catalog(running.data)
    running.route(kind)
    model = {"action": "IGNORE"} if body is TOOL else {"action": "IGNORE", "urgent": "null"}
    running.model.script = json(chat_answer(orjson.dumps({"answers": model}).decode()))
    for path, operation in ((PATH, GENERATE), (f"{STREAMED}?alt=sse", STREAM)):
        _, headers, got = await ask(running, path, body)
        assert headers["x-reasoning-source"] == "custom"
        streamed = headers["content-type"].startswith("text/event-stream")
        assert streamed == (operation is STREAM)
        response = orjson.loads(got.removeprefix(b"data: ") if streamed else got)
        [part] = response["candidates"][0]["content"]["parts"]
        assert (part if body is TOOL else orjson.loads(part["text"])) == written
    original, *custom = await running.records()
    assert original["valid"] and (original["output_tokens"], original["reasoning_tokens"]) == (7, 4)
    assert {row["decision"] for row in custom} == {original["decision"]}


async def test_a_stream_without_events_is_the_upstreams(start: Start) -> None:
    running = await start(forced_after=1)
    running.google.script = json([answer(CALL)])
    for _ in range(2):
        _, headers, got = await ask(running, STREAMED, TOOL)
        assert orjson.loads(got) == [answer(CALL)]
        assert "x-reasoning-decision-id" not in headers


async def test_streamed_calls_of_the_upstream_are_read(start: Start) -> None:
    running = await start(forced_after=1)
    empty = answer() | {"candidates": [{"content": {"parts": [{"text": ""}]}, "index": 0}]}
    events = b"".join(b"data: " + orjson.dumps(each) + b"\r\n\r\n" for each in (empty, answer(CALL)))
    running.google.script = whole(200, events, content_type="text/event-stream")
    assert (await ask(running, f"{STREAMED}?alt=sse", TOOL))[2] == events
    [row] = await running.records()
    assert (row["valid"], row["decision"]) == (True, '{"action":"IGNORE"}')


async def test_decision_prompts_are_read_in_its_form(start: Start) -> None:
    running = await start()
    running.route("should_respond")
    running.model.script = json(chat_answer("<response><action>RESPOND</action></response>"))
    body = {"contents": [{"role": "user", "parts": [{"text": respond_xml()}]}]}
    _, headers, got = await ask(running, PATH, body)
    assert headers["x-reasoning-source"] == "custom"
    assert b"RESPOND" in got


@pytest.mark.parametrize(
    "fields",
    [
        {"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": "aaaa"}}]}]},
        {"generationConfig": {"candidateCount": 2}},
        {"generationConfig": {"responseModalities": ["AUDIO"]}},
        {"generationConfig": {"maxOutputTokens": 1}},
        {"cachedContent": "cachedContents/1"},
        {"system_instruction": {"parts": [{"text": "Never ignore."}]}},  # Google's servers read it as well
        {"generationConfig": {"candidate_count": 2}},
        {"toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": "route"}}},
        {"toolConfig": {"functionCallingConfig": {"mode": "AUTO"}}},
        {"contents": []},
        {"contents": [7]},
        {"tools": [7]},
        {"tools": [{"functionDeclarations": [7]}]},
        {"tools": [*TOOL["tools"], {"googleSearch": {}}], "toolConfig": {"functionCallingConfig": {"mode": "ANY"}}},
    ],
)
def test_requests_that_want_more_pass(fields: dict[str, Any]) -> None:
    assert find("gemini", TOOL | fields) is None


def test_calls_and_their_results_are_part_of_the_conversation() -> None:
    result = {"functionResponse": {"name": "route", "response": {"result": "done"}}}
    contents = [*TOOL["contents"], {"role": "model", "parts": [CALL]}, {"role": "user", "parts": [result]}]
    state = found("gemini", TOOL | {"contents": contents}).context["state"]
    assert [each["content"] for each in state] == ["ok thanks", 'route({"action":"IGNORE"})', '{"result":"done"}']
