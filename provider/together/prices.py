"""What things cost, read from the provider. A price that cannot be read is unknown, never zero."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from provider.together.answers import count, listed, text, usd
from provider.together.capabilities import CAPABILITIES
from provider.together.client import translate_sdk_errors
from storage.errors import PriceUnknown

if TYPE_CHECKING:
    from together import Together


def estimate_fine_tune(
    client: Together,
    *,
    base_model: str,
    train_file_id: str,
    validation_file_id: str | None,
    n_epochs: int,
    n_evals: int,
    training_type: dict[str, Any],
) -> Decimal:
    """US dollars that the fine-tune will cost, by the provider's own estimate and at least its minimum.

    Raises PriceUnknown, with the reason, when the provider cannot tell or says that the account cannot pay it.
    """
    request: dict[str, Any] = {"validation_file": validation_file_id} if validation_file_id else {}
    with translate_sdk_errors(f"price of a fine-tune of {base_model}"):
        estimate = client.fine_tuning.estimate_price(
            training_file=train_file_id,
            model=base_model,
            n_epochs=n_epochs,
            n_evals=n_evals if validation_file_id else 0,
            training_type=training_type,  # type: ignore[arg-type]
            training_method={"method": "sft", "train_on_inputs": "auto"},
            **request,
        )
        available = estimate.estimation_available
    if available is not True:
        reason = getattr(estimate, "unavailable_reason", None) or "no reason given"
        raise PriceUnknown(f"the provider cannot say what a fine-tune of {base_model} costs ({reason})")
    said = getattr(estimate, "estimated_total_price", None)
    price = usd(said)
    if price is None:
        told = "names no price" if said is None else f"is {said!r}, which is no price"
        raise PriceUnknown(f"the provider's estimate for a fine-tune of {base_model} {told}")
    if getattr(estimate, "allowed_to_proceed", True) is False:
        raise PriceUnknown(
            f"the account cannot pay the estimated ${price} for a fine-tune of {base_model}; "
            "such a job is cancelled half-way. Add credit at the provider"
        )
    return max(price, CAPABILITIES.minimum_training_usd)


def lora_rank(parameters: Mapping[str, Any], limits: Any) -> int:
    """The rank that a LoRA fine-tune will have: the one asked for, else the model's default, and not above its cap.

    The SDK's `create` takes the same default (together 3.1.1, `lib/resources/fine_tuning.py`), so that what is priced
    is what is trained.
    """
    lora = getattr(limits, "lora_training", None)
    default = count(getattr(lora, "default_rank", None)) or count(getattr(lora, "max_rank", None)) or 64
    cap = count(getattr(lora, "max_rank", None))
    rank = int(parameters.get("lora_r") or default)
    return min(rank, cap) if cap else rank


def hourly_prices(client: Together) -> dict[str, Decimal]:
    """US dollars an hour by the name, the id and `<count>x<gpu type>` of each instance type that has a price."""
    with translate_sdk_errors("prices of hardware"):
        instance_types = listed(client.endpoints.hardware.list())
    prices: dict[str, Decimal] = {}
    for kind in instance_types:
        if cents := usd(getattr(kind, "price_cents_per_hour", None)):  # JSON may write it as text
            price = cents / 100
            names = {name for name in (text(kind.name), text(kind.id)) if name}
            prices |= dict.fromkeys(names, price)
            if count(kind.gpu_count) and text(kind.gpu_type):
                # Two types of the same GPUs at two prices: the dearer one is the safe guess.
                shape = f"{kind.gpu_count}x{kind.gpu_type}".lower()
                prices[shape] = max(price, prices.get(shape, price))
    return prices
