"""What a fallback reports of its model: in its result, from inside, of streams, and when it fails."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from reasoning import DecisionClient, Fallback, decision, fallback_call
from reasoning.async_client import AsyncDecisionClient
from reasoning.fallback import Usage, add_usage
from reasoning.serving.routes import Arm
from tests.reasoning.conftest import CONTEXT, ModelServer, rows, says

CODING = {"prompt": "a sum", "language": "python"}
CODE = ["```python\n", "print(1)\n", "```"]
FIGURES = ("fallback_model", "input_tokens", "output_tokens", "cost_usd", "price_source")


def reported(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in FIGURES)


class TestAResult:
    def test_it_is_logged_and_its_decision_is_served(self, data: Path) -> None:
        def fallback(_: Any) -> Fallback:
            return Fallback(
                "RESPOND", model="gpt-6-luna", input_tokens=700, output_tokens=45, cache_read_tokens=500,
                cache_write_tokens=9, reasoning_tokens=30,
            )  # fmt: skip

        with DecisionClient(data) as client:
            answer = client.decide_should_respond(CONTEXT, fallback)
        assert answer.decision == {"action": "RESPOND"} and answer.model is None
        assert (answer.input_tokens, answer.output_tokens) == (700, 45)
        (row,) = rows(data)
        assert reported(row) == ("gpt-6-luna", 700, 45, None, None) and row["model"] is None and row["valid"]
        assert (row["cache_read_tokens"], row["cache_write_tokens"], row["reasoning_tokens"]) == (500, 9, 30)

    def test_its_own_cost_is_marked_as_reported(self, data: Path) -> None:
        with DecisionClient(data) as client:
            client.decide_should_respond(CONTEXT, lambda _: Fallback({"action": "STOP"}, cost_usd=Decimal("0.002")))
        (row,) = rows(data)
        assert reported(row) == (None, None, None, 0.002, "reported") and row["decision"] == '{"action":"STOP"}'

    def test_a_plain_result_costs_what_is_not_known(self, data: Path) -> None:
        with DecisionClient(data) as client:
            client.decide_should_respond(CONTEXT, lambda _: "STOP")
        assert reported(rows(data)[0]) == (None,) * 5

    @pytest.mark.parametrize("wrong", [-1, "12", True, 1.5, 1 << 63, object(), math.nan])
    def test_a_figure_that_is_none_is_not_known_and_the_decision_is_kept(self, data: Path, wrong: Any) -> None:
        with DecisionClient(data) as client:
            client.decide_should_respond(CONTEXT, lambda _: Fallback("STOP", model=wrong, input_tokens=wrong))
            cost = -1 if wrong in (1.5, 1 << 63) else wrong  # those are costs
            client.decide_should_respond(CONTEXT, lambda _: Fallback("STOP", cost_usd=cost))
        for row in rows(data):
            assert row["decision"] == '{"action":"STOP"}'
            assert (row["input_tokens"], row["cost_usd"]) == (None, None)

    def test_of_an_async_fallback(self, data: Path) -> None:
        async def fallback(_: Any) -> Fallback:
            return Fallback("STOP", model="m", input_tokens=1, output_tokens=2)

        async def decide() -> Any:
            async with AsyncDecisionClient(data) as client:
                return await client.decide_should_respond(CONTEXT, fallback)

        assert asyncio.run(decide()).decision == {"action": "STOP"}
        assert reported(rows(data)[0])[:3] == ("m", 1, 2)

    def test_in_the_shadow_of_a_model(self, data: Path, server: ModelServer, route: Callable[..., Any]) -> None:
        server.answer = says("<response><action>IGNORE</action></response>")
        route(
            Arm("new", "custom", 1.0, model="m", base_url=server.url),
            Arm("original", "original", 1.0, mode="shadow"),
        )
        with DecisionClient(data) as client:
            client.decide_should_respond(CONTEXT, lambda _: Fallback("STOP", model="gpt-6-luna", input_tokens=3))
        (row,) = (row for row in rows(data) if row["source"] == "original")
        assert (row["served"], row["fallback_model"], row["input_tokens"]) == (False, "gpt-6-luna", 3)

    def test_of_a_decorated_function(self, data: Path) -> None:
        with DecisionClient(data) as client:

            @decision("should_respond", client=client, returns=lambda d: d["action"] == "RESPOND",
                      decides=lambda yes: "RESPOND" if yes else "IGNORE")  # fmt: skip
            def wants_answer(context: Any) -> Any:
                return Fallback(True, model="m", input_tokens=5, output_tokens=1)

            assert wants_answer(CONTEXT) is True
        (row,) = rows(data)
        assert row["decision"] == '{"action":"RESPOND"}' and row["fallback_model"] == "m"


class TestCalls:
    def test_several_are_added_up(self, data: Path) -> None:
        def fallback(_: Any) -> str:
            for tokens in (100, 20):
                with fallback_call(model="m") as call:
                    call.input_tokens, call.output_tokens, call.cost_usd = tokens, 1, 0.001
            return "STOP"

        with DecisionClient(data) as client:
            client.decide_should_respond(CONTEXT, fallback)
        assert reported(rows(data)[0]) == ("m", 120, 2, 0.002, "reported")

    def test_one_that_does_not_say_makes_the_sum_unknown(self) -> None:
        known = Usage(model="a", input_tokens=1, output_tokens=1, cost_usd=1.0, cache_read_tokens=1)
        unknown = Usage(model="b", input_tokens=2)
        total = add_usage([known, unknown])
        assert (total.input_tokens, total.output_tokens, total.cost_usd, total.price_source) == (3, None, None, None)
        assert (total.model, total.cache_read_tokens) == ("a, b", 1)

    def test_outside_of_a_decision_it_reports_to_nobody(self) -> None:
        with fallback_call() as call:
            call.input_tokens = 5

    def test_a_fallback_that_raises_has_paid_for_its_calls(self, data: Path) -> None:
        def broken(_: Any) -> str:
            with fallback_call("m") as call:
                call.input_tokens, call.output_tokens = 7, 0
                raise RuntimeError("cut off")

        with DecisionClient(data) as client, pytest.raises(RuntimeError, match="cut off"):
            client.decide_should_respond(CONTEXT, broken)
        (row,) = rows(data)
        assert reported(row)[:3] == ("m", 7, 0) and not row["valid"]

    def test_in_a_thread_with_the_context(self, data: Path) -> None:
        def ask() -> str:
            with fallback_call("m") as call:
                call.input_tokens = 4
            return "STOP"

        async def fallback(_: Any) -> str:
            return await asyncio.to_thread(ask)

        async def decide() -> None:
            async with AsyncDecisionClient(data) as client:
                await asyncio.gather(*(client.decide_should_respond(CONTEXT, fallback) for _ in range(3)))

        asyncio.run(decide())
        assert [row["input_tokens"] for row in rows(data)] == [4, 4, 4]


class TestStreams:
    @staticmethod
    def fallback(_: Any) -> Iterator[str]:
        with fallback_call("m") as call:
            call.input_tokens, call.output_tokens = 10, 0
            for piece in CODE:
                call.output_tokens += 1
                yield piece

    @staticmethod
    async def afallback(context: Any) -> AsyncIterator[str]:
        with fallback_call("m") as call:
            call.input_tokens, call.output_tokens = 10, 0
            for piece in CODE:
                await asyncio.sleep(0)
                call.output_tokens += 1
                yield piece

    def test_a_stream_reports_at_its_end(self, data: Path) -> None:
        with DecisionClient(data) as client:
            stream = client.decide_coding(CODING, self.fallback, stream=True)
            with fallback_call("of the consumer"):  # belongs to no decision
                assert "".join(stream) == "".join(CODE)
            assert stream.answer.output_tokens == 3
        (row,) = rows(data)
        assert reported(row)[:3] == ("m", 10, 3)

    def test_one_that_is_not_read_to_its_end(self, data: Path) -> None:
        with DecisionClient(data) as client:
            stream = client.decide_coding(CODING, self.fallback, stream=True)
            next(iter(stream))
            stream.close()
        (row,) = rows(data)
        assert reported(row)[:3] == ("m", 10, 1) and "abandoned" in row["error"]

    @pytest.mark.parametrize("read", [1, 3])
    def test_asynchronous_ones(self, data: Path, read: int) -> None:
        async def consume() -> None:
            async with AsyncDecisionClient(data) as client:
                stream = await client.decide_coding(CODING, self.afallback, stream=True)
                async for _ in stream:
                    if read == 1:
                        break
                await stream.aclose()

        asyncio.run(consume())
        (row,) = rows(data)
        assert reported(row)[:3] == ("m", 10, read)

    def test_two_at_once_do_not_mix(self, data: Path) -> None:
        with DecisionClient(data) as client:
            streams = [client.decide_coding(CODING, self.fallback, stream=True) for _ in range(2)]
            for pieces in zip(*streams, strict=True):
                assert pieces[0] == pieces[1]
        assert [reported(row)[:3] for row in rows(data)] == [("m", 10, 3)] * 2
