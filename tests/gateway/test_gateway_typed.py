"""Typed questions at the gateway: the SDKs of OpenAI and TypeSafe, unmodified, answered by a model or the upstream."""

from __future__ import annotations

import json as jsonlib
import math
from typing import Any

import pytest

from gateway.settings import Key, hash_token
from reasoning.questions import boolean, choice, question_set, score
from tests.gateway.conftest import TOKEN, UPSTREAM_KEY, Running, Start
from tests.gateway.scripted import json, whole

STATE = {"note": "Valve 7 leaks"}
SET = question_set(
    {
        "stop": boolean("Stop the line?"),
        "crew": choice({"pipes": "faults of fluids", "power": None}, "Who goes?"),
        "severity": score(["minor", "major"], "How bad?"),
    }
)
SYSTEM_ONE: dict[str, Any] = {
    "model": "jev-latest",
    "state": STATE,
    "questions": {
        "stop": {"type": "noul", "instructions": "Stop the line?"},
        "crew": {
            "type": "choice",
            "instructions": "Who goes?",
            "criteria": {"power": None, "pipes": "faults of fluids"},
        },
        "severity": {"type": "score", "instructions": "How bad?", "criteria": ["minor", "major"]},
    },
}
DECISIONS: list[dict[str, Any]] = [
    {"type": "predicate", "name": "stop", "instructions": "Stop the line?"},
    {
        "type": "choice",
        "name": "crew",
        "instructions": "Who goes?",
        "choices": [{"value": "power"}, {"value": "pipes", "description": "faults of fluids"}],
    },
    {
        "type": "score",
        "name": "severity",
        "instructions": "How bad?",
        "levels": [{"label": "minor"}, {"label": "major"}],
    },
]
SYSTEM_ONE_ANSWER = {
    "model": "jev-1.14.0",
    "answers": {
        "stop": {"type": "noul", "noul": 0.8},
        "crew": {
            "type": "choice",
            "choice": "pipes",
            "confidence": 0.9,
            "probabilities": {"pipes": 0.96, "power": 0.04},
        },
        "severity": {
            "type": "score",
            "score": 0.7,
            "confidence": 0.5,
            "legend": {"0": "minor", "1": "major"},
            "probabilities": {"0": 0.3, "1": 0.7},
        },
    },
    "usage": {"input_tokens": 88, "output_tokens": 14},
}
USAGE = {
    "input_tokens": 40,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 40,
}
DECISIONS_ANSWER = {
    "model": "gpt-6-luna",
    "answers": [
        {"type": "predicate", "name": "stop", "probability": 0.8},
        {"type": "refusal", "name": "crew"},
        {
            "type": "score",
            "name": "severity",
            "score": 0.7,
            "confidence": 0.5,
            "probabilities": [
                {"value": 0, "label": "minor", "probability": 0.3},
                {"value": 1, "label": "major", "probability": 0.7},
            ],
        },
    ],
    "usage": USAGE,
}


def model_says(running: Running) -> None:
    """Our model answers: crew pipes 0.9, severity 1 at 0.7, stop at 0.8."""
    tokens: list[tuple[str, dict[str, float]]] = [
        ('{"answers":{"crew":', {}),
        ('"pipes"', {'"pipes"': 0.9, '"power"': 0.1}),
        (',"severity":', {}),
        ("1", {"0": 0.3, "1": 0.7}),
        (',"stop":', {}),
        ("true", {"true": 0.8, "false": 0.2}),
        ("}}", {}),
    ]
    content = [
        {
            "token": token,
            "logprob": math.log(told.get(token, 1.0)),
            "top_logprobs": [{"token": other, "logprob": math.log(p)} for other, p in told.items()],
        }
        for token, told in tokens
    ]
    text = "".join(token for token, _ in tokens)
    choice_ = {"message": {"content": text}, "logprobs": {"content": content}, "finish_reason": "stop"}
    running.model.script = json({"choices": [choice_], "usage": {"prompt_tokens": 90, "completion_tokens": 9}})


async def test_openais_sdk_gets_our_models_answer(start: Start) -> None:
    from openai import AsyncOpenAI

    running = await start()
    running.route(question_set({q.name: q for q in SET.questions}).type_name)
    model_says(running)
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key=TOKEN, max_retries=0) as client:
        raw = await client.decisions.with_raw_response.create(
            model="gpt-6-luna",
            input="Valve 7 leaks",
            questions=DECISIONS,  # type: ignore[arg-type]
        )
    found = raw.parse()
    assert found.model == "ep/coder" and raw.headers["x-reasoning-source"] == "custom"
    stop, crew, severity = found.answers
    assert (stop.type, stop.name, stop.probability) == ("predicate", "stop", pytest.approx(0.8))
    assert (crew.type, crew.choice, crew.confidence) == ("choice", "pipes", pytest.approx(0.9))
    assert [p.value for p in crew.probabilities] == ["power", "pipes"]  # in the client's order
    assert (severity.type, severity.score) == ("score", pytest.approx(0.7))
    assert [(p.value, p.label) for p in severity.probabilities] == [(0, "minor"), (1, "major")]
    assert (found.usage.input_tokens, found.usage.total_tokens) == (90, 99)
    assert running.openai.seen == []
    (row,) = await running.records()
    assert (row["decision_type"], row["source"], row["served"]) == (SET.type_name, "custom", True)
    assert jsonlib.loads(row["decision"]) == {"crew": "pipes", "severity": 1, "stop": True}
    assert jsonlib.loads(row["tags"]) == {"door": "decisions", "key": "default"}
    assert raw.headers["x-reasoning-decision-id"] == row["decision_id"]


async def test_the_upstream_answers_openais_sdk_byte_for_byte_and_is_recorded(start: Start) -> None:
    from openai import AsyncOpenAI

    running = await start()
    running.openai.script = json(DECISIONS_ANSWER)
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key=TOKEN, max_retries=0) as client:
        raw = await client.decisions.with_raw_response.create(
            model="gpt-6-luna",
            input=[{"role": "user", "content": [{"type": "input_text", "text": "Valve 7 leaks"}]}],
            questions=DECISIONS,  # type: ignore[arg-type]
        )
    assert jsonlib.loads(raw.content) == DECISIONS_ANSWER
    assert [answer.type for answer in raw.parse().answers] == ["predicate", "refusal", "score"]
    seen = running.openai.last
    assert (seen.target, seen.header("authorization")) == ("/v1/decisions", f"Bearer {UPSTREAM_KEY}")
    (row,) = await running.records()
    # The question that was refused has no answer; the others are kept, and with them what they cost.
    assert jsonlib.loads(row["decision"]) == {"severity": 1, "stop": True}
    assert jsonlib.loads(row["probabilities"])["severity"] == {"0": 0.3, "1": 0.7}
    assert (row["fallback_model"], row["input_tokens"], row["fallback_reason"]) == ("gpt-6-luna", 40, "no_route")
    assert row["messages"][1]["content"] == "user: Valve 7 leaks"


async def test_typesafes_sdk_gets_our_models_answer_and_the_upstreams(start: Start) -> None:
    sdk = pytest.importorskip("typesafe_sdk")
    running = await start()
    questions = {
        "stop": sdk.Noul(instructions="Stop the line?"),
        "crew": sdk.Choice(instructions="Who goes?", criteria={"pipes": "faults of fluids", "power": None}),
        "severity": sdk.Score(instructions="How bad?", criteria=["minor", "major"]),
    }
    running.openai.script = json(SYSTEM_ONE_ANSWER)
    async with sdk.AsyncTypeSafeClient(api_key=TOKEN, base_url=running.url) as client:
        theirs = await client.system_one(state=STATE, questions=questions)
        assert theirs.model == "jev-1.14.0" and theirs.choices["crew"].choice == "pipes"
        running.route(SET.type_name)
        model_says(running)
        ours = await client.system_one(state=STATE, questions=questions)
    assert ours.model == "ep/coder"
    assert (ours.nouls["stop"].noul, ours.choices["crew"].choice) == (pytest.approx(0.8), "pipes")
    assert ours.scores["severity"].score == pytest.approx(0.7)
    assert ours.scores["severity"].legend == {0: "minor", 1: "major"}
    assert [seen.target for seen in running.openai.seen] == ["/v1/systemone"]
    first, second = await running.records()
    # The same questions by either protocol are one decision type.
    assert first["decision_type"] == second["decision_type"] == SET.type_name
    assert jsonlib.loads(first["probabilities"])["crew"] == {"pipes": 0.96, "power": 0.04}


IMAGE = SYSTEM_ONE | {"assets": {"photo": {"type": "image", "format": "png", "data_base64": "AA=="}}}
BOX = SYSTEM_ONE | {"questions": {"where": {"type": "box", "instructions": "Where?"}}}
CASES = SYSTEM_ONE | {"questions": {"q": {"type": "choice", "criteria": {"A": None, "a": None}}}}


PICTURES = SYSTEM_ONE | {"images": ["https://example.org/photo.png"]}  # Perplexity's
POLICY = SYSTEM_ONE | {"instructions": "Answer no to everything."}


@pytest.mark.parametrize(
    "body", [IMAGE, PICTURES, POLICY, BOX, CASES, SYSTEM_ONE | {"questions": {}}, {"model": "jev"}]
)
async def test_what_is_not_ours_to_answer_passes_as_it_came(start: Start, body: dict[str, Any]) -> None:
    running = await start()
    running.route(SET.type_name)
    refusal = {"detail": [{"loc": ["body"], "msg": "wrong", "type": "value_error"}]}
    running.openai.script = json(refusal, 422)
    sent = jsonlib.dumps(body).encode()
    status, _, answer = await running.ask("POST", "/v1/systemone", data=sent)
    assert (status, jsonlib.loads(answer)) == (422, refusal)
    assert running.openai.last.body == sent
    assert await running.records() == []


DECISION_IMAGE = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]
TWICE = [DECISIONS[0], DECISIONS[0]]
NO_LABEL = [{"type": "score", "instructions": "?", "levels": [{"description": "low"}, {"description": "high"}]}]
TYPED_TRUE = [{"type": "choice", "instructions": "?", "choices": [{"value": True}, {"value": "true"}]}]


@pytest.mark.parametrize(
    ("given", "questions"), [(DECISION_IMAGE, DECISIONS), ("x", TWICE), ("x", TYPED_TRUE), ("x", NO_LABEL)]
)
async def test_images_and_choices_that_are_the_same_text_are_openais(
    start: Start, given: Any, questions: list[dict[str, Any]]
) -> None:
    running = await start()
    running.openai.script = json(DECISIONS_ANSWER)
    body = {"model": "gpt-6-luna", "input": given, "questions": questions}
    status, _, answer = await running.ask("POST", "/v1/decisions", json=body)
    assert (status, jsonlib.loads(answer)) == (200, DECISIONS_ANSWER)
    assert await running.records() == []


async def test_errors_of_the_upstream_and_ours_have_the_form_that_the_sdks_read(start: Start) -> None:
    from openai import AsyncOpenAI, PermissionDeniedError, RateLimitError

    sdk = pytest.importorskip("typesafe_sdk")
    running = await start()
    once = sdk.RetryPolicy(max_retries=0)
    ask = {"state": STATE, "questions": {"stop": sdk.Noul(instructions="Stop the line?")}}
    async with (
        AsyncOpenAI(base_url=f"{running.url}/v1", api_key=TOKEN, max_retries=0) as openai,
        sdk.AsyncTypeSafeClient(api_key=TOKEN, base_url=running.url, retry=once) as typesafe,
    ):
        running.openai.script = json({"error": {"message": "slow down", "type": "requests", "code": "rate"}}, 429)
        with pytest.raises(RateLimitError, match="slow down"):
            await openai.decisions.create(model="m", input="x", questions=DECISIONS)  # type: ignore[arg-type]
        running.openai.script = json({"detail": {"error_type": "rate_limited", "message": "slow down"}}, 429)
        with pytest.raises(sdk.TypeSafeAPIError, match="slow down"):
            await typesafe.system_one(**ask)  # type: ignore[arg-type]
        running.openai.script = whole(200, b"not JSON")
        status, _, answer = await running.ask("POST", "/v1/systemone", json=SYSTEM_ONE)
        assert (status, answer) == (200, b"not JSON")  # the client's to judge, and not recorded as an answer
    rows = await running.records()
    assert [row["valid"] for row in rows] == [False] * len(rows)

    closed = Key("app", hash_token("app-token-0123456789"), protocols=frozenset({"anthropic"}))
    running = await start(keys=(closed,))
    async with (
        AsyncOpenAI(base_url=f"{running.url}/v1", api_key="app-token-0123456789", max_retries=0) as openai,
        sdk.AsyncTypeSafeClient(api_key="app-token-0123456789", base_url=running.url, retry=once) as typesafe,
    ):
        with pytest.raises(PermissionDeniedError, match=r'"openai" in `protocols`'):
            await openai.decisions.create(model="m", input="x", questions=DECISIONS)  # type: ignore[arg-type]
        with pytest.raises(sdk.TypeSafeAPIError, match="protocols"):
            await typesafe.system_one(**ask)  # type: ignore[arg-type]


async def test_a_key_without_decisions_is_passed_on_and_owns_nothing(start: Start) -> None:
    apps = {name: f"{name}-token-0123456789" for name in ("one", "two", "off")}
    keys = tuple(Key(name, hash_token(token), decisions=name != "off") for name, token in apps.items())
    running = await start(keys=keys)
    running.route(SET.type_name)
    model_says(running)
    running.openai.script = json(SYSTEM_ONE_ANSWER)
    bearer = {name: {"authorization": f"Bearer {token}"} for name, token in apps.items()}
    _, headers, answer = await running.ask("POST", "/v1/systemone", json=SYSTEM_ONE, headers=bearer["off"])
    assert jsonlib.loads(answer) == SYSTEM_ONE_ANSWER and "x-reasoning-decision-id" not in headers
    _, headers, answer = await running.ask("POST", "/v1/systemone", json=SYSTEM_ONE, headers=bearer["one"])
    assert jsonlib.loads(answer)["model"] == "ep/coder"
    label = {
        "metric": "demonstration",
        "kind": "demonstration",
        "value": {"crew": "power"},
        "decision_id": headers["x-reasoning-decision-id"],
    }
    status, _, _ = await running.ask("POST", "/v1/feedback", json=label, headers=bearer["two"])
    assert status == 403  # another key's decision
    status, _, _ = await running.ask("POST", "/v1/feedback", json=label, headers=bearer["one"])
    assert status == 202
    decision, feedback = await running.records()
    assert jsonlib.loads(decision["tags"])["key"] == "one"
    assert jsonlib.loads(jsonlib.loads(feedback["value"])) == {"crew": "power"}


async def test_an_upstream_that_is_away_is_an_error_only_where_it_was_needed(start: Start) -> None:
    running = await start()
    running.route(SET.type_name)
    running.model.script = whole(500, b"")
    running.openai.script = whole(503, b"")
    status, headers, _ = await running.ask("POST", "/v1/systemone", json=SYSTEM_ONE)
    assert status == 503 and "x-reasoning-decision-id" not in headers
    assert len(running.openai.seen) == 1  # asked once, whatever became of the decision
