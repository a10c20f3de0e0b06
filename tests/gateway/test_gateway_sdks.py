"""The official Python SDKs as clients, with nothing but a base URL and a key, and the repository's own emulator.

They are imported by the tests: it takes three seconds, which only the worker that runs them need spend.
"""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.gateway import scripted
from tests.gateway.conftest import TOKEN, UPSTREAM_KEY, Running, Start
from tests.gateway.scripted import (
    ANTHROPIC_MESSAGE,
    anthropic_stream,
    chat_answer,
    chat_chunk,
    chat_stream,
    json,
    stream,
    whole,
)
from tests.gateway.test_gateway_coding import TOOLS

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI

QUESTION: Any = {
    "model": "claude-x",
    "max_tokens": 100,
    "tools": TOOLS,
    "messages": [{"role": "user", "content": "fix the code in main.py"}],
}


def client(running: Running, token: str = TOKEN, **options: Any) -> AsyncAnthropic:
    from anthropic import AsyncAnthropic

    return AsyncAnthropic(base_url=running.url, api_key=token, **options)


def openai_client(running: Running) -> AsyncOpenAI:
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url=f"{running.url}/v1", api_key=TOKEN, max_retries=0)


async def test_anthropic_passes(start: Start) -> None:
    running = await start()
    running.anthropic.script = json(ANTHROPIC_MESSAGE, 200, ("request-id", "req_9"))
    message = await client(running).messages.create(
        model="m", max_tokens=5, messages=[{"role": "user", "content": "hi"}]
    )
    assert message._request_id == "req_9"
    assert message.usage.output_tokens == 7
    assert running.anthropic.last.header("authorization") == f"Bearer {UPSTREAM_KEY}"
    running.anthropic.script = stream(anthropic_stream("hello"))
    async with client(running).messages.stream(
        model="m", max_tokens=5, messages=[{"role": "user", "content": "hi"}]
    ) as found:
        assert "".join([text async for text in found.text_stream]) == "hello"


async def test_anthropic_loops_over_our_tools(start: Start) -> None:
    running = await start()
    running.route()
    calls = [{"index": 0, "id": "c", "function": {"name": "Bash", "arguments": '{"command":'}}]
    more = [
        {"index": 0, "function": {"arguments": '"ls"}'}},
        {"index": 1, "id": "d", "function": {"name": "Edit", "arguments": "{}"}},
    ]
    running.model.scripts = [
        stream(
            chat_chunk(content="I look."),
            chat_chunk(tool_calls=calls),
            chat_chunk(tool_calls=more),
            *chat_stream(finish="tool_calls"),
        ),
        stream(*chat_stream("All ", "done.")),
    ]
    sdk = client(running)
    async with sdk.messages.stream(**QUESTION) as found:
        message = await found.get_final_message()
    assert message.stop_reason == "tool_use"
    used = [block for block in message.content if block.type == "tool_use"]
    assert [(block.name, block.input) for block in used] == [("Bash", {"command": "ls"}), ("Edit", {})]
    assert message.usage.input_tokens == 12
    # Results come in the order of completion; the model gets them in the order of its calls.
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": block.name} for block in reversed(used)]
    turns = [
        *QUESTION["messages"],
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": results},
    ]
    async with sdk.messages.stream(**QUESTION | {"messages": turns}) as found:
        message = await found.get_final_message()
    assert message.content[0].text == "All done."  # type: ignore[union-attr]
    assert message.stop_reason == "end_turn"
    sent = running.model.last.json["messages"]
    assert [m.get("content") for m in sent if m["role"] == "tool"] == ["Bash", "Edit"]


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (400, "invalid_request_error", "BadRequestError"),
        (401, "authentication_error", "AuthenticationError"),
        (403, "permission_error", "PermissionDeniedError"),
        (404, "not_found_error", "NotFoundError"),
        (429, "rate_limit_error", "RateLimitError"),
        (529, "overloaded_error", "InternalServerError"),
    ],
)
async def test_errors_are_the_sdks_own(start: Start, status: int, kind: str, error: str) -> None:
    import anthropic

    running = await start()
    body = jsonlib.dumps({"type": "error", "error": {"type": kind, "message": "no"}, "request_id": "r"}).encode()
    running.anthropic.script = whole(status, body, ("retry-after-ms", "1"))
    with pytest.raises(getattr(anthropic, error), match="no"):
        await client(running, max_retries=1).messages.create(
            model="m", max_tokens=5, messages=[{"role": "user", "content": "x"}]
        )
    retried = status in (429, 529)
    assert len(running.anthropic.seen) == 1 + retried
    with pytest.raises(anthropic.AuthenticationError):
        await client(running, "wrong", max_retries=0).messages.create(**QUESTION)


async def test_error_within_our_stream_is_raised_and_the_next_try_is_anthropics(start: Start) -> None:
    from anthropic import APIStatusError

    running = await start()
    running.route()
    running.model.script = stream(chat_chunk(content="Half "), chat_chunk(content="an "), end=False, pause=0.05)
    running.anthropic.script = stream(anthropic_stream("whole"))
    sdk = client(running, max_retries=0)
    with pytest.raises(APIStatusError):
        async with sdk.messages.stream(**QUESTION) as found:
            await found.get_final_message()
    async with sdk.messages.stream(**QUESTION) as found:
        assert (await found.get_final_message()).content[0].text == "whole"  # type: ignore[union-attr]


async def test_openai_passes(start: Start) -> None:
    running = await start()
    sdk = openai_client(running)
    running.openai.script = json(chat_answer("hello"))
    completion = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert completion.choices[0].message.content == "hello"
    running.openai.script = stream(*chat_stream("hel", "lo"))
    chunks = [
        c
        async for c in await sdk.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=True
        )
    ]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "hello"
    running.openai.script = json(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
            "model": "e",
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
        }
    )
    assert (await sdk.embeddings.create(model="e", input="x", encoding_format="float")).data[0].embedding == [0.5]
    running.openai.script = json({"object": "list", "data": []})
    assert (await sdk.models.list()).data == []
    assert running.openai.last.target == "/v1/models"


@pytest.mark.parametrize("streamed", [False, True])
async def test_openai_sees_our_decisions(start: Start, streamed: bool) -> None:
    from tests.gateway.test_gateway_decisions import OURS, respond_xml

    running = await start()
    running.route("should_respond")
    running.model.script = json(chat_answer(OURS["should_respond"]))
    sdk = openai_client(running)
    if streamed:
        async with sdk.responses.stream(model="m", input=respond_xml()) as found:
            text = (await found.get_final_response()).output_text
        chat = await sdk.chat.completions.create(
            model="m", messages=[{"role": "user", "content": respond_xml()}], stream=True
        )
        assert "".join([c.choices[0].delta.content or "" for c in [c async for c in chat] if c.choices]) == text
    else:
        text = (await sdk.responses.create(model="m", input=respond_xml())).output_text
        other = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": respond_xml()}])
        assert other.choices[0].message.content == text
    assert "<action>RESPOND</action>" in text
    assert running.openai.seen == []


async def test_silence_is_no_answer_of_the_sdk(start: Start) -> None:
    from anthropic import InternalServerError

    running = await start()
    running.anthropic.script = scripted.cut
    with pytest.raises(InternalServerError):
        await client(running, max_retries=0).messages.create(**QUESTION)


async def test_broken_pieces_end_with_an_error_that_the_sdk_can_read(start: Start) -> None:
    import anthropic

    running = await start()
    running.route()
    pieces = [{"name": "Bash", "arguments": '{"command": "ls"'}, {"arguments": ', "x": }'}, {"arguments": "}"}]
    chunks = [chat_chunk(tool_calls=[{"index": 0, "function": piece}]) for piece in pieces]
    running.model.script = stream(chat_chunk(content="On it."), *chunks, pause=0.01)
    async with client(running, max_retries=0) as sdk:
        with pytest.raises(anthropic.APIStatusError, match="broke off"):
            async with sdk.messages.stream(**QUESTION) as events:
                async for _ in events:
                    pass


async def test_forced_decisions_are_what_the_sdks_expect(start: Start) -> None:
    from typing import Literal

    from pydantic import BaseModel

    from gateway.decisions.forced import ForcedTypes
    from gateway.protocols import PROTOCOLS

    class Route(BaseModel):
        action: Literal["IGNORE", "ANSWER"]
        urgent: bool

    running = await start(forced_after=1)
    running.model.script = json(chat_answer('{"answers": {"action": "IGNORE", "urgent": true}}'))
    operations = {operation.name: operation for protocol in PROTOCOLS for operation in protocol.operations}

    def promote(name: str, request: dict[str, Any]) -> None:
        found = ForcedTypes().find(operations[name], request)
        assert found is not None
        running.route(found.type.kind.name)

    said: Any = [{"role": "user", "content": "ok thanks"}]
    schema = Route.model_json_schema()
    tool: Any = {"name": "route", "input_schema": schema}
    forced: Any = {"model": "m", "max_tokens": 99, "messages": said, "tools": [tool]}
    forced["tool_choice"] = {"type": "tool", "name": "route"}
    promote("anthropic", forced)
    async with client(running) as sdk:
        message = await sdk.messages.create(**forced)
        async with sdk.messages.stream(**forced) as events:
            streamed = await events.get_final_message()
    for each in (message, streamed):
        [block] = each.content
        assert block.type == "tool_use" and block.input == {"action": "IGNORE", "urgent": True}
        assert each.stop_reason == "tool_use"

    async with openai_client(running) as sdk:
        function = {"name": "route", "parameters": schema}
        chat: Any = {"model": "m", "messages": said, "tools": [{"type": "function", "function": function}]}
        chat["tool_choice"] = {"type": "function", "function": {"name": "route"}}
        promote("chat", chat)
        completion = await sdk.chat.completions.create(**chat)
        [call] = completion.choices[0].message.tool_calls or []
        assert call.type == "function" and Route.model_validate_json(call.function.arguments).urgent
        async with sdk.chat.completions.stream(**chat) as chunks:
            [call] = (await chunks.get_final_completion()).choices[0].message.tool_calls or []
        assert Route.model_validate_json(call.function.arguments).action == "IGNORE"
        item = {"type": "message", "content": [{"type": "output_text", "text": "{}", "annotations": []}]}
        running.openai.script = json({"id": "r", "status": "completed", "output": [item]})
        await sdk.responses.with_raw_response.parse(model="m", input=said, text_format=Route)
        promote("responses", running.openai.last.json)
        response = await sdk.responses.parse(model="m", input=said, text_format=Route)
        assert response.output_parsed == Route(action="IGNORE", urgent=True)
        async with sdk.responses.stream(model="m", input=said, text_format=Route) as pieces:
            assert (await pieces.get_final_response()).output_parsed == response.output_parsed
    assert running.anthropic.seen == []
    assert len(running.openai.seen) == 1
