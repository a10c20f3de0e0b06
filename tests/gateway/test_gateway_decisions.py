"""Decisions: asked outright, and recognised in the prompts of agent frameworks, in the format that they ask for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.decisions.episodes import Episodes
from gateway.decisions.prompts import read_decision, read_kinds, recognise, write_answer
from gateway.protocols import PROTOCOLS
from gateway.protocols.answers import OwnAnswer
from gateway.store import Store
from reasoning.decision_types import DECISION_TYPES
from tests.gateway import scripted
from tests.gateway.conftest import Running, Start
from tests.gateway.scripted import anthropic_stream, chat_answer, json, stream, whole

OPERATIONS = {operation.name: operation for protocol in PROTOCOLS for operation in protocol.operations}

CONVERSATION = """# Conversation Messages
10:01 (3 minutes ago) [aaaaaaaa-0000-0000-0000-000000000001] Ann: Is the build red again?
It was green at noon: see <ci>.
10:02 (2 minutes ago) [aaaaaaaa-0000-0000-0000-000000000002] Bob: Ada, can you look?
 (Bob's actions: REPLY)

# Received Message
Bob: Ada, can you look?
"""
ACTIONS = """# Available Actions
- **REPLY**: Say something
- **RUN_BUILD**: Start the build again
"""


def respond_xml() -> str:
    task = "whether they should respond to the message, ignore it or stop the conversation."
    return f"""<task>Decide on behalf of Ada {task}</task>

<providers>
{CONVERSATION}
</providers>

<output>
Respond using XML format like this:
<response>
  <name>Ada</name>
  <reasoning>Your reasoning here</reasoning>
  <action>RESPOND | IGNORE | STOP</action>
</response>
</output>"""


def respond_toon() -> str:
    return f"""task: Decide whether Ada should respond, ignore, or stop.

context:
{CONVERSATION}

output:
TOON only. Return exactly one TOON document. No XML, no JSON.

Example:
name: Ada
reasoning: Direct mention.
action: RESPOND
primaryContext: general
"""


def respond_json() -> str:
    return respond_xml().partition("<output>")[0] + 'Answer with JSON only: {"name": "Ada", "action": "RESPOND"}'


def plan_xml() -> str:
    return f"""<task>Generate dialog and actions for the character Ada.</task>

<providers>
{CONVERSATION}
{ACTIONS}
</providers>

<output>
<response>
    <thought>Your thought here</thought>
    <actions>ACTION1,ACTION2</actions>
    <providers>PROVIDER1,PROVIDER2</providers>
    <text>Your response text here</text>
</response>
</output>"""


def plan_toon() -> str:
    return f"""task: Generate dialog and actions for Ada.

context:
{CONVERSATION}
{ACTIONS}

output:
TOON only. Return exactly one TOON document with the keys above. No XML, no JSON, no markdown fences.
"""


PROMPTS = {
    ("should_respond", "xml"): respond_xml(),
    ("should_respond", "toon"): respond_toon(),
    ("should_respond", "json"): respond_json(),
    ("planning", "xml"): plan_xml(),
    ("planning", "toon"): plan_toon(),
}
KINDS = read_kinds((), DECISION_TYPES)
OURS = {
    "should_respond": "<response><reasoning>Asked: by name</reasoning><action>RESPOND</action></response>",
    "planning": "<response><thought>Do it</thought><actions>REPLY, RUN_BUILD</actions><providers></providers>"
    "<text>On it: now, &lt;b&gt;</text></response>",
}


@pytest.mark.parametrize(("kind", "format"), PROMPTS)
def test_prompts_are_recognised_and_read(kind: str, format: str) -> None:
    found = recognise(PROMPTS[kind, format], KINDS, DECISION_TYPES)
    assert found is not None
    assert (found.decision_type, found.format) == (kind, format)
    assert found.context["agent_name"] == "Ada"
    assert found.context["messages"] == [
        {"speaker": "Ann", "text": "Is the build red again?\nIt was green at noon: see <ci>."},
        {"speaker": "Bob", "text": "Ada, can you look?"},
    ]
    if kind == "planning":
        assert found.context["actions"] == [
            {"name": "REPLY", "description": "Say something"},
            {"name": "RUN_BUILD", "description": "Start the build again"},
        ]
    DECISION_TYPES[kind].render(found.context)


@pytest.mark.parametrize(("kind", "format"), PROMPTS)
def test_answers_are_in_the_format_asked_for(kind: str, format: str) -> None:
    type = DECISION_TYPES[kind]
    decision = type.parse(OURS[kind])
    found = recognise(PROMPTS[kind, format], KINDS, DECISION_TYPES)
    assert found is not None
    text = write_answer(found, decision, type)
    begins = {"xml": "<response>", "json": "{", "toon": "name: " if kind == "should_respond" else "thought: "}
    assert text.startswith(begins[format])
    assert read_decision(found.format, text, type) == decision
    if format == "toon":
        assert "<" not in text.replace("<b>", "")
        if kind == "should_respond":
            assert 'reasoning: "Asked: by name"' in text  # a colon needs quotes in TOON
            assert "primaryContext: general" in text
        else:
            assert "actions[2]:\n  - name: REPLY\n  - name: RUN_BUILD" in text


@pytest.mark.parametrize(
    "prompt",
    [
        "What should I respond to my boss?",
        "Decide on behalf of Ada whether they should respond to the message, ignore it or stop the conversation.",
        respond_xml().replace("10:0", "x").replace("# Received Message\nBob:", "Bob"),
        plan_xml().replace(ACTIONS, ""),
        respond_xml().replace("<response>", "").replace("XML", ""),
        "Generate dialog and actions for the weekend",
        "x" * 300_000,
    ],
)
def test_other_prompts_are_no_decisions(prompt: str) -> None:
    assert recognise(prompt, KINDS, DECISION_TYPES) is None


UUIDS = [f"{n}{n}{n}{n}{n}{n}{n}{n}-0000-4000-8000-000000000000" for n in (1, 2, 3)]


@pytest.mark.parametrize("format", ["xml", "json"])
def test_codes_that_elizaos_wants_back_are_given_back(format: str) -> None:
    """The Python elizaOS 2.0.0a5 throws away an answer that lacks them."""

    def line(name: str, wanted: str) -> str:
        return f"  <{name}>{wanted}</{name}>" if format == "xml" else f'  "{name}": "{wanted}",'

    names = ["one_initial_code", "one_middle_code", "one_end_code", "two_initial_code", "two_end_code"]
    lines = [line(name, f"echo the {name.split('_')[1]} UUID code from prompt") for name in names]
    lines += [line(f"code_text_{end}", "output exactly: 1a2b3c4d") for end in ("start", "end")]
    body = plan_xml().partition("<output>")[0]
    begin, end = ("<response>", "</response>") if format == "xml" else ("JSON {", "}")
    shown = "\n".join([begin, *lines, end])
    prompt = f"initial code: {UUIDS[0]}\n{body}\nmiddle code: {UUIDS[1]}\n{shown}\nend code: {UUIDS[2]}\n"
    found = recognise(prompt, KINDS, DECISION_TYPES)
    assert found is not None
    assert found.format == format
    answer = write_answer(found, DECISION_TYPES["planning"].parse(OURS["planning"]), DECISION_TYPES["planning"])
    wanted = dict(zip(names, [*UUIDS, UUIDS[0], UUIDS[2]], strict=True))
    wanted |= {"code_text_start": "1a2b3c4d", "code_text_end": "1a2b3c4d"}
    for name, code in wanted.items():
        assert (f"<{name}>{code}</{name}>" if format == "xml" else f'"{name}":"{code}"') in answer
    assert "RUN_BUILD" in answer
    plain = recognise(plan_xml(), KINDS, DECISION_TYPES)
    assert plain is not None
    assert plain.echoes == {}


def test_messages_of_actions_alone_are_no_speech() -> None:
    # As elizaOS 1.7.2 shows a message of its agent that it left unanswered.
    silent = "10:03 (just now) [aaaaaaaa-0000-0000-0000-000000000009] (Ada's actions: IGNORE)"
    shown = CONVERSATION.replace("\n\n# Received", f"\n{silent}\n\n# Received")
    found = recognise(respond_xml().replace(CONVERSATION, shown), KINDS, DECISION_TYPES)
    assert found == recognise(respond_xml(), KINDS, DECISION_TYPES)


def test_none_is_ignore_and_lists_of_toon_are_read() -> None:
    respond, plan = DECISION_TYPES["should_respond"], DECISION_TYPES["planning"]
    assert read_decision("xml", "<response><action>NONE</action></response>", respond)["action"] == "IGNORE"
    assert read_decision("toon", "name: Ada\naction: NONE", respond)["action"] == "IGNORE"
    text = 'thought: "a: b"\nactions[2]: REPLY,RUN_BUILD\nproviders: FACTS, WORLD\ntext: hi\nsimple: true'
    assert read_decision("toon", text, plan) == {
        "thought": "a: b",
        "actions": ["REPLY", "RUN_BUILD"],
        "providers": ["FACTS", "WORLD"],
        "text": "hi",
    }


def test_kinds_by_configuration() -> None:
    table = {
        "decision_type": "should_respond",
        "match": r"Should (?P<agent>\w+) answer\?",
        "message": r"^(?P<speaker>\w+)> (?P<text>.*)$",
    }
    kinds = read_kinds([table], DECISION_TYPES)
    found = recognise("Ann> hi\nBob> you there?\n\nShould Ada answer? As JSON.", kinds, DECISION_TYPES)
    assert found is not None
    assert found.context == {
        "agent_name": "Ada",
        "messages": [{"speaker": "Ann", "text": "hi"}, {"speaker": "Bob", "text": "you there?"}],
    }


@pytest.mark.parametrize(
    "table",
    [
        {"decision_type": "nope", "match": "x"},
        {"decision_type": "should_respond", "match": "("},
        {"decision_type": "should_respond", "match": "x", "agent": "y"},
        {"decision_type": "should_respond", "match": "(?P<agent>x)", "message": "y"},
        {"decision_type": "should_respond", "match": "x", "matches": "y"},
    ],
)
def test_wrong_kinds_are_named(table: dict[str, Any]) -> None:
    from gateway.errors import GatewayConfigError

    with pytest.raises(GatewayConfigError, match="number 1"):
        read_kinds([table], DECISION_TYPES)


def request(form: str, prompt: str, streamed: bool) -> tuple[str, dict[str, Any]]:
    if form == "responses":
        return "/v1/responses", {
            "model": "gpt",
            "input": [{"role": "user", "content": [{"type": "input_text", "text": prompt}]}],
            "stream": streamed,
        }
    path = "/v1/messages" if form == "anthropic" else "/v1/chat/completions"
    return path, {"model": "m", "max_tokens": 99, "messages": [{"role": "user", "content": prompt}], "stream": streamed}


async def ask(running: Running, form: str, prompt: str, streamed: bool) -> tuple[int, Any, bytes]:
    path, body = request(form, prompt, streamed)
    return await running.ask("POST", path, json=body)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("form", ["chat", "responses", "anthropic"])
@pytest.mark.parametrize(("kind", "format"), PROMPTS)
async def test_our_model_answers_in_the_apis_form(
    start: Start, kind: str, format: str, form: str, streamed: bool
) -> None:
    running = await start()
    running.route(kind)
    running.model.script = json(chat_answer(OURS[kind]))
    status, headers, body = await ask(running, form, PROMPTS[kind, format], streamed)
    assert (status, headers["x-reasoning-source"]) == (200, "custom")
    said = OPERATIONS[form].read(body, headers["content-type"])
    decision = read_decision(format, said.text, DECISION_TYPES[kind])  # type: ignore[arg-type]
    assert decision == DECISION_TYPES[kind].parse(OURS[kind])
    assert running.openai.seen == running.anthropic.seen == []
    [row] = await running.records()
    assert (row["source"], row["served"], row["decision_type"]) == ("custom", True, kind)
    assert str(row["decision_id"]) == headers["x-reasoning-decision-id"]


def window(first: int, last: int, *, eliza: bool) -> str:
    """A should-respond prompt that shows some messages of one conversation."""
    lines = []
    for n in range(first, last):
        sent = f"10:{n:02} ({last - n} minutes ago) [aaaaaaaa-0000-0000-0000-00000000000{n % 2}] " if eliza else ""
        lines.append(f"{sent}{('Ann', 'Bob')[n % 2]}: what do you say of number {n}?")
    task = "whether they should respond to the message, ignore it or stop"
    shown = "\n".join(lines)
    return f"<task>Decide on behalf of Ada {task}</task>\n# Conversation Messages\n{shown}\n\n<response>"


@pytest.mark.parametrize("eliza", [True, False])
def test_prompts_whose_windows_overlap_are_one_conversation(tmp_path: Path, eliza: bool) -> None:
    now = [0.0]
    stores = [Store(tmp_path / "gateway.sqlite") for _ in range(2)]
    gateways = [Episodes(store, size=50, clock=lambda: now[0]) for store in stores]

    def episode(prompt: str, at: int = 0) -> str:
        found = recognise(prompt, KINDS, DECISION_TYPES)
        assert found is not None
        told = gateways[at].find("key\0Ada", found.marks)
        stores[at].flush()
        return told

    first = episode(window(0, 1, eliza=eliza))
    # Two gateways of one machine take turns, and each begins anew in between.
    for n in range(2, 20):
        assert episode(window(max(0, n - 5), n, eliza=eliza), n % 2) == first
        gateways[n % 2] = Episodes(stores[n % 2], size=50, clock=lambda: now[0])
    other = window(0, 1, eliza=eliza).replace("number 0", "the weather")
    assert episode(other) != first
    assert episode(window(40, 45, eliza=eliza)) not in (first, episode(other))
    found = recognise(window(0, 2, eliza=eliza), KINDS, DECISION_TYPES)
    assert found is not None
    ids = ("aaaaaaaa-0000-0000-0000-000000000000", "aaaaaaaa-0000-0000-0000-000000000001")
    assert found.subject_ids == ("Ann", "Bob", *(ids if eliza else ()))
    now[0] = 8 * 24 * 3600.0
    last = Episodes(stores[0], size=50, clock=lambda: now[0])
    for n in range(100):
        last.find("another", [f"message {n}"])
    assert len(last._seen) == 50
    stores[0].flush()
    assert stores[1].read("SELECT count(*) FROM marks") == [(100,)]  # those of last week are forgotten
    for store in stores:
        store.close()


SESSION = "11111111-2222-3333-4444-555555555555"


@pytest.mark.parametrize(
    ("headers", "fields", "episode"),
    [
        ({"x-reasoning-episode-id": "e1"}, {"metadata": {"conversation_id": "c"}}, "e1"),
        ({"x-reasoning-episode": "e2"}, {}, "e2"),
        ({}, {"metadata": {"conversation_id": "c"}}, "c"),
        ({}, {"metadata": {"room_id": "r"}}, "r"),
        ({}, {"metadata": {"user_id": f"user_x_account__session_{SESSION}"}}, SESSION),
        ({}, {"metadata": {"user_id": "someone"}}, None),
        ({}, {"metadata": "odd", "user": "u-1"}, None),
    ],
)
async def test_the_client_may_say_which_conversation_it_is(
    start: Start, headers: dict[str, str], fields: dict[str, Any], episode: str | None
) -> None:
    running = await start()
    running.route("should_respond")
    running.model.script = json(chat_answer(OURS["should_respond"]))
    path, body = request("chat", respond_xml(), False)
    await running.ask(
        "POST", path, json=body | fields, headers=running.headers | headers | {"x-reasoning-room-id": "r1"}
    )
    [row] = await running.records()
    assert row["episode_id"] == episode or (episode is None and row["episode_id"].startswith("prompt:"))
    assert row["room_id"] == "r1"
    assert ("u-1" in row["subject_ids"]) is ("user" in fields)
    assert "Ann" in row["subject_ids"]


UPSTREAM_SAYS = "<response><name>Ada</name><reasoning>no</reasoning><action>IGNORE</action></response>"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("form", ["chat", "responses", "anthropic"])
async def test_the_upstream_is_the_fallback_and_the_teacher(start: Start, form: str, streamed: bool) -> None:
    running = await start()
    running.route("should_respond")
    running.model.script = whole(500, b"{}")
    kind, body = OPERATIONS[form].write(OwnAnswer(UPSTREAM_SAYS, "up", 3, 4), {"stream": streamed})
    pool = running.anthropic if form == "anthropic" else running.openai
    pool.script = whole(200, body, ("x-request-id", "up-1"), content_type=kind.decode())
    status, headers, got = await ask(running, form, respond_xml(), streamed)
    assert (status, got, headers["x-request-id"]) == (200, body, "up-1")
    assert pool.last.json == request(form, respond_xml(), streamed)[1]
    rows = await running.records()
    assert sorted((row["source"], row["served"]) for row in rows) == [("custom", False), ("original", True)]
    original = next(row for row in rows if row["source"] == "original")
    assert orjson.loads(original["decision"])["action"] == "IGNORE"
    assert original["fallback_reason"] == "provider_error"


@pytest.mark.parametrize("answer", [whole(429, b'{"error":{}}'), json(chat_answer("I think so!")), json({"odd": 1})])
async def test_what_the_upstream_says_passes_even_when_it_is_no_decision(start: Start, answer: scripted.Script) -> None:
    running = await start()
    running.openai.script = answer
    path, body = request("chat", respond_xml(), False)
    status, _, got = await running.ask("POST", path, json=body)
    assert status in (200, 429)
    assert got
    assert len(running.openai.seen) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        {"response_format": {"type": "json_object"}},  # the prompt wants XML
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}},
        {"logprobs": True},
        {"functions": [{"name": "f"}]},
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"background": True},
        {"include": ["message.output_text.logprobs"]},
        {"web_search_options": {}},
        {"max_completion_tokens": 1},
        {"response_format": {"type": ["text"]}},  # what the upstream refuses
        {"stop": True},
    ],
)
async def test_what_asks_for_more_than_a_decisions_words_is_the_upstreams(start: Start, fields: dict[str, Any]) -> None:
    running = await start()
    running.route("should_respond")
    running.openai.script = json({"ok": 1})
    path, body = request("responses" if "text" in fields or "conversation" in fields else "chat", respond_xml(), False)
    assert (await running.ask("POST", path, json=body | fields))[2] == b'{"ok":1}'
    assert running.model.seen == []


async def test_a_prompt_for_json_may_ask_for_a_json_object(start: Start) -> None:
    running = await start()
    running.route("should_respond")
    running.model.script = json(chat_answer(OURS["should_respond"]))
    path, body = request("chat", respond_json(), False)
    _, headers, _ = await running.ask("POST", path, json=body | {"response_format": {"type": "json_object"}, "n": 1})
    assert headers["x-reasoning-source"] == "custom"


@pytest.mark.parametrize("wanted", [True, False, None])
async def test_a_stream_tells_its_usage_only_where_it_is_asked_to(start: Start, wanted: bool | None) -> None:
    running = await start()
    running.route("should_respond")
    running.model.script = json(chat_answer(OURS["should_respond"]))
    path, body = request("chat", respond_xml(), True)
    if wanted is not None:
        body["stream_options"] = {"include_usage": wanted}
    _, _, got = await running.ask("POST", path, json=body)
    chunks = [orjson.loads(line[6:]) for line in got.split(b"\n\n") if line and b"[DONE]" not in line]
    assert all(chunk["choices"] for chunk in chunks[:-1])
    if wanted:
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["prompt_tokens"] == 20
        assert chunks[0]["usage"] is None
    else:
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert not any("usage" in chunk for chunk in chunks)


@pytest.mark.parametrize("change", ["tools", "image", "assistant last", "switched off"])
async def test_other_requests_pass(start: Start, change: str) -> None:
    running = await start(decisions=change != "switched off")
    running.route("should_respond")
    running.openai.script = json(chat_answer("x"))
    path, body = request("chat", respond_xml(), False)
    if change == "tools":
        body["tools"] = [{"type": "function", "function": {"name": "f"}}]
    if change == "image":
        body["messages"][0]["content"] = [
            {"type": "text", "text": respond_xml()},
            {"type": "image_url", "image_url": {"url": "x"}},
        ]
    if change == "assistant last":
        body["messages"].append({"role": "assistant", "content": "x"})
    _, headers, _ = await running.ask("POST", path, json=body)
    assert "x-reasoning-source" not in headers
    assert running.openai.last.json == body
    assert running.model.seen == []


CONTEXT = {"agent_name": "Ada", "messages": [{"speaker": "Ann", "text": "Ada?"}]}


async def test_decide_and_feedback(start: Start) -> None:
    running = await start()
    running.route("should_respond")
    running.model.script = json(chat_answer(OURS["should_respond"]))
    body = {"context": CONTEXT, "original": "IGNORE", "episode_id": "e", "tags": {"a": "b"}, "subject_ids": ["ann"]}
    status, headers, got = await running.ask("POST", "/v1/decide/should-respond", json=body)
    answer = orjson.loads(got)
    assert status == 200
    assert headers["x-reasoning-decision-id"] == answer["decision_id"]
    for _ in range(2):
        stats = orjson.loads((await running.ask("GET", "/stats"))[2])
        assert (stats["recorded"], stats["records_dropped"]) == (1, {})
        assert stats["tokens"]["custom:input"] == answer["input_tokens"] > 0
        assert stats["spend_usd"] == pytest.approx(answer["input_tokens"] / 1e6)
    assert answer["decision"] == {"action": "RESPOND", "reasoning": "Asked: by name"}
    assert (answer["source"], answer["model"]) == ("custom", "ep/coder")
    running.model.script = whole(500, b"{}")
    _, _, got = await running.ask("POST", "/v1/decide/should_respond", json=body)
    fallen = orjson.loads(got)
    assert (fallen["decision"], fallen["source"]) == ({"action": "IGNORE"}, "original")
    assert fallen["fallback_reason"] == "provider_error"
    given = {"metric": "helpful", "value": True, "decision_id": answer["decision_id"]}
    assert (await running.ask("POST", "/v1/feedback", json=given))[0] == 202
    rows = await running.records()
    assert {row.get("metric") for row in rows} == {"helpful", None}
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("path", "body", "status", "names"),
    [
        ("/v1/decide/nonsense", {"context": CONTEXT, "original": "IGNORE"}, 404, b"nonsense"),
        ("/v1/decide/should_respond", {"original": "IGNORE"}, 400, b"context"),
        ("/v1/decide/should_respond", {"context": CONTEXT}, 400, b"original"),
        ("/v1/decide/should_respond", {"context": CONTEXT, "original": 3}, 400, b"original"),
        ("/v1/decide/should_respond", {"context": CONTEXT, "original": "MAYBE"}, 400, b"MAYBE"),
        ("/v1/decide/should_respond", {"context": {"agent_name": "Ada"}, "original": "IGNORE"}, 400, b"messages"),
        ("/v1/decide/should_respond", {"context": CONTEXT, "original": "IGNORE", "tags": []}, 400, b"tags"),
        ("/v1/decide/should_respond", [], 400, b"object"),
        ("/v1/feedback", {"value": 1}, 400, b"metric"),
        ("/v1/feedback", {"metric": "m", "value": 1}, 400, b"episode_id"),
    ],
)
async def test_wrong_bodies_are_told_where(start: Start, path: str, body: Any, status: int, names: bytes) -> None:
    running = await start()
    got, _, text = await running.ask("POST", path, json=body)
    assert (got, names in text) == (status, True), text


async def test_body_that_is_no_json(start: Start) -> None:
    running = await start()
    status, _, text = await running.ask("POST", "/v1/feedback", data=b"{")
    assert status == 400
    assert b"not JSON" in text


async def test_client_that_goes_stops_the_decision(start: Start) -> None:
    running = await start()
    running.openai.script = scripted.hang
    task = asyncio.create_task(ask(running, "chat", respond_xml(), False))
    async with asyncio.timeout(5):
        while not running.openai.seen:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait_for(running.openai.last.closed.wait(), 5)


@pytest.mark.parametrize("form", ["chat", "anthropic"])
async def test_our_answer_ends_where_the_client_wants_it_to(start: Start, form: str) -> None:
    running = await start()
    running.route("should_respond")
    running.model.script = json(chat_answer(OURS["should_respond"]))
    path, body = request(form, respond_xml(), False)
    body |= {"stop": "</action>"} if form == "chat" else {"stop_sequences": ["no such", "</response>", "</action>"]}
    answer = orjson.loads((await running.ask("POST", path, json=body))[2])
    if form == "chat":
        assert answer["choices"][0]["message"]["content"].endswith("<action>RESPOND")
    else:
        assert answer["content"][0]["text"].endswith("<action>RESPOND")
        assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "</action>")


async def test_streams_of_other_prompts_pass(start: Start) -> None:
    running = await start()
    answer = anthropic_stream("hi")
    running.anthropic.script = stream(answer)
    _, _, got = await ask(running, "anthropic", "hi", True)
    assert got == answer


async def test_a_demonstration_over_http_is_an_answer_of_its_type(start: Start) -> None:
    running = await start()
    body = {"context": CONTEXT, "original": "IGNORE"}
    decided = orjson.loads((await running.ask("POST", "/v1/decide/should-respond", json=body))[2])["decision_id"]
    given = {"metric": "demonstration", "kind": "demonstration", "decision_id": decided}
    for wrong in ({"action": "NOPE"}, {"axtion": "STOP"}, '{"action": "NOPE"}', "STOP", 3, {"actions": ["A"]}):
        status, _, got = await running.ask("POST", "/v1/feedback", json=given | {"value": wrong})
        assert (status, b"RESPOND|IGNORE|STOP" in got or b"JSON text" in got) == (400, True), got
    status, _, got = await running.ask("POST", "/v1/feedback", json=given | {"value": '{"action": "STOP"}'})
    assert status == 400
    assert '"value": {"action": "IGNORE"}' in orjson.loads(got)["error"]["message"]  # the form to send
    assert (await running.ask("POST", "/v1/feedback", json=given | {"value": {"action": "STOP"}}))[0] == 202


@pytest.mark.parametrize("stop", ["max_tokens", "refusal", "pause_turn"])
async def test_an_original_that_was_cut_is_no_label(start: Start, stop: str) -> None:
    running = await start()
    running.anthropic.script = json(
        {
            "type": "message",
            "content": [{"type": "text", "text": "<response><action>RESPOND</action></response>"}],
            "stop_reason": stop,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
    )
    status, _, body = await ask(running, "anthropic", respond_xml(), False)
    assert (status, orjson.loads(body)["stop_reason"]) == (200, stop)  # the agent gets it as it came
    [row] = await running.records()
    assert (row["valid"], row["decision"]) == (False, None)
    assert "cut" in row["error"]


async def test_an_original_plan_has_the_actions_of_its_prompt(start: Start) -> None:
    running = await start()
    running.anthropic.script = json(
        {
            "type": "message",
            "content": [{"type": "text", "text": "<response><thought>t</thought><actions>FLY</actions></response>"}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
    )
    assert (await ask(running, "anthropic", plan_xml(), False))[0] == 200
    [row] = await running.records()
    assert (row["valid"], row["decision"]) == (False, None)
