"""What the upstream's answers used and cost, on record for every protocol, with cached and reasoning tokens."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest

from gateway.protocols.answers import OwnAnswer
from prices.models import Price
from tests.gateway.conftest import Start
from tests.gateway.scripted import ANTHROPIC_MESSAGE, chat_answer, json, message_events, stream, whole
from tests.gateway.test_gateway_decisions import CONTEXT, OPERATIONS, UPSTREAM_SAYS, ask, respond_xml

PRICES = (Price("*", Decimal(3), Decimal(15), Decimal("0.3"), Decimal("3.75")),)
OPENAI_COST = (60 * 3 + 40 * 0.3 + 30 * 15) / 1e6


# The usage that `OwnAnswer(…, 100, 30)` is written with, and what an upstream tells in its place.
TOLD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "chat": (
        {"prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130},
        {"prompt_tokens_details": {"cached_tokens": 40}, "completion_tokens_details": {"reasoning_tokens": 25}},
    ),
    "responses": (
        {
            "input_tokens": 100,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 30,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 130,
        },
        {"input_tokens_details": {"cached_tokens": 40}, "output_tokens_details": {"reasoning_tokens": 25}},
    ),
}


def upstream_answer(form: str, streamed: bool) -> Any:
    """An answer of each protocol with cached tokens, and with those of thoughts where the protocol has them."""
    if form == "anthropic":
        usage = {"input_tokens": 10, "output_tokens": 20, "cache_read_input_tokens": 1000}
        usage["cache_creation_input_tokens"] = 100
        message = ANTHROPIC_MESSAGE | {"content": [{"type": "text", "text": UPSTREAM_SAYS}], "usage": usage}
        return stream(*message_events(message)) if streamed else json(message)
    kind, body = OPERATIONS[form].write(
        OwnAnswer(UPSTREAM_SAYS, "up", 100, 30), {"stream": streamed, "stream_options": {"include_usage": True}}
    )
    told, more = TOLD[form]
    old = b'"usage":' + orjson.dumps(told)
    assert old in body
    return whole(200, body.replace(old, b'"usage":' + orjson.dumps(told | more)), content_type=kind.decode())


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("form", "tokens", "cost"),
    [
        ("chat", (100, 30, 40, 0, 25), OPENAI_COST),
        ("responses", (100, 30, 40, 0, 25), OPENAI_COST),
        ("anthropic", (1110, 20, 1000, 100, None), (10 * 3 + 1000 * 0.3 + 100 * 3.75 + 20 * 15) / 1e6),
    ],
)
async def test_a_decision_of_the_upstream_is_logged_with_what_it_used(
    start: Start, form: str, streamed: bool, tokens: tuple[Any, ...], cost: float
) -> None:
    running = await start(prices=PRICES)
    pool = running.anthropic if form == "anthropic" else running.openai
    pool.script = upstream_answer(form, streamed)
    assert (await ask(running, form, respond_xml(), streamed))[0] == 200
    [row] = await running.records()
    names = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
    assert tuple(row[name] for name in names) == tokens
    assert row["fallback_model"] == ("gpt" if form == "responses" else "m") and row["valid"]
    assert (row["cost_usd"], row["price_source"]) == (pytest.approx(cost), "reasoning.toml")
    assert running.gateway.state.metrics.statistics()["upstream_spend_usd"] == pytest.approx(cost)


async def test_an_answer_that_is_no_decision_has_cost_the_same(start: Start) -> None:
    running = await start(prices=PRICES)
    running.openai.script = json(chat_answer("I think so!"))
    await ask(running, "chat", respond_xml(), False)
    [row] = await running.records()
    assert not row["valid"] and (row["input_tokens"], row["output_tokens"]) == (20, 5)
    assert row["cost_usd"] == pytest.approx((12 * 3 + 8 * 0.3 + 5 * 15) / 1e6)


async def test_without_a_price_the_cost_is_unknown_and_the_tokens_are_known(start: Start) -> None:
    running = await start()
    running.openai.script = json(chat_answer(UPSTREAM_SAYS))
    await ask(running, "chat", respond_xml(), False)
    [row] = await running.records()
    assert (row["cost_usd"], row["price_source"], row["input_tokens"]) == (None, None, 20)


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": "many"}, {"prompt_tokens": -1, "completion_tokens": 2}])
async def test_usage_that_is_none_is_unknown(start: Start, usage: Any) -> None:
    running = await start(prices=PRICES)
    running.openai.script = json(chat_answer(UPSTREAM_SAYS) | {"usage": usage})
    await ask(running, "chat", respond_xml(), False)
    [row] = await running.records()
    assert (row["valid"], row["input_tokens"], row["cost_usd"]) == (True, None, None)


async def test_a_caller_that_decides_itself_says_what_that_used(start: Start) -> None:
    running = await start()
    body = {"context": CONTEXT, "original": "IGNORE", "usage": {"model": "gpt-6-luna", "input_tokens": 700}}
    assert (await running.ask("POST", "/v1/decide/should_respond", json=body))[0] == 200
    [row] = await running.records()
    assert (row["fallback_model"], row["input_tokens"], row["cost_usd"]) == ("gpt-6-luna", 700, None)
    status, _, text = await running.ask("POST", "/v1/decide/should_respond", json=body | {"usage": {"tokens": 1}})
    assert (status, b"tokens" in text) == (400, True)
