"""A tiny agent: its own rule decides whether to answer, and every decision is logged. Nothing has to be configured.

python examples/sync_agent.py            # then look into ./reasoning-data/spool
"""

from reasoning import DecisionClient


def my_rule(context):
    """The fallback: it answers whenever no custom model does."""
    last = context["messages"][-1]["text"]
    return "RESPOND" if context["agent_name"].lower() in last.lower() else "IGNORE"


def main():
    messages = []
    with DecisionClient() as client:
        for speaker, text in [("Ann", "morning all"), ("Bob", "Eliza, are you there?"), ("Ann", "she never sleeps")]:
            messages.append({"speaker": speaker, "text": text})
            context = {"agent_name": "Eliza", "messages": messages}
            answer = client.decide_should_respond(context, my_rule, episode_id="example-1")
            print(f"{speaker}: {text!r} -> {answer.decision['action']} ({answer.source}, {answer.fallback_reason})")
            client.feedback("helpful", True, decision_id=answer.decision_id)


if __name__ == "__main__":
    main()
