"""OpenAI's Agents SDK: decide whether to respond as a guardrail on the agent's input.

::

    agent = Agent(name="Nova", input_guardrails=[respond_guardrail(client, my_rule, agent_name="Nova")])

Where the decision is IGNORE or STOP, `Runner.run` raises `InputGuardrailTripwireTriggered` before the model is asked;
the answer is its `guardrail_result.output.output_info`.
"""

from __future__ import annotations

from typing import Any

from agents import Agent, GuardrailFunctionOutput, InputGuardrail, RunContextWrapper, TResponseInputItem

from reasoning.async_client import AsyncDecisionClient, AsyncOriginal
from reasoning.integrations.conversation import conversation


def respond_guardrail(
    client: AsyncDecisionClient, fallback: AsyncOriginal, *, agent_name: str, episode_id: str | None = None
) -> InputGuardrail[Any]:
    """A guardrail that takes the decision `should_respond`; `fallback` is the agent's own logic, as for the client."""

    async def should_respond(
        run: RunContextWrapper[Any], agent: Agent[Any], asked: str | list[TResponseInputItem]
    ) -> GuardrailFunctionOutput:
        items: list[Any] = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
        said = [item for item in items if isinstance(item, dict) and item.get("role") in ("user", "assistant")]
        context = conversation(agent_name, [(None, item["role"] == "assistant", item.get("content")) for item in said])
        answer = await client.decide_should_respond(context, fallback, episode_id=episode_id)
        return GuardrailFunctionOutput(output_info=answer, tripwire_triggered=answer.decision["action"] != "RESPOND")

    return InputGuardrail(should_respond, name="should_respond", run_in_parallel=False)
