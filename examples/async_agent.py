"""The same for asyncio, with the decorator around the agent's own function.

python examples/async_agent.py
"""

import asyncio

from reasoning import decision


@decision("should_respond")
async def should_respond(context):
    """The agent's own logic; once a model is promoted, the model answers, and this is its fallback."""
    return "RESPOND" if "eliza" in context["messages"][-1]["text"].lower() else "IGNORE"


async def main():
    rooms = {"kitchen": "Eliza, is it done?", "garden": "what a day", "hall": "eliza?"}
    contexts = [
        {"agent_name": "Eliza", "episode_id": room, "messages": [{"speaker": "Ann", "text": text}]}
        for room, text in rooms.items()
    ]
    decisions = await asyncio.gather(*map(should_respond, contexts))
    for room, found in zip(rooms, decisions, strict=True):
        print(room, found["action"])
    await should_respond.client.close()


if __name__ == "__main__":
    asyncio.run(main())
