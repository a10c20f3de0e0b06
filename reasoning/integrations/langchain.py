"""LangChain: decide whether to respond before the agent's model is asked.

::

    agent = create_agent(model, tools, middleware=[RespondMiddleware(client, my_rule, agent_name="Nova")])

Where the decision is IGNORE or STOP the run ends without a message, and without a call of the model.
"""

from __future__ import annotations

from typing import Any

from langchain.agents.middleware import AgentMiddleware, AgentState, hook_config
from langgraph.runtime import Runtime

from reasoning.async_client import AsyncDecisionClient, AsyncOriginal
from reasoning.client import DecisionClient
from reasoning.core import Answer
from reasoning.integrations.conversation import conversation

_THREAD = "thread_id"


class RespondMiddleware(AgentMiddleware[AgentState[Any], Any]):
    """Takes the decision `should_respond` with `client`; `fallback` is the agent's own logic, as for the client.

    A `DecisionClient` serves `invoke` and `stream`, an `AsyncDecisionClient` `ainvoke` and `astream`. The episode is
    the run's `thread_id`. `last` is the latest answer, whose `decision_id` feedback takes.
    """

    def __init__(
        self, client: DecisionClient | AsyncDecisionClient, fallback: AsyncOriginal, *, agent_name: str
    ) -> None:
        super().__init__()
        self.client = client
        self.fallback = fallback
        self.agent_name = agent_name
        self.last: Answer | None = None

    @hook_config(can_jump_to=["end"])
    def before_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Decide; ends the run where the agent is not to respond."""
        if not isinstance(self.client, DecisionClient):
            raise TypeError(
                "invoke and stream need a DecisionClient; with an AsyncDecisionClient use ainvoke or astream"
            )
        return self._follow(self.client.decide_should_respond(self._context(state), self.fallback, **_ids(runtime)))

    @hook_config(can_jump_to=["end"])
    async def abefore_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Decide; ends the run where the agent is not to respond."""
        if not isinstance(self.client, AsyncDecisionClient):
            raise TypeError(
                "ainvoke and astream need an AsyncDecisionClient; with a DecisionClient use invoke or stream"
            )
        return self._follow(
            await self.client.decide_should_respond(self._context(state), self.fallback, **_ids(runtime))
        )

    def _context(self, state: AgentState[Any]) -> dict[str, Any]:
        said = [message for message in state["messages"] if message.type in ("human", "ai")]
        return conversation(self.agent_name, [(each.name, each.type == "ai", each.content) for each in said])

    def _follow(self, answer: Answer) -> dict[str, Any] | None:
        self.last = answer
        return None if answer.decision["action"] == "RESPOND" else {"jump_to": "end"}


def _ids(runtime: Runtime[Any]) -> dict[str, str]:
    info = getattr(runtime, "execution_info", None)
    thread = getattr(info, _THREAD, None)
    return {"episode_id": str(thread)} if thread else {}
