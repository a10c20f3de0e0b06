"""How likely a language model finds each of a few answers: the log-probabilities of their tokens after a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BATCH = 16
"""So many answers are scored at once."""


def score_answers(model: Any, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> np.ndarray:
    """The log-probability (nats) of each answer's tokens after the prompt, in single precision.

    The prompt is read once. Answers are ids, each ending with the token that ends a message.
    """
    import torch
    from transformers import DynamicCache

    device = next(model.parameters()).device
    scores = np.zeros(len(answers))
    with torch.inference_mode():
        ids = torch.tensor([list(prompt)], device=device)
        read = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        first = torch.log_softmax(read.logits[0, -1].float(), dim=-1)
        kept = [(layer.keys, layer.values) for layer in read.cache.layers]
        for start in range(0, len(answers), BATCH):
            batch = [list(answer) for answer in answers[start : start + BATCH]]
            width = max(len(answer) for answer in batch)
            if width == 1:
                scores[start : start + len(batch)] = [float(first[answer[0]]) for answer in batch]
                continue
            padded = torch.tensor([answer + [0] * (width - len(answer)) for answer in batch], device=device)
            cache = DynamicCache()
            for number, (keys, values) in enumerate(kept):
                cache.update(keys.expand(len(batch), -1, -1, -1), values.expand(len(batch), -1, -1, -1), number)
            # Padding stands to the right, where a causal model's earlier positions do not see it.
            mask = torch.ones((len(batch), len(prompt) + width - 1), dtype=torch.long, device=device)
            out = model(input_ids=padded[:, :-1], cache=cache, attention_mask=mask, use_cache=True)
            later = torch.log_softmax(out.logits.float(), dim=-1)
            for row, answer in enumerate(batch):
                rest = sum(float(later[row, place, token]) for place, token in enumerate(answer[1:]))
                scores[start + row] = float(first[answer[0]]) + rest
    return scores


def generate(
    model: Any, prompt: Sequence[int], *, max_tokens: int, end: int | None
) -> tuple[list[int], list[float], str]:
    """The most likely answer: its ids without the ending, their log-probabilities (nats), and why it ended."""
    import torch

    device = next(model.parameters()).device
    ids: list[int] = []
    log_probabilities: list[float] = []
    with torch.inference_mode():
        read = model(input_ids=torch.tensor([list(prompt)], device=device), use_cache=True, logits_to_keep=1)
        for _ in range(max_tokens):
            log_p = torch.log_softmax(read.logits[0, -1].float(), dim=-1)
            token = int(torch.argmax(log_p))
            if token == end:
                return ids, log_probabilities, "stop"
            ids.append(token)
            log_probabilities.append(float(log_p[token]))
            step = torch.tensor([[token]], device=device)
            read = model(input_ids=step, cache=read.cache, use_cache=True)
    return ids, log_probabilities, "length"
