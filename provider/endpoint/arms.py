"""How a registered model is asked: the arm of its server, and what its tokens can cost at most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, cast

from provider.money.token_prices import MESSAGE_TOKENS, tokens_usd
from reasoning.serving.routes import Arm, Logprobs
from storage.ledger.rows import Model, required

_PREFIX = "endpoint/"


def served_name(name: str) -> str:
    """The name of a registered model in the decision log, in routes and in the ledger."""
    return f"{_PREFIX}{name}"


def is_registered(model: str) -> bool:
    """Is it the name of a registered model? Such an arm is ours: it goes unless the ledger has the model serving."""
    return model.startswith(_PREFIX)


def arm_of(model: Model, **changes: Any) -> Arm:
    """The arm that asks a registered model at its server. `changes` are other fields of the arm."""
    own = {
        "name": "custom",
        "source": "custom",
        "weight": 1.0,
        "model": served_name(required(model.name, f"the name of model {model.id}")),
        "base_url": required(model.base_url, f"the URL of model {model.id}"),
        "request_model": model.model_object_id,
        "key_variable": model.key_variable,
        "logprobs": cast("Logprobs", model.logprobs or "none"),
        "input_usd_per_mtok": _price(model.input_million_usd),
        "output_usd_per_mtok": _price(model.output_million_usd),
    }
    return Arm(**{**own, **changes})


def most_usd(model: Model, conversations: Iterable[Sequence[Mapping[str, Any]]], max_tokens: int) -> Decimal:
    """US dollars that the answers to these conversations cost at most, each of at most `max_tokens` tokens."""
    prompt, answers = 0, 0
    for messages in conversations:
        answers += 1
        prompt += sum(len(str(message["content"]).encode()) + MESSAGE_TOKENS for message in messages)
    return tokens_usd(model, prompt, answers * max_tokens)


def _price(usd: Decimal | None) -> str:
    return f"{usd or Decimal(0):f}"
