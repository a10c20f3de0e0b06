"""What a model answers with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from learners.tokens import count_message_tokens

_PIECE = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True)
class LearnerCompletion:
    """One answer; `token_logprobs` are natural logarithms, one per token, and the tokens joined are the text."""

    text: str
    tokens: list[str]
    token_logprobs: list[float]
    prompt_tokens: int
    finish_reason: str
    alternatives: Sequence[Mapping[str, float]] = ()
    """Log-probabilities of other tokens at each place, by their text; empty where there are none."""


def fixed_completion(
    text: str, logprob: float, messages: list[dict[str, Any]], *, max_tokens: int
) -> LearnerCompletion:
    """`text` as a completion of at most `max_tokens` tokens, `logprob` being the logarithm of its probability."""
    pieces = _PIECE.findall(text) or [""]
    kept = pieces[:max_tokens]
    return LearnerCompletion(
        text="".join(kept),
        tokens=kept,
        token_logprobs=[logprob] + [0.0] * (len(kept) - 1),
        prompt_tokens=count_message_tokens(messages),
        finish_reason="stop" if len(kept) == len(pieces) else "length",
    )
