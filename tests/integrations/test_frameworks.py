"""Adapters for agents' frameworks, with the real frameworks: `make integrations` installs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reasoning import AsyncDecisionClient, DecisionClient
from reasoning.integrations.conversation import conversation
from storage.log.land import land_decisions
from storage.log.views import sql

CALLS: list[str] = []


def rule(context: Any) -> str:
    return "RESPOND" if "nova" in context["messages"][-1]["text"].lower() else "IGNORE"


def actions(data: Path) -> list[tuple[str, str | None]]:
    land_decisions(data)
    return [tuple(row) for row in sql(data, "SELECT decision->>'action', episode_id FROM decisions ORDER BY ts").rows]


def test_content_in_parts_is_read_and_calls_of_tools_are_left_out() -> None:
    lines = [
        ("Ada", False, [{"type": "text", "text": "Nova?"}]),
        (None, True, ""),
        (None, True, "yes"),
        (None, False, "ok"),
    ]
    assert conversation("Nova", lines)["messages"] == [
        {"speaker": "Ada", "text": "Nova?"},
        {"speaker": "Nova", "text": "yes"},
        {"speaker": "user", "text": "ok"},
    ]


@pytest.fixture
def langchain_model() -> Any:
    pytest.importorskip("langchain.agents", reason="run `make integrations`")
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage

    def answers() -> Any:
        while True:
            CALLS.append("model")
            yield AIMessage("Hello!")

    CALLS.clear()
    return GenericFakeChatModel(messages=answers())


def test_langchain_asks_no_model_where_the_agent_is_not_to_respond(langchain_model: Any, tmp_path: Path) -> None:
    from langchain.agents import create_agent

    from reasoning.integrations.langchain import RespondMiddleware

    with DecisionClient(tmp_path) as client:
        middleware = RespondMiddleware(client, rule, agent_name="Nova")
        agent = create_agent(langchain_model, middleware=[middleware])
        config: Any = {"configurable": {"thread_id": "room-7"}}
        said = agent.invoke({"messages": [{"role": "user", "content": "how are you, Bob?"}]}, config)
        assert len(said["messages"]) == 1 and CALLS == []
        said = agent.invoke({"messages": [{"role": "user", "content": "Nova, hi"}]}, config)
        assert said["messages"][-1].content == "Hello!" and CALLS == ["model"]
        assert middleware.last is not None and middleware.last.decision == {"action": "RESPOND"}
    assert actions(tmp_path) == [("IGNORE", "room-7"), ("RESPOND", "room-7")]


async def test_langchain_asynchronously(langchain_model: Any, tmp_path: Path) -> None:
    from langchain.agents import create_agent

    from reasoning.integrations.langchain import RespondMiddleware

    async with AsyncDecisionClient(tmp_path) as client:
        agent = create_agent(langchain_model, middleware=[RespondMiddleware(client, rule, agent_name="Nova")])
        said = await agent.ainvoke({"messages": [{"role": "user", "content": "nobody?"}]})
        assert len(said["messages"]) == 1 and CALLS == []
        with pytest.raises(TypeError, match="use ainvoke"):
            agent.invoke({"messages": [{"role": "user", "content": "nobody?"}]})


async def test_openai_agents_ends_the_run_before_the_model(tmp_path: Path) -> None:
    agents = pytest.importorskip("agents", reason="run `make integrations`")
    from reasoning.integrations.openai_agents import respond_guardrail

    class Model(agents.Model):  # type: ignore[name-defined, misc]
        async def get_response(self, *args: Any, **values: Any) -> Any:
            raise AssertionError("the model was asked")

        def stream_response(self, *args: Any, **values: Any) -> Any:
            raise AssertionError("the model was asked")

    async with AsyncDecisionClient(tmp_path) as client:
        guard = respond_guardrail(client, rule, agent_name="Nova", episode_id="room-7")
        agent = agents.Agent(name="Nova", model=Model(), input_guardrails=[guard])
        config = agents.RunConfig(tracing_disabled=True)
        with pytest.raises(agents.InputGuardrailTripwireTriggered) as ended:
            await agents.Runner.run(agent, "how are you, Bob?", run_config=config)
        assert ended.value.guardrail_result.output.output_info.decision == {"action": "IGNORE"}
        with pytest.raises(AssertionError, match="was asked"):
            await agents.Runner.run(agent, "Nova, hi", run_config=config)
    assert actions(tmp_path) == [("IGNORE", "room-7"), ("RESPOND", "room-7")]
