"""Token counts as both of OpenAI's APIs tell them."""

from __future__ import annotations

from typing import Any

from gateway.protocols.answers import UpstreamAnswer


def read_usage(answer: UpstreamAnswer, usage: Any) -> None:
    """Take over the tokens that an answer of OpenAI's tells."""
    if isinstance(usage, dict):
        answer.input_tokens = usage.get("prompt_tokens", usage.get("input_tokens"))
        answer.output_tokens = usage.get("completion_tokens", usage.get("output_tokens"))
        details = usage.get("prompt_tokens_details", usage.get("input_tokens_details"))
        answer.cache_read_tokens = (details.get("cached_tokens") or 0) if isinstance(details, dict) else 0
