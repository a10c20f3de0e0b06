"""Forced tools and JSON schemas as decisions, at every protocol."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.decisions.discover import discover_types, read_requests
from gateway.decisions.forced import MAX_TYPES, ForcedDecision, ForcedTypes, Template, read_templates
from gateway.decisions.instructions import Instructions
from gateway.decisions.schema_fields import read_schema
from gateway.errors import BadRequest, GatewayConfigError
from gateway.protocols import PROTOCOLS
from gateway.protocols.port import Operation
from gateway.settings import load_settings
from reasoning.question_catalog import load_catalog
from tests.gateway.conftest import TOKEN, Running, Start
from tests.gateway.legal import read_legal_stream
from tests.gateway.scripted import ANTHROPIC_MESSAGE, chat_answer, json, message_events, stream

_CALLING = {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["route"]}}
GEMINI_BODIES: dict[bool, Any] = {
    True: {
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
        "tools": [{"functionDeclarations": [{"name": "route", "parameters": {"type": "OBJECT"}}]}],
        "toolConfig": _CALLING,
    },
    False: {
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
        "generationConfig": {"responseMimeType": "application/json", "responseSchema": {"type": "OBJECT"}},
    },
}
OPERATIONS: dict[str, Operation] = {o.name: o for protocol in PROTOCOLS for o in protocol.operations}
PATHS = {"anthropic": "/v1/messages", "chat": "/v1/chat/completions", "responses": "/v1/responses"}
SYSTEM = "You are Sam. It is 12:30 on 2026-11-28. Decide what to do."

ROUTE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "action": {"type": "string", "enum": ["IGNORE", "ANSWER"], "description": "What to do now"},
        "urgent": {"type": "boolean"},
        "version": {"const": 2},
    },
    "required": ["action", "urgent", "version"],
    "additionalProperties": False,
}
DECIDED = {"action": "IGNORE", "urgent": False, "version": 2}


def request(name: str, schema: Any = ROUTE, *, as_tool: bool = True, text: str = "ok thanks", **fields: Any) -> Any:
    """A request in the form of one protocol that forces `schema`."""
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}]
    said.append({"role": "user", "content": text})
    tool = {"name": "route", "description": "Chooses."}
    body: dict[str, Any] = {"model": "big", "max_tokens": 200}
    match name:
        case "anthropic":
            body |= {"system": SYSTEM, "messages": said}
            if as_tool:
                body |= {"tools": [tool | {"input_schema": schema}], "tool_choice": {"type": "tool", "name": "route"}}
            else:
                body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        case "chat":
            body["messages"] = [{"role": "system", "content": SYSTEM}, *said]
            if as_tool:
                body["tools"] = [{"type": "function", "function": tool | {"parameters": schema}}]
                body["tool_choice"] = {"type": "function", "function": {"name": "route"}}
            else:
                wanted = {"name": "route", "schema": schema, "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        case _:
            body = {"model": "big", "instructions": SYSTEM, "input": said}
            if as_tool:
                body["tools"] = [{"type": "function", **tool, "parameters": schema}]
                body["tool_choice"] = {"type": "function", "name": "route"}
            else:
                body["text"] = {"format": {"type": "json_schema", "name": "route", "schema": schema}}
    return body | fields


def find(name: str, body: Any, types: ForcedTypes | None = None) -> ForcedDecision | None:
    return (types or ForcedTypes()).find(OPERATIONS[name], body)


def found(name: str, body: Any, types: ForcedTypes | None = None) -> ForcedDecision:
    decision = find(name, body, types)
    assert decision is not None
    return decision


def upstream_answer(name: str, arguments: Any, *, as_tool: bool) -> Any:
    """An answer in the form of one protocol."""
    told = orjson.dumps(arguments).decode()
    match name:
        case "anthropic":
            block = {"type": "tool_use", "id": "toolu_1", "name": "route", "input": arguments}
            content = [block] if as_tool else [{"type": "text", "text": told}]
            return ANTHROPIC_MESSAGE | {"content": content, "stop_reason": "tool_use" if as_tool else "end_turn"}
        case "chat":
            calls = [{"id": "c", "type": "function", "function": {"name": "route", "arguments": told}}]
            return chat_answer(None, calls) if as_tool else chat_answer(told)
        case _:
            item: dict[str, Any] = {"type": "message", "content": [{"type": "output_text", "text": told}]}
            if as_tool:
                item = {"type": "function_call", "call_id": "c", "name": "route", "arguments": told}
            return {
                "id": "r",
                "status": "completed",
                "output": [item],
                "usage": {"input_tokens": 9, "output_tokens": 4},
            }


def told(name: str, body: bytes, *, as_tool: bool, streamed: bool) -> Any:
    """The arguments or the JSON in an answer of ours, read by the protocol's own reader."""
    said = OPERATIONS[name].read(body, "text/event-stream" if streamed else "application/json")
    assert said.whole
    if not as_tool:
        return orjson.loads(said.text)
    [call] = said.tool_calls
    assert call["name"] == "route"
    return call["arguments"] if isinstance(call["arguments"], dict) else orjson.loads(call["arguments"])


def server(running: Running, name: str) -> Any:
    return running.anthropic if name == "anthropic" else running.openai


@pytest.mark.parametrize("as_tool", [True, False])
@pytest.mark.parametrize("name", PATHS)
async def test_a_forced_form_is_logged_learned_and_answered_in_its_own_form(
    start: Start, name: str, as_tool: bool
) -> None:
    running = await start(forced_after=1)
    body = request(name, as_tool=as_tool)
    answer = upstream_answer(name, DECIDED, as_tool=as_tool)
    server(running, name).script = json(answer)
    _, headers, got = await running.ask("POST", PATHS[name], json=body)
    assert orjson.loads(got) == answer
    [kind] = load_catalog(running.data)
    assert kind == found(name, body).type.kind.name
    running.route(kind)
    running.model.script = json(chat_answer('{"answers": {"action": "IGNORE", "urgent": false}}'))
    for streamed in (False, True):
        _, headers, got = await running.ask("POST", PATHS[name], json=body | {"stream": streamed})
        assert headers["x-reasoning-source"] == "custom"
        assert told(name, got, as_tool=as_tool, streamed=streamed) == DECIDED
        if name == "anthropic" and streamed:
            read_legal_stream(got)
    assert len(server(running, name).seen) == 1
    prompt = running.model.last.json["messages"]
    assert "numbers in the instructions: 12 30 2026 11 28" in prompt[1]["content"]
    rows = await running.records()
    assert [(row["source"], row["decision_type"], row["valid"]) for row in rows] == [
        ("original", kind, True),
        ("custom", kind, True),
        ("custom", kind, True),
    ]
    assert {row["decision"] for row in rows} == {'{"action":"IGNORE","urgent":false}'}
    assert {row["completion"] for row in rows if row["source"] == "original"} == {
        '{"answers":{"action":"IGNORE","urgent":false}}'
    }


@pytest.mark.parametrize("name", PATHS)
async def test_an_upstreams_stream_is_read_and_passes_as_it_came(start: Start, name: str) -> None:
    running = await start(forced_after=1)
    answer = upstream_answer(name, DECIDED, as_tool=True)
    if name == "anthropic":
        events = message_events(answer)
    elif name == "chat":
        call = answer["choices"][0]["message"]["tool_calls"][0]
        pieces = [call["function"] | {"arguments": '{"action":"IGN'}, {"arguments": 'ORE","urgent":false,"version":2}'}]
        chunks = [{"delta": {"tool_calls": [{"index": 0, "function": piece}]}} for piece in pieces]
        chunks.append({"delta": {}, "finish_reason": "stop"})
        events = [b"data: " + orjson.dumps({"choices": [chunk]}) + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]
    else:
        events = [b"data: " + orjson.dumps({"type": "response.completed", "response": answer}) + b"\n\n"]
    server(running, name).script = stream(*events)
    _, _, got = await running.ask("POST", PATHS[name], json=request(name, stream=True))
    assert got == b"".join(events)
    [row] = await running.records()
    assert (row["valid"], row["decision"]) == (True, '{"action":"IGNORE","urgent":false}')


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("wrong", ["another tool", "two calls", "not JSON", "no value of the enum", "missing"])
async def test_what_an_upstream_answers_wrongly_passes_and_teaches_nobody(start: Start, name: str, wrong: str) -> None:
    running = await start(forced_after=1)
    arguments: Any = {"no value of the enum": DECIDED | {"action": "x"}, "missing": {"urgent": True}}.get(
        wrong, DECIDED
    )
    answer = upstream_answer(name, arguments, as_tool=True)
    holder = {"anthropic": lambda: answer["content"], "responses": lambda: answer["output"]}.get(
        name, lambda: answer["choices"][0]["message"]["tool_calls"]
    )()
    function = holder[0]["function"] if name == "chat" else holder[0]
    if wrong == "another tool":
        function["name"] = "other"
    elif wrong == "two calls":
        holder.append(holder[0])
    elif wrong == "not JSON":
        function["input" if name == "anthropic" else "arguments"] = "{"
    server(running, name).script = json(answer)
    _, _, got = await running.ask("POST", PATHS[name], json=request(name))
    assert orjson.loads(got) == answer
    assert len(server(running, name).seen) == 1
    assert not any(row["valid"] for row in await running.records())


def test_the_type_is_known_by_the_form_and_the_instructions() -> None:
    types = ForcedTypes()

    def name(body: Any) -> str:
        return found("chat", body, types).type.kind.name

    first = name(request("chat"))
    assert first.startswith("route_")
    later = request("chat", text="another question")
    later["messages"][0]["content"] = SYSTEM.replace("12:30", "08:15")
    assert name(later) == first == found("chat", request("chat")).type.kind.name
    other = request("chat")
    other["messages"][0]["content"] = "You are Ann."
    reworded = request("chat", schema=ROUTE | {"description": "x"})
    assert len({first, name(other), name(reworded)}) == 3


CHOICE = {"enum": ["a", "b"]}
OBJECT = {"type": "object", "required": ["x"]}


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({**OBJECT, "properties": {"x": {"$ref": "#/$defs/k"}}, "$defs": {"k": CHOICE}}, {"x": "b"}),
        ({**OBJECT, "properties": {"x": {**OBJECT, "properties": {"x": CHOICE}}}}, {"x": {"x": "a"}}),
        ({**OBJECT, "properties": {"x": {"anyOf": [CHOICE, {"type": "null"}]}}}, {"x": None}),
        ({**OBJECT, "properties": {"x": {"oneOf": [{"const": 1, "description": "one"}, {"const": 2}]}}}, {"x": 2}),
        ({**OBJECT, "properties": {"x": {"enum": [True, "yes", 3]}}}, {"x": True}),
        ({**OBJECT, "properties": {"x": {"type": "boolean"}}}, {"x": True}),
        ({**OBJECT, "properties": {"x": {"type": ["boolean", "null"]}}}, {"x": None}),
        ({**OBJECT, "properties": {"x": {"type": "string", "enum": ["a", "b", 3, None]}}}, {"x": "a"}),
        ({**OBJECT, "properties": {"x": {"const": 1, "enum": [1]}, "y": CHOICE}, "required": ["x", "y"]}, None),
        ({**OBJECT, "properties": {"x": {"$ref": "#/$defs/k", "default": "a"}}, "$defs": {"k": CHOICE}}, {"x": "b"}),
        ({"$ref": "#/$defs/r", "$defs": {"r": {**OBJECT, "properties": {"x": CHOICE}}}}, {"x": "b"}),
        ({"properties": {"x": CHOICE}}, {"x": "a"}),
        (
            {**OBJECT, "properties": {"x": {"allOf": [{"$ref": "#/definitions/k"}]}}, "definitions": {"k": CHOICE}},
            {"x": "a"},
        ),
    ],
)
def test_fields_that_decide_are_read_and_written(schema: Any, arguments: Any) -> None:
    for name in PATHS:
        kind = found(name, request(name, schema)).type
        arguments = arguments or {"x": 1, "y": "a"}
        said = OPERATIONS[name].read(orjson.dumps(upstream_answer(name, arguments, as_tool=True)), "application/json")
        written = kind.complete(kind.kind.normalize(kind.read(said)))
        assert written == ("route", arguments)
        jsonschema.validate(written[1], schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "required": ["x"], "properties": {"x": {"type": "string"}}},
        {"type": "object", "required": ["x", "y"], "properties": {"x": CHOICE, "y": {"type": "string"}}},
        {"type": "object", "properties": {"x": CHOICE, "y": {"type": "string"}}},
        {"type": "object", "required": ["x"], "properties": {"x": {"enum": ["a", "A"]}}},
        {"type": "object", "required": ["x"], "properties": {"x": {"enum": ["only"]}}},
        {"type": "object", "required": ["x"], "properties": {"x": {"enum": [1.5, 2.5]}}},
        {"type": "object", "required": ["x"], "properties": {"x": {"$ref": "https://example.org/x"}}},
        {
            "type": "object",
            "required": ["x"],
            "properties": {"x": {"$ref": "#/$defs/loop"}},
            "$defs": {"loop": {"$ref": "#/$defs/loop"}},
        },
        {"type": "object", "required": ["x"], "properties": {"x": {"enum": ["1", 1]}}},
        {"type": "object", "properties": {}},
        {"type": "array", "items": CHOICE},
        {"enum": ["a", "b"]},
        {"type": "object", "required": ["x"], "properties": {"x": 7}},
        {"type": "object", "required": ["x"], "properties": {"x": CHOICE}, "patternProperties": {".*": {}}},
        {**OBJECT, "properties": {"x": CHOICE}, "required": ["x", "text"]},
        {**OBJECT, "properties": {"x": CHOICE}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {**OBJECT, "properties": {"x": CHOICE}, "oneOf": [{"properties": {"y": {}}, "required": ["y"]}]},
        {**OBJECT, "properties": {"x": CHOICE}, "if": {}, "then": {"required": ["y"]}},
        {**OBJECT, "properties": {"x": CHOICE}, "minProperties": 2},
        {**OBJECT, "properties": {"x": {"$ref": "#/$defs/k", "enum": ["a"]}}, "$defs": {"k": CHOICE}},
        {**OBJECT, "properties": {"x": {"enum": ["a", "b"], "not": {"const": "a"}}}},
        {**OBJECT, "properties": {"x": {"enum": ["a", "b"], "anyOf": [{"const": "a"}, {"const": "c"}]}}},
        {**OBJECT, "properties": {"x": {"anyOf": [{"$ref": "#/properties/x"}, {"$ref": "#/properties/x"}]}}},
        {**OBJECT, "properties": {"x": {"enum": [f"v{i}" for i in range(10_000)]}}},
        {**OBJECT, "properties": {"x": CHOICE | {"description": "x" * 70_000}}},
        {**OBJECT, "properties": {"x": CHOICE}, "required": [["x"]]},
    ],
)
@pytest.mark.parametrize("as_tool", [True, False])
def test_forms_that_do_not_decide_pass(schema: Any, as_tool: bool) -> None:
    for name in PATHS:
        assert find(name, request(name, schema, as_tool=as_tool)) is None


@pytest.mark.parametrize("name", PATHS)
def test_a_form_with_optional_fields_is_answered_only_where_a_template_names_it(name: str) -> None:
    schema = {**OBJECT, "properties": {"x": CHOICE, "text": {"type": "string"}, "loud": {"type": "boolean"}}}
    assert found(name, request(name, schema)).type.complete({"x": "a"}) is None
    named = ForcedTypes([Template("route", {}, {})])
    assert found(name, request(name, schema), named).type.complete({"x": "a"}) == ("route", {"x": "a"})


def test_a_schema_that_requires_thousands_of_fields_is_read_in_linear_time() -> None:
    properties: dict[str, Any] = {f"p{i}": {} for i in range(20_000)}
    schema = {"properties": {**properties, "x": CHOICE}, "required": ["x", *(f"q{i}" for i in range(20_000))]}
    started = time.perf_counter()
    read_schema(schema)
    assert time.perf_counter() - started < 2


IMAGES: dict[str, Any] = {
    "anthropic": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aaaa"}},
    "chat": {"type": "image_url", "image_url": {"url": "data:image/png;base64,aaaa"}},
    "responses": {"type": "input_image", "image_url": "data:image/png;base64,aaaa"},
}


@pytest.mark.parametrize("name", PATHS)
def test_requests_that_want_more_pass(name: str) -> None:
    turns = "input" if name == "responses" else "messages"
    assert find(name, request(name)) is not None
    assert find(name, request(name) | {turns: [{"role": "user", "content": [IMAGES[name]]}]}) is None
    for fields in ({"n": 2}, {"logprobs": True}, {"max_tokens": 1}, {"previous_response_id": "r"}, {turns: []}):
        assert find(name, request(name) | fields) is None
    free = request(name) | {"tool_choice": "auto" if name != "anthropic" else {"type": "auto"}}
    assert find(name, free) is None
    offered = request(name, as_tool=False) | {"tools": request(name)["tools"]}
    assert find(name, offered) is None
    assert find(name, request(name, text="x" * 200_001)) is None


@pytest.mark.parametrize("name", PATHS)
def test_any_tool_is_the_only_one_or_a_choice_of_tools_without_arguments(name: str) -> None:
    required: Any = {"type": "any"} if name == "anthropic" else "required"
    assert found(name, request(name) | {"tool_choice": required}).named is False

    def tool(called: str, schema: Any) -> Any:
        one = request(name, schema)["tools"][0]
        if name == "chat":
            return one | {"function": one["function"] | {"name": called}}
        return one | {"name": called}

    empty: Any = {"type": "object", "properties": {}}
    tools = [tool("transfer_to_billing", empty), tool("transfer_to_support", empty)]
    decision = found(name, request(name) | {"tool_choice": required, "tools": tools})
    assert decision.type.complete({"tool": "transfer_to_support"}) == ("transfer_to_support", {})
    assert find(name, request(name) | {"tool_choice": required, "tools": [*tools, tool("route", ROUTE)]}) is None
    builtin = [*tools, {"type": "web_search_20260209", "name": "search"}]
    assert find(name, request(name) | {"tool_choice": required, "tools": builtin}) is None


def test_allowed_tools_restrict_what_is_forced() -> None:
    chat = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": request("chat")["tools"]}}
    assert find("chat", request("chat") | {"tool_choice": chat}) is not None
    named = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "route"}]}
    assert find("responses", request("responses") | {"tool_choice": named}) is not None
    assert find("responses", request("responses") | {"tool_choice": named | {"mode": "auto"}}) is None


STAGE_ONE = {
    "type": "object",
    "properties": {
        "shouldRespond": {"type": "string", "enum": ["RESPOND", "IGNORE", "STOP"]},
        "thought": {"type": "string"},
        "replyText": {"type": "string"},
        "contexts": {"type": "array", "items": {"type": "string"}},
        "requiresTool": {"type": "boolean"},
    },
    "required": ["shouldRespond", "replyText", "contexts"],
}
SILENT = {
    "tool": "route",
    "when": {"shouldRespond": ["IGNORE", "STOP"]},
    "fields": {"replyText": "", "contexts": []},
}


@pytest.mark.parametrize("name", PATHS)
async def test_free_fields_are_the_upstreams_unless_a_template_fills_them(start: Start, name: str) -> None:
    body = request(name, STAGE_ONE)
    assert find(name, body) is None  # a required text, and nobody has said what stands there
    running = await start(forced_after=1, forced_templates=(SILENT,))
    kind = found(name, body, ForcedTypes(read_templates([SILENT]))).type.kind.name
    running.route(kind)
    reply = {"shouldRespond": "RESPOND", "replyText": "Hi!", "contexts": ["general"]}
    answer = upstream_answer(name, reply, as_tool=True)
    server(running, name).script = json(answer)
    running.model.script = json(chat_answer('{"answers": {"shouldRespond": "IGNORE"}}'))
    _, _, got = await running.ask("POST", PATHS[name], json=body)
    silent = told(name, got, as_tool=True, streamed=False)
    assert silent == {"shouldRespond": "IGNORE", "replyText": "", "contexts": []}
    running.model.script = json(chat_answer('{"answers": {"shouldRespond": "RESPOND"}}'))
    _, _, got = await running.ask("POST", PATHS[name], json=body)
    assert orjson.loads(got) == answer
    rows = [(row["source"], row["served"], row["fallback_reason"]) for row in await running.records()]
    assert rows == [("custom", True, None), ("custom", False, "needs_text"), ("original", True, "needs_text")]


def test_templates_are_checked() -> None:
    for wrong in ({"tool": ""}, {"tool": "x", "when": {"a": "b"}}, {"tool": "x", "fields": 1}, {"tol": "x"}, 7):
        with pytest.raises(GatewayConfigError, match="number 1"):
            read_templates([wrong])


@pytest.mark.parametrize("off", ["gateway", "key", "record"])
async def test_forced_decisions_can_be_switched_off(start: Start, off: str, tmp_path: Any) -> None:
    changed: dict[str, Any] = {"forced_after": 1, "forced": off != "gateway"}
    if off == "key":
        base = load_settings(tmp_path, tmp_path / "none.toml", {"REASONING_GATEWAY_TOKEN": TOKEN})
        changed["keys"] = tuple(replace(key, forced=False) for key in base.keys)
    running = await start(**changed, record=off != "record")
    running.openai.script = json(upstream_answer("chat", DECIDED, as_tool=True))
    _, headers, _ = await running.ask("POST", PATHS["chat"], json=request("chat"))
    assert "x-reasoning-decision-id" not in headers
    assert await running.records() == []


def test_a_prompt_that_is_never_the_same_twice_makes_no_type() -> None:
    types = ForcedTypes(after=2)
    for person in ("Ann", "Bob", "Cleo"):
        body = request("chat")
        body["messages"][0]["content"] = f"You speak with {person}."
        assert find("chat", body, types) is None
    assert find("chat", body, types) is not None


def test_types_of_one_process_are_limited() -> None:
    types = ForcedTypes()
    for i in range(MAX_TYPES):
        body = request("chat", {**OBJECT, "properties": {"x": {"enum": ["a", f"b{i}"]}}})
        assert find("chat", body, types) is not None
    assert find("chat", request("chat"), types) is None


@pytest.mark.parametrize("name", PATHS)
def test_recognition_takes_linear_time(name: str) -> None:
    def seconds(body: Any, types: Callable[[], ForcedTypes]) -> float:
        best = 1.0
        for _ in range(5):
            fresh = types()
            started = time.perf_counter()
            find(name, body, fresh)
            best = min(best, time.perf_counter() - started)
        return best

    wide = [{**OBJECT, "properties": {"x": {"enum": [f"v{i}" for i in range(n)]}}} for n in (60, 240)]
    small, large = (seconds(request(name, schema), ForcedTypes) for schema in wide)
    assert large < 12 * small + 0.002
    texts = [request(name, text="a1 " * n) for n in (5_000, 60_000)]
    small, large = (seconds(body, ForcedTypes) for body in texts)
    assert large < 40 * small + 0.002


def test_discover_lists_what_recorded_requests_would_become(tmp_path: Path) -> None:
    plain = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}
    open_form = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    recorded = [
        {"path": "/v1/chat/completions", "body": request("chat")},
        request("chat", text="another"),
        request("anthropic"),
        request("responses", STAGE_ONE),
        {"path": "/v1/chat/completions", "body": request("chat", open_form)},
        request("anthropic", ROUTE | {"properties": ROUTE["properties"] | {"note": {"type": "string"}}}),
        plain,
        request("chat")
        | {"tools": [7], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": 1, "tools": 7}}},
    ]
    file = tmp_path / "requests.jsonl"
    file.write_bytes(b"\n".join(orjson.dumps(each) for each in recorded))
    listed = {(each.door, each.status): each for each in discover_types(read_requests(file))}
    assert {key: each.requests for key, each in listed.items()} == {
        ("chat", "recognised"): 2,
        ("anthropic", "recognised"): 1,
        ("anthropic", "logged only: name it in [[gateway.forced]], `fields = {}` leaves optional fields out"): 1,
        ("responses", "name it in [[gateway.forced]]: it requires free fields"): 1,
        ("chat", "passes: nothing in it decides"): 1,
    }
    assert listed["chat", "recognised"].decision_type == found("chat", request("chat")).type.kind.name
    assert listed["chat", "recognised"].decides == "action: IGNORE|ANSWER, urgent: true|false"
    needs = listed["responses", "name it in [[gateway.forced]]: it requires free fields"]
    assert (needs.free, needs.decides) == ("replyText, contexts", "shouldRespond: RESPOND|IGNORE|STOP")
    templates = read_templates([SILENT])
    again = {each.door: each.decision_type for each in discover_types(read_requests(file), templates)}
    assert again["responses"] == needs.decision_type
    file.write_text("{")
    with pytest.raises(BadRequest, match="line 1 is not JSON"):
        discover_types(read_requests(file))


_WORDS = st.sampled_from(
    ["You", "are", "Sam", "12:30", "7", "é", "x1y", "-", "3f2a9c1e-1b2c-4d5e-8f90-0a1b2c3d4e5f", "2026-11-28"]
)
_TEXTS = st.lists(st.tuples(_WORDS, st.sampled_from([" ", "\n", ""])), max_size=8).map(
    lambda p: "".join(map("".join, p))
)


@settings(max_examples=100, deadline=None)
@given(_TEXTS, _TEXTS, _TEXTS, _TEXTS, st.sampled_from([0, 100, 5000]))
def test_instructions_are_masked_alike_by_difference_and_as_a_whole(
    head: str, one: str, other: str, tail: str, padding: int
) -> None:
    head, tail = f"{'a b ' * padding}{head}", f"{tail}{' c' * padding}"
    warm = Instructions()
    for text in (head + one + tail, head + other + tail):
        assert warm.mask(text) == Instructions().mask(text)


_NAMES = [
    "type",
    "name",
    "function",
    "properties",
    "required",
    "x",
    "enum",
    "const",
    "anyOf",
    "allOf",
    "$ref",
    "content",
]
_NAMES += [
    "mode",
    "tools",
    "allowed_tools",
    "format",
    "schema",
    "json_schema",
    "role",
    "tool_calls",
    "functionDeclarations",
]
_LEAVES = st.sampled_from(
    [None, True, 3, 1.5, "x", "object", "boolean", "function", "json_schema", "#/$defs/x", "required"]
)
_JSON = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=4),
    max_leaves=10,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([*PATHS, "gemini"]), st.booleans(), st.integers(0, 10**6), _JSON)
def test_no_request_whatsoever_is_an_error(name: str, as_tool: bool, at: int, odd: Any) -> None:
    body = orjson.loads(orjson.dumps(GEMINI_BODIES[as_tool] if name == "gemini" else request(name, as_tool=as_tool)))
    places = _places(body)[1:]
    *path, last = places[at % len(places)]
    holder = body
    for key in path:
        holder = holder[key]
    holder[last] = odd
    find(name, body)
