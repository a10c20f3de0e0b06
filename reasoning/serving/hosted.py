"""Calls of hosted decision models (`reasoning.decision_models`), without the waiting."""

from __future__ import annotations

from typing import Any

import orjson

from reasoning.decision_models import DecisionModel
from reasoning.errors import CallFailed, UnparseableAnswer
from reasoning.fallback import Fallback
from reasoning.questions import QuestionSet
from reasoning.serving.decision_wires import WIRES, Unaskable
from reasoning.serving.model_calls import failed_status


def hosted_request(
    model: DecisionModel, state: Any, asked: QuestionSet
) -> tuple[str, tuple[tuple[bytes, bytes], ...], bytes, float]:
    """URL, headers, body and deadline in seconds of the call. Raises `CallFailed` for a state that is not JSON."""
    try:
        body = orjson.dumps(WIRES[model.wire].write_request(model.model, state, asked))
    except (TypeError, Unaskable) as error:
        raise CallFailed("disabled", f"the state is not JSON: {error}") from None
    headers = [(b"Content-Type", b"application/json")]
    if model.api_key:
        headers.append((b"Authorization", f"Bearer {model.api_key}".encode()))
    return f"{model.url}{model.path}", tuple(headers), body, model.timeout_s


def read_hosted(model: DecisionModel, asked: QuestionSet, status: int, body: bytes) -> Fallback:
    """The answers, their probabilities, and what they used. Raises `CallFailed`."""
    if status != 200:
        raise failed_status(status, body)
    try:
        told = WIRES[model.wire].read_response(body, asked)
    except UnparseableAnswer as error:
        raise CallFailed("unparseable", str(error)) from None
    return Fallback(
        told.answers,
        probabilities=told.probabilities,
        model=told.model or model.model,
        input_tokens=told.input_tokens,
        output_tokens=told.output_tokens,
        cache_read_tokens=told.cache_read_tokens,
        reasoning_tokens=told.reasoning_tokens,
    )
