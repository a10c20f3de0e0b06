"""One chat completion: the request of an arm, the answer's text, and how sure the model was of its decision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from reasoning.decision_types import AnswerFormat, DecisionType
from reasoning.errors import CallFailed, UnparseableAnswer
from reasoning.formats import get_form
from reasoning.formats.markup import check_length
from reasoning.questions import Probabilities
from reasoning.records import Message
from reasoning.serving.model_calls import BYTES_PER_TOKEN, failed_status, load_answer
from reasoning.serving.routes import Arm, Logprobs

LOGPROBS_FIELDS: Mapping[Logprobs, Mapping[str, Any]] = {
    "count": {"logprobs": 1},
    "flag": {"logprobs": True, "top_logprobs": 1},
    "none": {},
}
"""What a request says to get the log-probability of each token."""


def logprobs_fields(dialect: Logprobs, alternatives: int = 1) -> dict[str, Any]:
    """What a request says to get the log-probabilities of each token and of so many alternatives to it."""
    asked = dict(LOGPROBS_FIELDS[dialect])
    return {name: value if value is True else alternatives for name, value in asked.items()}


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model said. `tokens` and `token_logprobs` (natural logarithms) are parallel, and empty when not sent.

    `alternatives` has the log-probabilities of other tokens at each place, by their text; empty when not sent.
    `finish_reason` is why it ended, in the server's own word; None when the server did not say.
    """

    text: str
    tokens: Sequence[str] = ()
    token_logprobs: Sequence[float | None] = ()
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    alternatives: Sequence[Mapping[str, float]] = ()


# The model ended its answer itself. Anything else, known or not (`length`, `content_filter`, `abort`), may have cut it.
_ENDED = frozenset(
    [
        *("stop", "eos", "eos_token", "stop_sequence", "stop_token", "end_turn", "end", "completed"),
        *("tool_calls", "function_call"),
    ]
)


def is_end(finish_reason: str) -> bool:
    """Did the model end its answer itself? Any other reason, known or not, may have cut it."""
    return finish_reason.lower() in _ENDED


def check_whole(completion: Completion, max_tokens: int) -> None:
    """Raises `UnparseableAnswer` for a completion that was cut or filtered, or is longer than what was asked for."""
    reason = completion.finish_reason
    if reason and not is_end(reason):
        raise UnparseableAnswer(f"the completion was cut: finish_reason {reason[:60]!r}")
    check_length(completion.text, BYTES_PER_TOKEN * max_tokens)


def request_body(arm: Arm, decision_type: DecisionType, messages: list[Message], *, stream: bool = False) -> bytes:
    """The JSON of `POST {base_url}/v1/chat/completions`."""
    return chat_body(
        arm,
        messages,
        max_tokens=decision_type.max_tokens,
        temperature=decision_type.temperature,
        fields=decision_type.request_fields,
        stream=stream,
        alternatives=decision_type.form.top_logprobs(decision_type),
    )


def chat_body(
    arm: Arm,
    messages: Sequence[Mapping[str, Any]],
    *,
    max_tokens: int,
    temperature: float,
    fields: Mapping[str, Any],
    stream: bool = False,
    alternatives: int = 1,
) -> bytes:
    """The same of any messages. `fields` are further fields of the request (`DecisionType.request_fields`).

    `alternatives` is how many tokens' log-probabilities are asked for at each place.
    """
    body: dict[str, Any] = {
        "model": arm.asked_as,
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": temperature,
        **logprobs_fields(arm.logprobs, alternatives),
        **fields,
    }
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    return orjson.dumps(body)


def read_completion(status: int, body: bytes) -> Completion:
    """The completion in a response. Raises `CallFailed` for an error status and for what is not a completion."""
    if status != 200:
        raise failed_status(status, body)
    try:
        raw = load_answer(body)
        choice = raw["choices"][0]
        text = choice["message"]["content"]
        tokens, logprobs = read_logprobs(choice.get("logprobs"))
        input_tokens, output_tokens = read_usage(raw.get("usage"))
        finish_reason = read_finish_reason(choice)
        alternatives = read_alternatives(choice.get("logprobs"))
    except CallFailed:
        raise
    except Exception as error:  # whatever a server says, the agent goes on
        raise CallFailed("provider_error", f"not a chat completion: {type(error).__name__}: {error}") from None
    text = text if isinstance(text, str) else ""
    return Completion(text, tokens, logprobs, input_tokens, output_tokens, finish_reason, alternatives)


def read_finish_reason(choice: dict[str, Any]) -> str | None:
    """Why a choice ended, in the server's word. None when it does not say."""
    reason = choice.get("finish_reason")
    return None if reason is None else str(reason)


def read_logprobs(raw: Any) -> tuple[list[str], list[float | None]]:
    """Tokens and their log-probabilities, of Together's form or of OpenAI's; empty when there are none."""
    if not isinstance(raw, dict):
        return [], []
    if isinstance(content := raw.get("content"), list):
        try:
            return [item["token"] for item in content], [item["logprob"] for item in content]
        except (LookupError, TypeError):  # no reason to refuse the answer
            return [], []
    tokens, logprobs = raw.get("tokens"), raw.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(logprobs, list) or len(tokens) != len(logprobs):
        return [], []
    return tokens, logprobs


def read_alternatives(raw: Any) -> list[dict[str, float]]:
    """The log-probabilities of other tokens at each place, of Together's form or of OpenAI's; empty where there are
    none."""
    if not isinstance(raw, dict):
        return []
    try:
        if isinstance(content := raw.get("content"), list):
            return [{each["token"]: float(each["logprob"]) for each in item["top_logprobs"]} for item in content]
        if isinstance(top := raw.get("top_logprobs"), list):
            return [{str(token): float(logprob) for token, logprob in (item or {}).items()} for item in top]
    except (LookupError, TypeError, ValueError, AttributeError):  # no reason to refuse the answer
        pass
    return []


def read_probabilities(decision_type: DecisionType, completion: Completion) -> Probabilities | None:
    """The probability of every option, where the type's form has options and the server told enough. Never raises."""
    try:
        return decision_type.form.probabilities(
            decision_type, completion.tokens, completion.token_logprobs, completion.alternatives
        )
    except (TypeError, ValueError, LookupError, StopIteration, OverflowError):
        return None  # what a server calls tokens and numbers is its own


def measure_confidence(answer: AnswerFormat, completion: Completion) -> float | None:
    """How probable the model found the decision that it wrote, in 0..1. None when that was not measured.

    `answer` names the answer form. By a deciding span (``label``, ``plan``): exp(sum of log p) over the tokens that
    spell it and the one that ends it, that is p(value | prompt, and whatever reasoning the model wrote before it).

    By the mean (``code``, ``turn``): exp(mean of log p) over all tokens, the inverse of the perplexity.
    """
    tokens, logprobs = completion.tokens, completion.token_logprobs
    if not tokens:
        return None
    try:
        form = get_form(answer)
        if form.confidence == "mean":
            known = [p for p in logprobs if p is not None]
            confidence = math.exp(sum(known) / len(known)) if known else math.nan
            return min(confidence, 1.0) if math.isfinite(confidence) else None
        span = form.deciding_span(completion.text)
        if span is None or "".join(tokens) != completion.text:
            return None
        total, at = 0.0, 0
        for token, logprob in zip(tokens, logprobs, strict=True):
            if at <= span[1] and at + len(token) > span[0]:
                if logprob is None:
                    return None
                total += logprob
            at += len(token)
        confidence = math.exp(total)
    except (TypeError, ValueError, OverflowError):  # what a server calls tokens and numbers is its own
        return None
    return min(confidence, 1.0) if math.isfinite(confidence) else None


def read_usage(raw: Any) -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the answer, each None when the server did not count it."""
    if not isinstance(raw, dict):
        return None, None
    return _token_count(raw.get("prompt_tokens")), _token_count(raw.get("completion_tokens"))


def _token_count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None
