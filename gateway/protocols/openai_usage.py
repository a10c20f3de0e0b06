"""Token counts as both of OpenAI's APIs tell them."""

from __future__ import annotations

from typing import Any

from gateway.protocols.answers import UpstreamAnswer


def read_usage(answer: UpstreamAnswer, usage: Any) -> None:
    """Take over the tokens that an answer of OpenAI's tells. What is no number of tokens is not told."""
    if isinstance(usage, dict):
        answer.input_tokens = _count(usage.get("prompt_tokens", usage.get("input_tokens")))
        answer.output_tokens = _count(usage.get("completion_tokens", usage.get("output_tokens")))
        read = usage.get("prompt_tokens_details", usage.get("input_tokens_details"))
        answer.cache_read_tokens = (_count(read.get("cached_tokens")) or 0) if isinstance(read, dict) else 0
        wrote = usage.get("completion_tokens_details", usage.get("output_tokens_details"))
        answer.reasoning_tokens = _count(wrote.get("reasoning_tokens")) if isinstance(wrote, dict) else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
