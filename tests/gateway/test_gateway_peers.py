"""What went wrong in other gateways, and what is expected of a safe one: each line names the test that holds it here.

A line is kept by `test_every_line_names_a_test`; lines whose test stands in this module have no module before the name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.gateway import scripted
from tests.gateway.conftest import Start
from tests.gateway.legal import read_legal_stream
from tests.gateway.scripted import ANTHROPIC_MESSAGE, DONE, chat_answer, chat_chunk, chat_stream, json, stream
from tests.gateway.test_gateway_coding import ask, coding

BUGS_OF_PEERS = {
    "litellm #25321: a tool's arguments dropped": "stream.test_arguments_that_come_with_the_name_are_kept",
    "litellm #30014: the first text delta lost": "stream.test_first_delta_that_comes_with_the_role_is_kept",
    "litellm #30765: the first text delta lost": "test_nothing_of_an_answer_is_lost_at_its_beginning",
    "litellm #29286: an empty tool_calls": "stream.test_empty_list_of_tool_calls_is_no_call",
    "litellm #32357: thinking inside a text block": "stream.test_thinking_is_never_sent",
    "litellm #32357: two message_start": "stream.test_any_stream_is_legal_or_a_clean_error",
    "litellm #32086: a failure in a stream becomes an empty 200": "stream.test_failure_in_the_stream_is_no_answer",
    "litellm #26697: routed to /responses": "test_a_model_is_asked_for_a_chat_completion",
    "litellm #37102: token count too low": "test_all_input_tokens_are_told",
    "litellm #15601: thinking lost around tool calls": "test_thinking_around_tools_passes_untouched",
    "litellm #33224: malformed SSE": "stream.test_any_stream_is_legal_or_a_clean_error",
    "litellm #34805, #35531: spend lost on shutdown": "test_what_was_answered_before_the_end_is_on_record",
    "litellm [ran]: interleaved arguments corrupted": "stream.test_interleaved_arguments_are_put_apart",
    "litellm [ran]: an unfinished stream is a success": "stream.test_stream_without_an_end_is_no_success",
    "litellm [ran]: after one 401 everybody gets 429": "forward.test_errors_of_the_upstream_pass_and_turn_nobody_away",
    "claude-code-router #1234: zero usage": "stream.test_finish_and_usage_in_one_write",
    "claude-code-router #1397, #1725: blocks mixed": "stream.test_text_then_tools_are_blocks_of_their_own",
    "claude-code-router #275: no fallback after N failures": "coding.test_breaker_opens_and_spares_the_model",
    "CLIProxyAPI #5836: a cut tool call is tool_use": "stream.test_call_cut_by_the_length_is_max_tokens",
    "CLIProxyAPI #3608: system in the middle": "translate.test_system_in_every_form",
    "CLIProxyAPI #1584: a signature after another model": "coding.test_conversation_that_anthropic_wrote_stays_there",
    "cc-switch #1181: a tool id that Anthropic refuses": "test_ids_of_any_server_become_ids_that_anthropic_takes",
    "grok2api #748: usage doubled": "stream.test_usage_is_the_last_one_and_not_the_sum",
}
DEFECTS_OF_THE_ORIGINAL = {
    "the word trust is coding": "classify.test_not_coding",
    "stream:true gets plain JSON": "coding.test_streamed_answer",
    "system, tools, images and tool_use lost": (
        "translate.test_tool_results_come_in_the_order_of_the_calls_and_before_the_text"
    ),
    "usage is characters / 4": "test_all_input_tokens_are_told",
    "no authentication": "security.test_a_token_is_needed_even_here",
    "paths and queries dropped": "forward.test_body_query_and_headers_pass_byte_for_byte",
}
SECURITY = {
    "127.0.0.1 by default": "security.test_loopback_is_the_default",
    "a token even on loopback": "security.test_a_token_is_needed_even_here",
    "Host allow-list (DNS rebinding)": "security.test_only_known_hosts_are_served",
    "no CORS": "security.test_no_leave_for_web_pages",
    "upstreams of the configuration (CVE-2024-6587)": "security.test_where_a_request_goes_is_not_the_clients_to_say",
    "no redirects followed": "forward.test_redirects_are_answers_and_not_followed",
    "joined paths": "security.test_paths_that_mean_two_things_are_refused",
    "authorised on the raw path (CVE-2026-49468)": "security.test_a_public_path_is_public_as_it_is_written_only",
    "duplicate Authorization; Content-Length with Transfer-Encoding": "security.test_doubled_headers_are_refused",
    "32 MB": "forward.test_large_uploads_stream_through_and_small_bodies_have_a_limit",
    "headers capped": "security.test_endless_headers_are_cut_off",
    "slow heads and bodies": "http.test_requests_have_to_come_in_time",
    "bodies that swell": "compressed.test_what_swells_is_refused",
    "concurrency capped": "forward.test_concurrency_is_capped",
    "the recorder's queue capped": "coding.test_recorder_never_blocks_an_answer_and_counts_what_it_drops",
    "keys never logged": "security.test_nothing_secret_in_logs_and_records",
    "credentials kept apart": "security.test_keys_stay_apart",
    "records 0600": "test_records_are_their_owners_alone",
    "no stack traces": "security.test_our_own_failures_show_no_trace",
    "the token's file 0600": "security.test_a_token_is_made_for_the_owner_alone",
    "no echo of our key": "security.test_no_echo_shows_the_gateways_own_key",
}
FAULTS_OF_CLAUDE_CODE = {
    "model: before the first byte (429, 500, 529, 401, 400, cut, hang)": (
        "coding.test_every_fault_before_the_first_byte_is_answered_by_anthropic"
    ),
    "model: within the stream (error event, cut socket)": (
        "coding.test_fault_within_the_stream_is_an_error_event_and_the_retry_is_anthropics"
    ),
    "Anthropic: 429, 500, 529, 401, 400": "forward.test_errors_of_the_upstream_pass_and_turn_nobody_away",
    "Anthropic: as the SDK sees them": "sdks.test_errors_are_the_sdks_own",
    "Anthropic: error event": "test_an_error_event_of_anthropics_passes_as_it_came",
    "Anthropic: cut socket": "forward.test_cut_upstream_is_a_cut_for_the_client",
    "tool_use with stop_reason end_turn": "test_a_tool_call_that_ends_with_stop_is_a_tool_call",
    "unsigned thinking replayed": "test_thinking_without_a_signature_is_not_anthropics",
}


@pytest.mark.parametrize("table", [BUGS_OF_PEERS, DEFECTS_OF_THE_ORIGINAL, SECURITY, FAULTS_OF_CLAUDE_CODE])
def test_every_line_names_a_test(table: dict[str, str]) -> None:
    for line, test in table.items():
        module, _, name = test.rpartition(".")
        source = Path(__file__).with_name(f"test_gateway_{module or 'peers'}.py").read_text()
        assert f"def {name}(" in source, f"{line}: there is no {test}"


@pytest.mark.parametrize("first", [b"", chat_chunk(role="assistant"), chat_chunk(role="assistant", content="")])
@pytest.mark.parametrize("joined", [False, True])
async def test_nothing_of_an_answer_is_lost_at_its_beginning(start: Start, first: bytes, joined: bool) -> None:
    running = await start()
    running.route()
    chunks = [first, *chat_stream("H", "ello ", "you")]
    running.model.script = stream(*([b"".join(chunks)] if joined else [chunk for chunk in chunks if chunk]))
    _, _, body = await ask(running, coding(stream=True))
    message, _ = read_legal_stream(body)
    assert message is not None
    assert message["content"] == [{"type": "text", "text": "Hello you"}]


async def test_a_model_is_asked_for_a_chat_completion(start: Start) -> None:
    running = await start()
    running.route()
    for streamed in (False, True):
        running.model.script = stream(*chat_stream("x")) if streamed else json(chat_answer("x"))
        await ask(running, coding("fix the code", stream=streamed, thinking={"type": "enabled", "budget_tokens": 1024}))
        assert (running.model.last.method, running.model.last.target) == ("POST", "/v1/chat/completions")


@pytest.mark.parametrize("streamed", [False, True])
async def test_all_input_tokens_are_told(start: Start, streamed: bool) -> None:
    running = await start()
    running.route()
    running.model.script = stream(*chat_stream("x")) if streamed else json(chat_answer("x"))
    _, _, body = await ask(running, coding(stream=streamed))
    message: Any = read_legal_stream(body)[0] if streamed else orjson.loads(body)
    usage = message["usage"]
    told = usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
    assert (told, usage["output_tokens"]) == (scripted.USAGE["prompt_tokens"], scripted.USAGE["completion_tokens"])


async def test_thinking_around_tools_passes_untouched(start: Start) -> None:
    running = await start()
    running.route()
    thinking = {"type": "thinking", "thinking": "hm \u2028", "signature": "EqQB+/="}
    use = {"type": "tool_use", "id": "toolu_01", "name": "Bash", "input": {"b": 1, "a": 1.0}}
    turns = [
        {"role": "user", "content": "fix the code"},
        {"role": "assistant", "content": [thinking, {"type": "redacted_thinking", "data": "x"}, use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_01", "content": "ok"}]},
    ]
    # Written as no encoder would: what arrives must be these bytes.
    body = orjson.dumps(coding(messages=turns)).replace(b'"signature":', b'"signature" :  ')
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    await running.ask("POST", "/v1/messages?beta=true", data=body)
    assert (running.anthropic.last.body, running.anthropic.last.target) == (body, "/v1/messages?beta=true")
    assert running.model.seen == []


async def test_what_was_answered_before_the_end_is_on_record(start: Start) -> None:
    running = await start()
    running.route()
    running.model.script = json(chat_answer("x"))
    await ask(running, coding())
    [row] = await running.records()  # the gateway's own end does the same
    assert row["cost_usd"] == pytest.approx(20e-6)


@pytest.mark.parametrize("streamed", [False, True])
async def test_ids_of_any_server_become_ids_that_anthropic_takes(start: Start, streamed: bool) -> None:
    running = await start()
    running.route()
    calls = [
        {"index": i, "id": id, "function": {"name": "Bash", "arguments": "{}"}}
        for i, id in enumerate(("functions.Bash:0", "call/é", ""))
    ]
    chunks = [chat_chunk(tool_calls=calls), chat_chunk(finish_reason="tool_calls"), DONE]
    running.model.script = stream(*chunks) if streamed else json(chat_answer(None, calls, "tool_calls"))
    _, _, body = await ask(running, coding(stream=streamed))
    message: Any = read_legal_stream(body)[0] if streamed else orjson.loads(body)
    ids = [block["id"] for block in message["content"]]
    assert len(set(ids)) == 3
    assert all(id.startswith("toolu_") and id.isascii() and id.replace("_", "").isalnum() for id in ids)


async def test_records_are_their_owners_alone(start: Start) -> None:
    running = await start()
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    await ask(running, coding())
    await running.records()
    written = [path for path in running.data.rglob("*") if path.is_file()]
    assert {path.suffix for path in written} >= {".seal", ".sqlite"}
    for path in written:
        assert path.stat().st_mode & 0o077 == 0, path


async def test_an_error_event_of_anthropics_passes_as_it_came(start: Start) -> None:
    running = await start()
    error = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"x"}}\n\n'
    begun = scripted.anthropic_stream().partition(b"event: content_block_stop")[0]
    running.anthropic.script = stream(begun, error)
    _, _, body = await ask(running, coding(stream=True))
    assert body == begun + error
    [row] = await running.records()
    assert (row["completion"], row["valid"]) == ("hello", False)  # half an answer teaches nobody


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_tool_call_that_ends_with_stop_is_a_tool_call(start: Start, streamed: bool) -> None:
    running = await start()
    running.route()
    calls = [{"index": 0, "id": "c", "function": {"name": "Bash", "arguments": "{}"}}]
    chunks = [chat_chunk(tool_calls=calls), chat_chunk(finish_reason="stop"), DONE]
    running.model.script = stream(*chunks) if streamed else json(chat_answer(None, calls, "stop"))
    _, _, body = await ask(running, coding(stream=streamed))
    message: Any = read_legal_stream(body)[0] if streamed else orjson.loads(body)
    assert message["stop_reason"] == "tool_use"


async def test_thinking_without_a_signature_is_not_anthropics(start: Start) -> None:
    running = await start()
    running.route()
    running.model.script = json(chat_answer("x"))
    turns = [
        {"role": "user", "content": "fix the code"},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "so"}],
        },
        {"role": "user", "content": "go on"},
    ]
    _, headers, _ = await ask(running, coding(messages=turns))
    assert headers["x-reasoning-source"] == "custom"
    assert "hm" not in str(running.model.last.json["messages"])
