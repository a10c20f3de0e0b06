"""elizaOS's first decision, the forced tool `HANDLE_RESPONSE`, replayed: logged, learned from the log, and answered.

The upstream is scripted and knows the truth. Its decisions are logged first, a classifier learns from the rows alone,
and then answers as the promoted model. What it may not decide alone goes to the upstream.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from typing import Any

import jsonschema
import orjson
import pytest

from gateway.decisions.forced import ForcedTypes, read_templates
from reasoning.records import Message
from tests.gateway.conftest import Running, Start
from tests.gateway.scripted import Seen, json
from tests.gateway.test_gateway_forced import (
    PATHS,
    SILENT,
    STAGE_ONE,
    found,
    request,
    server,
    told,
    upstream_answer,
)

TEMPLATE = SILENT | {"tool": "route"}
_NAMED = ["Sam, {}?", "hey Sam {}", "what do you think about {}, Sam?", "Sam can you tell us {}"]
_OTHERS = ["I had {} yesterday", "{} is fun", "Ann, did you see {}?", "lol {}", "we should try {} some day"]
_STOPS = ["Sam please stop", "be quiet Sam, {}", "Sam shut up about {}", "stop talking Sam"]
_THINGS = ["the weather", "tacos", "the new film", "that bug", "chess", "our trip", "the keys", "music"]


def turns(count: int, seed: int) -> list[tuple[str, str]]:
    """Last messages of group chats, and what the agent should do about each."""
    rng = random.Random(seed)
    kinds = rng.choices([(_OTHERS, "IGNORE"), (_NAMED, "RESPOND"), (_STOPS, "STOP")], [70, 22, 8], k=count)
    found = []
    for texts, truth in kinds:
        said = f"{rng.choice(texts).format(rng.choice(_THINGS))} {rng.randint(0, 10**6)}"
        found.append(
            (said, rng.choice(["IGNORE", "RESPOND"]) if rng.random() < 0.02 else truth)
        )  # nobody is that clear
    return found


def body_of(name: str, text: str, number: int) -> dict[str, Any]:
    """As elizaOS asks: long instructions with the time in them, and the tool named or the only one."""
    system = (
        f"You are Sam. It is {number % 24}:{number % 60}.\n" + "Weigh the whole conversation before you act.\n" * 100
    )
    body = request(name, STAGE_ONE, text=text)
    if number % 2:
        body["tool_choice"] = {"type": "any"} if name == "anthropic" else "required"
    match name:
        case "anthropic":
            body["system"] = system
        case "chat":
            body["messages"][0]["content"] = system
        case _:
            body["instructions"] = system
    return body


async def upstream(running: Running, truths: dict[str, str]) -> None:
    """Each API answers with the truth about the last message, and words of its own."""
    for name in PATHS:

        async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
            asked = seen.json
            protocol = next(name for name, path in PATHS.items() if seen.target == path)
            text = asked["input" if protocol == "responses" else "messages"][-1]["content"]
            truth = truths[text]
            said = {"shouldRespond": truth, "replyText": "Sure!" if truth == "RESPOND" else "", "contexts": ["general"]}
            await json(upstream_answer(protocol, said, as_tool=True))(seen, writer)

        server(running, name).script = answer


class Learned:
    """A model that has learned from rows of the log: the last line of the prompt to a decision."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._words: dict[str, Counter[str]] = {}
        self._rows: Counter[str] = Counter()
        for row in rows:
            messages = orjson.loads(row["messages"]) if isinstance(row["messages"], str) else row["messages"]
            label = orjson.loads(row["decision"])["shouldRespond"]
            self._rows[label] += 1
            self._words.setdefault(label, Counter()).update(set(self._last(messages).lower().split()))

    def probabilities(self, text: str) -> dict[str, float]:
        """Naive Bayes over the words of a message."""
        words = set(text.lower().split())
        scores = {
            label: math.log(count) + sum(math.log((self._words[label][word] + 0.1) / (count + 0.2)) for word in words)
            for label, count in self._rows.items()
        }
        top = max(scores.values())
        weights = {label: math.exp(score - top) for label, score in scores.items()}
        return {label: weight / sum(weights.values()) for label, weight in weights.items()}

    @staticmethod
    def _last(messages: list[Message]) -> str:
        return messages[-1]["content"].rsplit("\n", 1)[-1]

    async def __call__(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        probabilities = self.probabilities(self._last(seen.json["messages"]))
        best = max(probabilities, key=lambda label: probabilities[label])
        pieces = ['{"answers":{"shouldRespond":"', best, '"}}']
        logprobs = [0.0, math.log(probabilities[best]), 0.0]
        content = [
            {"token": piece, "logprob": p, "top_logprobs": []} for piece, p in zip(pieces, logprobs, strict=True)
        ]
        choice = {"index": 0, "finish_reason": "stop", "logprobs": {"content": content}}
        answer = {"choices": [choice | {"message": {"role": "assistant", "content": "".join(pieces)}}]}
        await json(answer | {"usage": {"prompt_tokens": 60, "completion_tokens": 8}})(seen, writer)


async def replay(start: Start, count: int) -> dict[str, float]:
    """Log `count` turns, learn from them, and replay as many others. Figures of the replay."""
    running = await start(forced_templates=(TEMPLATE,), forced_after=1)
    past, present = turns(count, 1), turns(count, 2)
    await upstream(running, dict([*past, *present]))
    names = list(PATHS)
    for number, (text, _) in enumerate(past):
        status, _, _ = await running.ask("POST", PATHS["chat"], json=body_of("chat", text, number))
        assert status == 200
    rows = await running.records()
    assert len(rows) == count
    assert all(row["valid"] for row in rows)
    types = ForcedTypes(read_templates([TEMPLATE]))
    bodies = [(name, body_of(name, "x", number)) for name in names for number in (0, 1)]
    [kind] = {found(name, body, types).type.kind.name for name, body in bodies}
    assert {row["decision_type"] for row in rows} == {kind}

    serving = await start(forced_templates=(TEMPLATE,), forced_after=1)
    serving.route(kind, min_confidence=0.8)
    await upstream(serving, dict(present))
    serving.model.script = Learned(rows)
    saved = errors = malformed = changed = 0
    started = time.perf_counter()
    for number, (text, truth) in enumerate(present):
        name = names[number % 3]
        body = body_of(name, text, number)
        before = len(server(serving, name).seen)
        _, headers, got = await serving.ask("POST", PATHS[name], json=body)
        arguments = told(name, got, as_tool=True, streamed=False)
        try:
            jsonschema.validate(arguments, STAGE_ONE)
        except jsonschema.ValidationError:
            malformed += 1
        if headers.get("x-reasoning-source") == "custom":
            saved += 1
            errors += arguments["shouldRespond"] != truth
            assert len(server(serving, name).seen) == before
        else:
            said = {"shouldRespond": truth, "replyText": "Sure!" if truth == "RESPOND" else "", "contexts": ["general"]}
            changed += got != orjson.dumps(upstream_answer(name, said, as_tool=True))
            changed += orjson.loads(server(serving, name).last.body) != body
    seconds = time.perf_counter() - started
    return {
        "turns": count,
        "saved": saved / count,
        "error": errors / max(saved, 1),
        "malformed": malformed,
        "changed": changed,
        "ms": seconds / count * 1000,
    }


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.torture)])
async def test_elizas_first_decision_is_saved_where_it_stays_silent(start: Start, count: int) -> None:
    figures = await replay(start, count)
    print(figures)
    assert figures["malformed"] == 0
    assert figures["changed"] == 0
    assert figures["saved"] >= 0.5
    assert figures["error"] <= 0.05
