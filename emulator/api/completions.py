"""Chat completions: which model a name means, its answer, and the answer's two shapes."""

from __future__ import annotations

import json
import random
import sqlite3
import uuid
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from emulator.api.adapters import load_state
from emulator.billing.bill import require_funds
from emulator.billing.catalog import NANO, BaseModel
from emulator.errors import ApiError
from emulator.world.context import Emulator, emulator_of, read_json
from emulator.world.forms import form
from emulator.world.replicas import read_status, stop_inactive
from emulator.world.serving import UntunedModel
from learners.completion import LearnerCompletion

_DEFAULT_MAX_TOKENS = 2048


@dataclass(frozen=True)
class Target:
    """What answers: a trained model (by its directory) or a base model; `deployment` is None for serverless."""

    directory: str | None
    base: BaseModel
    deployment: sqlite3.Row | None


async def create_chat_completion(request: Request) -> Response:
    emulator = emulator_of(request)
    body = await read_json(request)
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise ApiError(400, "model is required", param="model")
    messages = _read_messages(body.get("messages"))
    max_tokens = body.get("max_tokens")
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1):
        raise ApiError(400, f"max_tokens {max_tokens!r} is not a whole number from 1", param="max_tokens")
    if body.get("n") not in (None, 1):
        raise ApiError(400, "the emulator gives one choice only: n must be 1", param="n")
    stop = _read_stop(body.get("stop"))
    logprobs = bool(body.get("logprobs"))
    temperature = _read_temperature(body.get("temperature"))
    require_funds(emulator)
    target = _resolve(emulator, name)
    limit = max_tokens or _DEFAULT_MAX_TOKENS
    if target.directory is None:
        completion = UntunedModel(target.base.name).complete(messages, max_tokens=limit)
    else:
        completion = await emulator.models.complete(
            target.directory, messages, max_tokens=limit, temperature=temperature, logprobs=logprobs
        )
    if form(emulator, "thinking") == "by_default" and not _thinking_is_off(body):
        completion = _think_first(completion, limit)
    completion = _cut(completion, stop)
    _note_usage(emulator, target, name, completion)
    answer = ChatResponse(f"chatcmpl-{uuid.uuid4().hex}", int(emulator.clock.timestamp()), name, completion, logprobs)
    if body.get("stream"):
        return StreamingResponse(answer.stream(), media_type="text/event-stream")
    return JSONResponse(answer.whole())


@dataclass(frozen=True)
class ChatResponse:
    """A completion in both shapes that the wire knows."""

    id: str
    created: int
    model: str
    completion: LearnerCompletion
    logprobs: bool

    def _usage(self) -> dict[str, int]:
        prompt, output = self.completion.prompt_tokens, len(self.completion.tokens)
        return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}

    def whole(self) -> dict[str, Any]:
        completion = self.completion
        logprobs = {
            "tokens": completion.tokens,
            "token_logprobs": completion.token_logprobs,
            "token_ids": [_token_id(token) for token in completion.tokens],
        }
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "prompt": [],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": completion.finish_reason,
                    "logprobs": logprobs if self.logprobs else None,
                    "message": {"role": "assistant", "content": completion.text, "tool_calls": []},
                }
            ],
            "usage": self._usage(),
        }

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events: a token each, then the finish with the usage, then `[DONE]`."""
        completion = self.completion
        for token, logprob in zip(completion.tokens, completion.token_logprobs, strict=True):
            choice = {
                "index": 0,
                "delta": {"role": "assistant", "content": token, "token_id": _token_id(token)},
                "logprobs": logprob if self.logprobs else None,
                "finish_reason": None,
            }
            yield self._event(choice, None)
        final = {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": completion.finish_reason,
        }
        yield self._event(final, self._usage())
        yield b"data: [DONE]\n\n"

    def _event(self, choice: dict[str, Any], usage: dict[str, int] | None) -> bytes:
        chunk = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [choice],
            "usage": usage,
        }
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _resolve(emulator: Emulator, name: str) -> Target:
    """What `name` means: an endpoint, one deployment, an attached adapter, or a serverless base model."""
    stop_inactive(emulator)
    endpoint = emulator.state.row("SELECT * FROM endpoints WHERE name = ?", name)
    if endpoint is not None:
        return _resolve_endpoint(emulator, endpoint)
    deployment = emulator.state.row("SELECT * FROM deployments WHERE name = ?", name)
    if deployment is not None:
        if not read_status(emulator, deployment).ready:
            raise _unroutable(name, "the deployment has no ready replica")
        return _target(emulator, deployment)
    base = emulator.catalog.model(name)
    if base is not None and base.name == name and "PRODUCT_SERVERLESS" in base.products:
        return Target(None, base, None)
    model = emulator.state.row("SELECT * FROM models WHERE name = ?", name)
    if model is not None:
        return _resolve_adapter(emulator, model)
    if base is not None:
        raise _not_serverless(name)
    raise ApiError(
        404, f"Unable to access model {name}: there is none of this name", code="model_not_available", param="model"
    )


def _resolve_endpoint(emulator: Emulator, endpoint: sqlite3.Row) -> Target:
    weights = {entry["deploymentId"]: entry["weight"] for entry in json.loads(endpoint["traffic_split"])}
    if not any(weights.values()):
        raise _unroutable(endpoint["name"], "its traffic split is empty")
    rows = emulator.state.rows("SELECT * FROM deployments WHERE endpoint_id = ?", endpoint["id"])
    ready = [row for row in rows if weights.get(row["id"]) and read_status(emulator, row).ready]
    if not ready:
        raise _unroutable(endpoint["name"], "no deployment in its traffic split is ready")
    if len(ready) == 1:
        return _target(emulator, ready[0])
    return _target(emulator, random.choices(ready, [weights[row["id"]] for row in ready])[0])


def _resolve_adapter(emulator: Emulator, model: sqlite3.Row) -> Target:
    base = emulator.catalog.model(model["base_model"])
    assert base is not None
    attached = emulator.state.rows("SELECT * FROM adapters WHERE model_id = ?", model["id"])
    for adapter in attached:
        row = emulator.state.row("SELECT * FROM deployments WHERE id = ?", adapter["deployment_id"])
        assert row is not None, "an adapter goes with its deployment"
        if load_state(emulator, row, adapter) == "READY":
            serves_base = form(emulator, "served") == "base"
            return Target(None if serves_base else model["directory"], base, row)
    if attached:
        raise _unroutable(model["name"], "the adapter is not loaded on a ready replica")
    raise _not_serverless(model["name"])


def _target(emulator: Emulator, deployment: sqlite3.Row) -> Target:
    base = emulator.catalog.model(deployment["model_id"])
    if base is not None:
        return Target(None, base, deployment)
    model = emulator.state.row("SELECT * FROM models WHERE id = ?", deployment["model_id"])
    assert model is not None, "a deployed model is not deleted"
    base = emulator.catalog.model(model["base_model"])
    assert base is not None
    return Target(model["directory"], base, deployment)


def _unroutable(name: str, why: str) -> ApiError:
    return ApiError(503, f"No route to {name}: {why}", kind="routing_error", code="routing_error")


def _not_serverless(name: str) -> ApiError:
    message = f"Unable to access non-serverless model {name}. Create and start a dedicated endpoint for it."
    return ApiError(400, message, code="model_not_available", param="model")


def _note_usage(emulator: Emulator, target: Target, name: str, completion: LearnerCompletion) -> None:
    now = emulator.clock.timestamp()
    prices = target.base.pricing if target.deployment is None else None
    with emulator.state.transaction():
        emulator.state.execute(
            """INSERT INTO token_usage (hour, model, input_price, output_price, requests, input_tokens, output_tokens)
               VALUES (?, ?, ?, ?, 1, ?, ?) ON CONFLICT (hour, model) DO UPDATE SET requests = requests + 1,
               input_tokens = input_tokens + excluded.input_tokens,
               output_tokens = output_tokens + excluded.output_tokens""",
            int(now // 3600),
            name,
            int(prices["input"] * NANO) if prices else 0,
            int(prices["output"] * NANO) if prices else 0,
            completion.prompt_tokens,
            len(completion.tokens),
        )
        if target.deployment is not None:
            emulator.state.update("deployments", target.deployment["id"], last_request_at=now)


def _read_messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise ApiError(400, "messages is required: a list with at least one message", param="messages")
    for position, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ApiError(400, f"message {position} is not an object with a role", param="messages")
        content = message.get("content")
        if isinstance(content, list):
            message["content"] = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        elif content is not None and not isinstance(content, str):
            raise ApiError(400, f"message {position} has no text as content", param="messages")
    return value


def _read_stop(value: Any) -> list[str]:
    if value is None:
        return []
    sequences = [value] if isinstance(value, str) else value
    if not isinstance(sequences, list) or not all(isinstance(sequence, str) for sequence in sequences):
        raise ApiError(400, "stop is a text or a list of texts", param="stop")
    return [sequence for sequence in sequences if sequence]


def _thinking_is_off(body: dict[str, Any]) -> bool:
    """Did the request switch thinking off, in either documented way?"""
    reasoning, template = body.get("reasoning"), body.get("chat_template_kwargs")
    return (isinstance(reasoning, dict) and reasoning.get("enabled") is False) or (
        isinstance(template, dict) and template.get("enable_thinking") is False
    )


def _think_first(completion: LearnerCompletion, limit: int) -> LearnerCompletion:
    """The completion behind a thought, cut at `limit` tokens: what a model that thinks by default says."""
    thought = ["<think>", "\n", "Let", " me", " think", ".", "\n", "</think>", "\n\n"]
    tokens = [*thought, *completion.tokens][:limit]
    logprobs = [*(0.0 for _ in thought), *completion.token_logprobs][:limit]
    reason = "length" if len(tokens) == limit else completion.finish_reason
    return LearnerCompletion("".join(tokens), tokens, logprobs, completion.prompt_tokens, reason)


def _read_temperature(value: Any) -> float:
    if value is None:
        return 0.7
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2:
        raise ApiError(400, f"temperature {value!r} is not a number from 0 to 2", param="temperature")
    return float(value)


def _cut(completion: LearnerCompletion, stop: list[str]) -> LearnerCompletion:
    """The completion up to the first stop sequence, which is left out."""
    positions = [position for sequence in stop if (position := completion.text.find(sequence)) >= 0]
    if not positions:
        return completion
    text = completion.text[: min(positions)]
    tokens: list[str] = []
    length = 0
    for token in completion.tokens:
        if length >= len(text):
            break
        tokens.append(token[: len(text) - length])
        length += len(token)
    return LearnerCompletion(text, tokens, completion.token_logprobs[: len(tokens)], completion.prompt_tokens, "stop")


def _token_id(token: str) -> int:
    """A stable number for a token: the emulator has no vocabulary."""
    return zlib.crc32(token.encode()) & 0x7FFFFFFF
