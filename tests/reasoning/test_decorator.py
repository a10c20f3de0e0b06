from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reasoning import AsyncDecisionClient, DecisionClient, decision, decorator
from reasoning.errors import ConfigError, UnknownDecisionType
from tests.reasoning.conftest import CONTEXT, ModelServer, http, rows, sends


def test_a_functions_own_logic_is_the_net(data: Path, server: ModelServer, route: Callable[..., Any]) -> None:
    route()
    with DecisionClient(data) as client:

        @decision("should_respond", client=client)
        def choose(context: Any) -> str:
            """Mine."""
            return "RESPOND"

        assert choose.__doc__ == "Mine." and choose.__name__ == "choose"
        assert choose(CONTEXT) == {"action": "IGNORE"}
        server.answer = sends(http(b"", 500))
        assert choose(context=CONTEXT) == {"action": "RESPOND"}
        answer = choose.answer(CONTEXT)
        assert answer.source == "original" and choose.client is client
        assert choose.__wrapped__(CONTEXT) == "RESPOND"


def test_a_function_keeps_its_signature_and_its_result(
    data: Path, server: ModelServer, route: Callable[..., Any]
) -> None:
    route()

    def to_context(name: str, *, texts: list[str]) -> dict[str, Any]:
        return {"agent_name": name, "messages": [{"speaker": "Ann", "text": t} for t in texts], "episode_id": "e"}

    with DecisionClient(data) as client:

        @decision("should_respond", client=client, context=to_context, returns=lambda d: d["action"] == "RESPOND")
        def wants(name: str, *, texts: list[str]) -> bool:
            return True

        assert wants("Bot", texts=["hi"]) is False  # the model says IGNORE
        server.answer = sends(http(b"", 500))
        assert wants("Bot", texts=["hi"]) is True  # its own
        assert wants(3, texts=None) is True  # a context that cannot be made breaks nothing
    assert [row["episode_id"] for row in rows(data)] == ["e", "e", "e", None]


def test_a_result_that_is_no_decision_is_recorded_as_the_one_that_it_means(
    data: Path, server: ModelServer, route: Callable[..., Any]
) -> None:
    route()
    server.answer = sends(http(b"", 500))
    with DecisionClient(data) as client:

        @decision(
            "should_respond",
            client=client,
            returns=lambda d: d["action"] == "RESPOND",
            decides=lambda wanted: {True: "RESPOND", False: "IGNORE"}[wanted],
        )
        def wants(context: Any, wanted: Any = True) -> Any:
            return wanted

        assert wants(CONTEXT) is True
        assert wants.answer(CONTEXT, False).decision == {"action": "IGNORE"}
        assert wants(CONTEXT, "perhaps") == "perhaps"  # what cannot be mapped passes all the same
        with pytest.raises(ConfigError, match="decides needs returns"):
            decision("should_respond", client=client, decides=bool)(wants.__wrapped__)
    originals = [row for row in rows(data) if row["source"] == "original"]
    assert [row["decision"] for row in originals] == ['{"action":"RESPOND"}', '{"action":"IGNORE"}', None]
    assert [row["valid"] for row in originals] == [True, True, False]


async def test_methods(data: Path, server: ModelServer, route: Callable[..., Any]) -> None:
    route()
    with DecisionClient(data) as client:
        async_client = AsyncDecisionClient(data)

        class Agent:
            @decision("should_respond", client=client)
            def choose(self, context: Any) -> str:
                return "RESPOND"

            @decision("should_respond", client=client)
            def last(self, room: str, context: Any) -> str:
                return "RESPOND"

            @decision("should_respond", client=async_client)
            async def wait(self, state: Any) -> str:
                return "RESPOND"

            @staticmethod
            @decision("should_respond", client=client)
            def alone(state: Any) -> str:
                return "RESPOND"

        agent, models = Agent(), {"action": "IGNORE"}
        assert agent.choose(CONTEXT) == agent.choose(context=CONTEXT) == agent.alone(CONTEXT) == models
        assert agent.last("r", CONTEXT) == agent.last("r", context=CONTEXT) == models
        assert Agent.choose.answer(agent, CONTEXT).source == "custom"
        assert await agent.wait(CONTEXT) == models
        await async_client.close()


async def test_coroutine_functions(data: Path, server: ModelServer, route: Callable[..., Any]) -> None:
    route()
    async with AsyncDecisionClient(data) as client:

        @decision("should_respond", client=client, returns=lambda d: d["action"])
        async def choose(context: Any) -> str:
            return "RESPOND"

        assert await choose(CONTEXT) == "IGNORE"
        server.answer = sends(http(b"", 500))
        assert await choose(CONTEXT) == "RESPOND"
        assert (await choose.answer(CONTEXT)).fallback_reason == "provider_error"


def test_what_the_function_raises_passes(data: Path) -> None:
    with DecisionClient(data) as client:

        @decision("should_respond", client=client)
        def choose(context: Any) -> str:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            choose(CONTEXT)


def test_mistakes_show_when_it_decorates(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = DecisionClient(data)
    with pytest.raises(UnknownDecisionType):
        decision("vote", client=client)(lambda context: "x")

    async def choose(context: Any) -> str:
        return "x"

    with pytest.raises(ConfigError, match="needs an AsyncDecisionClient"):
        decision("should_respond", client=client)(choose)
    with pytest.raises(ConfigError, match=r'write @decision\("should_respond"\)'):
        decision(choose)  # type: ignore[arg-type]
    for kind in (classmethod, staticmethod):
        with pytest.raises(ConfigError, match=f"below @{kind.__name__}"):
            decision("should_respond", client=client)(kind(lambda context: "x"))  # type: ignore[arg-type]

    def pieces(context: Any) -> Any:
        yield "x"

    with pytest.raises(ConfigError, match="stream=True"):
        decision("coding", client=client)(pieces)
    decorator.default_client.cache_clear()
    monkeypatch.setenv("REASONING_ENABLED", "perhaps")
    with pytest.raises(ConfigError, match="REASONING_ENABLED"):
        decision("should_respond")(lambda context: "x")


def test_without_a_client_all_share_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decorator.default_client.cache_clear()
    monkeypatch.setenv("REASONING_DATA", str(tmp_path / "d"))
    one = decision("should_respond")(lambda context: "STOP")
    two = decision("should_respond")(lambda context: "IGNORE")
    assert one.client is two.client
    assert one(CONTEXT) == {"action": "STOP"}
    one.client.close()
    assert len(rows(tmp_path / "d")) == 1
    decorator.default_client.cache_clear()
