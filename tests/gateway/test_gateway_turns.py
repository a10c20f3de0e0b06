"""Coding as text: tools and calls for models that learned from the log, what is logged of a turn, shadows, prices."""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.coding.answer_spec import AnswerSpec
from gateway.coding.translate import to_chat, to_message
from gateway.coding.translate_stream import ChatStream
from gateway.coding.turns import render_turns
from gateway.errors import GatewayConfigError, ModelAnswerError
from gateway.settings import load_settings
from prices.models import Price
from reasoning.errors import UnparseableAnswer
from reasoning.formats.turns import check_no_calls, format_turn, normalize_turn, parse_turn
from reasoning.serving.routes import Arm
from tests.gateway.conftest import TOKEN, Running, Start
from tests.gateway.legal import read_legal_stream
from tests.gateway.scripted import (
    ANTHROPIC_MESSAGE,
    DONE,
    Seen,
    chat_answer,
    chat_chunk,
    chat_stream,
    json,
    stream,
    whole,
)
from tests.gateway.test_gateway_coding import ask, coding

CALL = '<tool_call>\n{"name":"Bash","arguments":{"command":"ls"}}\n</tool_call>'
TURNS = [
    {"role": "user", "content": "fix the code"},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "toolu_rsn1", "name": "Bash", "input": {"command": "ls"}},
            {"type": "tool_use", "id": "toolu_rsn2", "name": "Edit", "input": {"old": "</tool_call>"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_rsn2", "content": "no", "is_error": True},
            {"type": "tool_result", "tool_use_id": "toolu_rsn1", "content": "main.py"},
            {"type": "text", "text": "go on"},
        ],
    },
]


def learned(running: Running, **options: Any) -> None:
    """A route to a model of this project's own making."""
    running.route(
        arms=(Arm("custom", "custom", weight=1.0, model="p/rsn-a1b2c3-coder", base_url=running.model.url),), **options
    )


def test_a_conversation_with_tools_is_said_as_text() -> None:
    messages = render_turns(to_chat(coding(messages=TURNS), model="m"))
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    system, first, said, results = (message["content"] for message in messages)
    assert system.startswith("You are a coding agent.\n\n# Tools\n")
    assert '{"name":"Bash","parameters":{"type":"object","properties":{}},"description":"run"}\n' in system
    assert first == "fix the code"
    assert parse_turn(said) == {
        "text": "I look.",
        "tool_calls": [
            {"name": "Bash", "arguments": {"command": "ls"}},
            {"name": "Edit", "arguments": {"old": "</tool_call>"}},
        ],
    }
    assert results == (
        "<tool_response>\nmain.py\n</tool_response>\n<tool_response>\nError: no\n</tool_response>\ngo on"
    )


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_model_of_ours_is_asked_in_text_and_calls_in_text(start: Start, streamed: bool) -> None:
    running = await start()
    learned(running)
    answer = f"I look.\n{CALL}"
    running.model.script = stream(*chat_stream(*answer)) if streamed else json(chat_answer(answer))
    _, headers, body = await ask(running, coding(stream=streamed))
    assert headers["x-reasoning-source"] == "custom"
    message: Any = read_legal_stream(body)[0] if streamed else orjson.loads(body)
    assert message["content"][0]["text"].strip() == "I look."
    assert (message["content"][1]["name"], message["content"][1]["input"]) == ("Bash", {"command": "ls"})
    assert message["stop_reason"] == "tool_use"
    sent = running.model.last.json
    assert not {"tools", "tool_choice"} & sent.keys()
    [row] = await running.records()
    assert row["messages"] == sent["messages"]  # what is learned from is what was asked, byte for byte
    assert orjson.loads(row["decision"]) == {
        "text": "I look.",
        "tool_calls": [{"name": "Bash", "arguments": {"command": "ls"}}],
    }
    assert row["valid"] is True
    assert len(orjson.loads(row["tools"])) == 2


async def test_what_a_model_that_writes_its_calls_cannot_be_made_to_goes_to_anthropic(start: Start) -> None:
    running = await start()
    learned(running)
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    await ask(running, coding(tool_choice={"type": "any"}))
    assert running.model.seen == []
    statistics = running.gateway.state.metrics.statistics()
    assert statistics["fallback_by_reason"] == {"coding:untranslatable_tool_choice": 1}
    running = await start(coding_tools="native")
    learned(running)
    running.model.script = json(chat_answer("Done."))
    await ask(running, coding(tool_choice={"type": "any"}))
    assert running.model.last.json["tool_choice"] == "required"


PIECES = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "\n", " ", "a", "<", CALL, f"\n{CALL}\n", '{"name":', "<tool_"),
        *("```\n", "\n```", "~~~~\n", "`", "<think>", "</think>", "\\", '"', "[TOOL_CALLS]"),
    ]
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=8).map("".join), st.integers())
def test_calls_in_a_streamed_text_are_those_of_the_whole(text: str, seed: int) -> None:
    def read(cuts: list[str]) -> Any:
        chat = ChatStream(AnswerSpec("m", tools_in_text=True))
        try:
            out = b"".join(chat.feed(chunk) for chunk in chat_stream(*cuts)) + chat.finish()
        except ModelAnswerError:
            return "refused"  # the reason may differ: a part of the text is judged before the rest is there
        assert read_legal_stream(out)[1] is None
        return "".join(b.get("text", "") for b in chat.content), [b["input"] for b in chat.content if "input" in b]

    draw = random.Random(seed)
    cuts, at = [], 0
    while at < len(text):
        size = draw.randrange(1, 5)
        cuts.append(text[at : at + size])
        at += size
    assert read(cuts) == read([text])


@settings(deadline=None)
@given(st.text(), st.lists(st.dictionaries(st.text(), st.text(), max_size=2), max_size=2))
def test_a_turn_that_was_written_is_streamed_as_it_was_meant(text: str, arguments: list[dict[str, str]]) -> None:
    turn = {"text": text, "tool_calls": [{"name": "f", "arguments": a} for a in arguments]}
    try:
        text = normalize_turn(turn)["text"]
    except UnparseableAnswer:
        text = "x"
    turn["text"] = text = text or "x"
    chat = ChatStream(AnswerSpec("m", tools_in_text=True))
    for chunk in chat_stream(format_turn(turn)):
        chat.feed(chunk)
    assert [block["input"] for block in chat.content if block["type"] == "tool_use"] == arguments
    assert "".join(block.get("text", "") for block in chat.content).strip() == text.strip()


ANSWERS: dict[str, tuple[dict[str, Any], Any]] = {
    "a call": (
        {"content": [{"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}}]}
        | {"stop_reason": "tool_use"},
        {"text": "", "tool_calls": [{"name": "Bash", "arguments": {"command": "ls"}}]},
    ),
    "words": (
        {
            "content": [
                {"type": "thinking", "thinking": "x", "signature": "s"},
                {"type": "text", "text": "All is done."},
            ]
        },
        {"text": "All is done.", "tool_calls": []},
    ),
    "cut": ({"stop_reason": "max_tokens"}, None),
    "refusal": ({"stop_reason": "refusal"}, None),
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("which", ANSWERS)
async def test_what_anthropic_answers_is_logged_whole_with_tokens_and_cost(
    start: Start, which: str, streamed: bool
) -> None:
    from tests.gateway.scripted import message_events

    change, decision = ANSWERS[which]
    price = Price("claude-*", Decimal(3), Decimal(15), Decimal("0.3"), Decimal("3.75"))
    running = await start(prices=(price,))
    usage = {"input_tokens": 10, "output_tokens": 20}
    usage |= {"cache_read_input_tokens": 1000, "cache_creation_input_tokens": 100}
    message = ANTHROPIC_MESSAGE | change | {"usage": usage}
    running.anthropic.script = stream(*message_events(message)) if streamed else json(message)
    await ask(running, coding(stream=streamed))
    [row] = await running.records()
    assert (row["decision"] and orjson.loads(row["decision"])) == decision
    assert row["valid"] is (decision is not None)
    assert (row["input_tokens"], row["output_tokens"]) == (1110, 20)
    assert row["cost_usd"] == pytest.approx((10 * 3 + 20 * 15 + 1000 * 0.3 + 100 * 3.75) / 1e6)
    assert "Explained" in row["completion"] or decision
    assert running.gateway.state.metrics.statistics()["upstream_spend_usd"] == pytest.approx(row["cost_usd"])


async def test_shadows_answer_beside_and_are_logged_beside(start: Start) -> None:
    running = await start()
    arms = (
        Arm("custom", "custom", weight=1.0, model="ep/coder", base_url=running.model.url),
        Arm("candidate", "custom", mode="shadow", model="ep/next", base_url=running.model.url),
        Arm("teacher", "original", mode="shadow"),
    )
    running.route(arms=arms)
    gate = asyncio.Event()

    async def model(seen: Seen, writer: asyncio.StreamWriter) -> None:
        if seen.json["model"] == "ep/next":
            await gate.wait()
            await json(chat_answer("Another."))(seen, writer)
        else:
            await stream(*chat_stream("Mine."))(seen, writer)

    running.model.script = model
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    _, headers, body = await ask(running, coding(stream=True))
    assert headers["x-reasoning-source"] == "custom"
    assert read_legal_stream(body)[1] is None  # whole, while the candidate is still at it
    gate.set()
    await running.gateway.state.shadows.close()
    assert "stream" not in running.model.last.json
    rows = await running.records()
    assert {row["request_id"] for row in rows} == {rows[0]["request_id"]}
    assert {(r["arm"], r["source"], r["served"], r["arm_probability"]) for r in rows} == {
        ("custom", "custom", True, 1.0),
        ("candidate", "custom", False, None),
        ("teacher", "original", False, None),
    }
    assert running.gateway.state.metrics.statistics()["shadows"] == {"taken": 2, "done": 2}


async def test_shadows_are_bounded_and_their_failures_are_nobodys(start: Start) -> None:
    running = await start(config={"shadow_workers": 1, "shadow_queue": 1})
    arms = (
        Arm("original", "original", weight=1.0),
        Arm("candidate", "custom", mode="shadow", model="ep/next", base_url=running.model.url),
    )
    running.route(arms=arms)
    gate = asyncio.Event()

    async def model(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await whole(500, b"{}")(seen, writer)

    running.model.script = model
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    for i in range(4):
        assert (await ask(running, coding(f"fix the code {i}")))[0] == 200
    gate.set()
    await running.gateway.state.shadows.close()
    assert running.gateway.state.metrics.statistics()["shadows"] == {"taken": 2, "done": 2, "dropped": 2}
    rows = await running.records()
    assert (
        sorted((r["source"], r["served"], r["fallback_reason"]) for r in rows if r["source"] == "custom")
        == [("custom", False, "provider_error")] * 2
    )


@pytest.mark.parametrize(("logprob", "source"), [(-0.01, "custom"), (-2.0, None), (None, None)])
async def test_least_confidence_holds_for_whole_answers(
    start: Start, logprob: float | None, source: str | None
) -> None:
    running = await start()
    running.route(min_confidence=0.5)
    answer = chat_answer("Done.")
    if logprob is not None:
        answer["choices"][0]["logprobs"] = {"tokens": ["Done", "."], "token_logprobs": [logprob, logprob]}
    running.model.script = json(answer)
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    _, headers, _ = await ask(running, coding())
    assert headers.get("x-reasoning-source") == source
    assert running.model.last.json["logprobs"] == 1
    rows = await running.records()
    assert rows[0]["fallback_reason"] == (None if source else "low_confidence")
    assert running.gateway.state.coding.breaker_states() == {f"ep/coder@{running.model.url}": "closed"}


async def test_least_confidence_does_not_hold_for_streams(start: Start) -> None:
    running = await start()
    running.route(min_confidence=0.99)
    running.model.script = stream(chat_chunk(content="Done."), chat_chunk(finish_reason="stop"), DONE)
    _, headers, _ = await ask(running, coding(stream=True))
    assert headers["x-reasoning-source"] == "custom"


async def test_what_a_model_saves_is_counted(start: Start) -> None:
    running = await start(prices=(Price("claude-x", Decimal(3), Decimal(15), Decimal(0), Decimal(0)),))
    running.route()  # one dollar a million input tokens
    running.model.script = json(chat_answer("Done."))
    await ask(running, coding())
    statistics = running.gateway.state.metrics.statistics()
    assert statistics["spend_usd"] == pytest.approx(20e-6)
    assert statistics["saved_usd"] == pytest.approx((20 * 3 + 5 * 15 - 20) / 1e6)


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ('[gateway.prices."claude-*"]\ninput_usd_per_mtok = 3', "output_usd_per_mtok"),
        ('[gateway.prices."claude-*"]\ninput = 3', "input"),
        ("[gateway.prices]\nx = 3", "a table"),
        ('[gateway.coding]\ntools = "xml"', "'xml' is none of auto, native, text"),
    ],
)
def test_wrong_prices_and_tools_are_named(tmp_path: Path, toml: str, named: str) -> None:
    (tmp_path / "reasoning.toml").write_text(toml)
    with pytest.raises(GatewayConfigError, match=named):
        load_settings(tmp_path, tmp_path / "reasoning.toml", {"REASONING_GATEWAY_TOKEN": TOKEN})


def test_prices_of_a_cache_follow_from_the_inputs(tmp_path: Path) -> None:
    (tmp_path / "reasoning.toml").write_text(
        '[gateway.prices."claude-*"]\ninput_usd_per_mtok = 3\noutput_usd_per_mtok = 15.5'
    )
    settings = load_settings(tmp_path, tmp_path / "reasoning.toml", {"REASONING_GATEWAY_TOKEN": TOKEN})
    assert settings.prices == (Price("claude-*", Decimal(3), Decimal("15.5"), Decimal("0.3"), Decimal("3.75")),)


LONG, DOTTED = "mcp__" + "a" * 80, "server.tool"


@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_whose_names_a_chat_api_refuses_have_others_there(start: Start, streamed: bool) -> None:
    running = await start()
    running.route()
    tools = [{"name": name, "input_schema": {"type": "object"}} for name in ("Bash", LONG, DOTTED)]

    async def model(seen: Seen, writer: asyncio.StreamWriter) -> None:
        names = [tool["function"]["name"] for tool in seen.json["tools"]]
        if isinstance(choice := seen.json["tool_choice"], dict):
            assert choice["function"]["name"] == names[1]
            names = names[1:2]
        assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in names)
        assert len(set(names)) in (1, 3)
        calls = [
            {"index": i, "id": f"c{i}", "function": {"name": name, "arguments": "{}"}} for i, name in enumerate(names)
        ]
        chunks = [chat_chunk(tool_calls=calls), chat_chunk(finish_reason="tool_calls"), DONE]
        answer = stream(*chunks) if streamed else json(chat_answer(None, calls, "tool_calls"))
        await answer(seen, writer)

    running.model.script = model
    body = coding(tools=tools, stream=streamed, tool_choice={"type": "any"}) | {"messages": TURNS}
    headers = running.headers | {"x-reasoning-coding": "on"}
    _, got, answer = await running.ask("POST", "/v1/messages", json=body, headers=headers)
    assert got["x-reasoning-source"] == "custom"
    message: Any = read_legal_stream(answer)[0] if streamed else orjson.loads(answer)
    assert [block["name"] for block in message["content"]] == ["Bash", LONG, DOTTED]
    forced = body | {"tool_choice": {"type": "tool", "name": LONG}}
    _, _, answer = await running.ask("POST", "/v1/messages", json=forced, headers=headers)
    message = read_legal_stream(answer)[0] if streamed else orjson.loads(answer)
    assert [block["name"] for block in message["content"]] == [LONG]
    [row, _] = await running.records()
    assert [call["name"] for call in orjson.loads(row["decision"])["tool_calls"]] == ["Bash", LONG, DOTTED]
    assert [tool["function"]["name"] for tool in orjson.loads(row["tools"])] == ["Bash", LONG, DOTTED]


CALLS = [{"index": 0, "id": "c", "function": {"name": "Bash", "arguments": "{}"}}]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("choice", "calls"), [("any", False), ("none", True), ("any", True), ("none", False)])
async def test_an_answer_that_is_not_what_tool_choice_wants_is_anthropics(
    start: Start, choice: str, calls: bool, streamed: bool
) -> None:
    running = await start()
    running.route()
    chunks = [chat_chunk(content="Well. "), *([chat_chunk(tool_calls=CALLS)] if calls else [])]
    whole_answer = chat_answer("Well. ", CALLS if calls else None, "tool_calls" if calls else "stop")
    finish = chat_chunk(finish_reason="tool_calls" if calls else "stop")
    running.model.script = stream(b"".join([*chunks, finish, DONE])) if streamed else json(whole_answer)
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    _, headers, _ = await ask(running, coding(tool_choice={"type": choice}, stream=streamed))
    assert headers.get("x-reasoning-source") == ("custom" if (choice == "any") is calls else None)
    assert running.gateway.state.coding.breaker_states() == {f"ep/coder@{running.model.url}": "closed"}


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": "many"},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"temperature": "hot"},
        {"temperature": 1.5},
        {"top_k": 0.5},
        {"stop_sequences": "END"},
        {"stop_sequences": [""]},
        {"stream": "yes"},
        {"tool_choice": {"type": "tool", "name": "Nope"}},
    ],
)
async def test_what_anthropic_would_refuse_anthropic_refuses(start: Start, fields: dict[str, Any]) -> None:
    running = await start()
    running.route()
    running.anthropic.script = whole(400, b'{"type":"error"}')
    status, _, body = await ask(running, coding(**fields))
    assert (status, body, running.model.seen) == (400, b'{"type":"error"}', [])


async def test_a_request_that_the_model_refuses_says_nothing_about_its_server(start: Start) -> None:
    running = await start(config={"breaker_failures": 1})
    running.route()
    running.model.scripts = [whole(400, b"{}"), whole(422, b"{}"), json(chat_answer("Done."))]
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    sources = [(await ask(running, coding(f"fix the code {i}")))[1].get("x-reasoning-source") for i in range(3)]
    assert sources == [None, None, "custom"]


def test_a_call_with_another_name_is_another_call_or_an_error() -> None:
    def read(*functions: dict[str, Any]) -> list[str]:
        chat = ChatStream(AnswerSpec("m"))
        chunks = [chat_chunk(tool_calls=[{"index": 0, "function": function}]) for function in functions]
        for chunk in (*chunks, chat_chunk(finish_reason="tool_calls"), DONE):
            chat.feed(chunk)
        return [block["name"] for block in chat.content]

    assert read({"name": "Bash", "arguments": "{}"}, {"name": "Edit", "arguments": "{}"}) == ["Bash", "Edit"]
    assert read({"name": "Bash", "arguments": ""}, {"name": "Bash", "arguments": "{}"}) == ["Bash"]
    with pytest.raises(ModelAnswerError):
        read({"name": "Ba", "arguments": ""}, {"name": "sh", "arguments": "{}"})


MOVED_FENCE = f"{CALL}```\n```\n{CALL}\n````"


@pytest.mark.parametrize("text", [MOVED_FENCE, f"a{MOVED_FENCE}", f"``{CALL}`\n```\n{CALL}\n```", f"``{MOVED_FENCE}"])
def test_a_fence_that_only_a_call_keeps_from_being_one_hides_no_call(text: str) -> None:
    """Without the call before it, it begins a line, and the block that follows ends where it began."""
    for size in (1, 7, len(text)):
        chat = ChatStream(AnswerSpec("m", tools_in_text=True))
        with pytest.raises(ModelAnswerError) as raised:
            for chunk in chat_stream(*(text[at : at + size] for at in range(0, len(text), size))):
                chat.feed(chunk)
            chat.finish()
        assert raised.value.reason == "tool_arguments"


def test_a_fence_behind_a_call_alone_does_no_harm() -> None:
    chat = ChatStream(AnswerSpec("m", tools_in_text=True))
    for chunk in chat_stream(f"{CALL}```\n```py\nx = 1\n```\n"):
        chat.feed(chunk)
    assert [block["type"] for block in chat.content] == ["tool_use", "text"]


@settings(deadline=None)
@example(MOVED_FENCE)
@given(st.lists(PIECES, max_size=8).map("".join))
def test_no_mark_of_a_call_outside_a_code_block_reaches_the_tool(text: str) -> None:
    """Whole and streamed, and whether the model was told to call in its text or not."""
    for asked in (AnswerSpec("m", tools_in_text=True), AnswerSpec("m", offers_tools=True)):
        chat = ChatStream(asked)
        said = []
        with suppress(ModelAnswerError):
            for chunk in chat_stream(text):
                chat.feed(chunk)
            chat.finish()
            said.append(chat.content)
        with suppress(ModelAnswerError):
            said.append(to_message(chat_answer(text), asked)["content"])
        for content in said:
            check_no_calls("".join(block.get("text", "") for block in content))
        assert len({len([block for block in content if block["type"] == "tool_use"]) for content in said}) < 2


@pytest.mark.parametrize("cuts", [1, 3, 1000])
def test_a_call_behind_words_on_their_line_is_a_call(cuts: int) -> None:
    text = 'I look. <tool_call>{"name": "Bash", "arguments": {"command": "echo \\"</tool_call>\\""}}</tool_call>'
    chat = ChatStream(AnswerSpec("m", tools_in_text=True))
    for chunk in chat_stream(*(text[at : at + cuts] for at in range(0, len(text), cuts))):
        chat.feed(chunk)
    assert [(block["type"], block.get("input")) for block in chat.content] == [
        ("text", None),
        ("tool_use", {"command": 'echo "</tool_call>"'}),
    ]
    assert chat.stop_reason == "tool_use"
    assert parse_turn(text) == {
        "text": "I look.",
        "tool_calls": [{"name": "Bash", "arguments": {"command": 'echo "</tool_call>"'}}],
    }


def test_a_call_in_a_code_block_is_text() -> None:
    text = f"So one calls:\n```xml\n{CALL}\n```\nThat is all."
    assert parse_turn(text) == {"text": text, "tool_calls": []}
    chat = ChatStream(AnswerSpec("m", tools_in_text=True))
    for chunk in chat_stream(*text):
        chat.feed(chunk)
    assert chat.content == [{"type": "text", "text": text}]


@pytest.mark.parametrize(
    "text",
    [
        "<function=Bash><parameter=command>ls</parameter></function>",
        "I look. [TOOL_CALLS][{}]",
        "<|python_tag|>ls",
        "<tool_call>Bash<arg_key>command</arg_key></tool_call>",
        "</tool_call>",
        "Done. <|tool_calls_section_begin|>",
        "<tool_calls>",
    ],
)
def test_marks_of_calls_that_are_none_are_no_answer(text: str) -> None:
    with pytest.raises(UnparseableAnswer):
        parse_turn(text)
    chat = ChatStream(AnswerSpec("m", offers_tools=True))
    with pytest.raises(ModelAnswerError):
        for chunk in chat_stream(*text):
            chat.feed(chunk)
    with pytest.raises(ModelAnswerError):
        to_message(chat_answer(text), AnswerSpec("m", offers_tools=True))
