"""Tiers: `small`, `medium` and `large` stand for real models, resolved against what the provider serves today.

Ids age: the models that the first version of this system named can no longer be fine-tuned. A tier is therefore a list
of candidates in order of preference, and the first that can be trained *and* served is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from provider.errors import KeyRefused, NotServable, ProviderRefused, UnexpectedAnswer
from provider.port import BaseModel
from provider.together.answers import listed
from provider.together.client import translate_sdk_errors
from provider.together.prices import hourly_prices
from provider.together.serving_configs import configs_of_supported, fittest

if TYPE_CHECKING:
    from together import Together

TIERS: dict[str, tuple[str, ...]] = {
    "small": ("Qwen/Qwen3.5-2B", "Qwen/Qwen3.5-4B", "Qwen/Qwen3.5-9B"),
    "medium": ("Qwen/Qwen3.5-9B", "meta-llama/Llama-3.3-70B-Instruct-Reference"),
    "large": ("meta-llama/Llama-3.3-70B-Instruct-Reference", "deepseek-ai/DeepSeek-V3.1"),
}


def resolve_tier(client: Together, tier: str, *, lora: bool = True) -> BaseModel:
    """The first usable candidate of a tier (or, given a model's own name, that model). Costs nothing.

    Usable: one row of `/v2/supported-models` has both PRODUCT_FINE_TUNING and PRODUCT_DEDICATED and a certified config
    on hardware with a known price; and a LoRA fine-tune of it yields a merged model, which is what we deploy. Raises
    NotServable with the reason for every candidate.
    """
    candidates = TIERS.get(tier, (tier,) if "/" in tier else ())
    if not candidates:
        raise NotServable(f"no tier {tier!r}: use one of {', '.join(TIERS)}, or a model's name (`owner/name`)")
    with translate_sdk_errors("models that can be trained and served"):
        rows = {getattr(model, "name", None): model for model in listed(client.models.list_supported())}
    prices = hourly_prices(client)
    reasons = []
    for name in candidates:
        try:
            with translate_sdk_errors(f"what serves {name}"):
                chosen = _judge(client, name, rows.get(name), prices)
                if isinstance(chosen, BaseModel) and lora:
                    chosen = _why_not_merged(client, name) or chosen
        except UnexpectedAnswer as error:
            chosen = f"cannot be judged: {error}"
        if isinstance(chosen, BaseModel):
            return chosen
        reasons.append(f"{name} {chosen}")
    raise NotServable(f"no model of tier {tier!r} can be trained and served, nothing was spent: {'; '.join(reasons)}")


def _judge(client: Together, name: str, row: Any, prices: Mapping[str, Decimal]) -> BaseModel | str:
    """The model, or why it cannot be used."""
    if row is None:
        return "is not on the provider's list"
    if "PRODUCT_FINE_TUNING" not in row.products:
        return "cannot be fine-tuned"
    if "PRODUCT_DEDICATED" not in row.products:
        return "cannot be served on a dedicated deployment"
    if row.status == "SUPPORTED_MODEL_STATUS_HIDDEN":
        return "is hidden by the provider"
    if not row.deployment_profiles:
        return "has no certified config"
    configs = configs_of_supported(client, row, prices)
    config = fittest(configs)
    if config is None:
        return "has no config on hardware with a known price"
    carried = next((each.adapters for each in configs if each.adapters != 0), 0)
    return BaseModel(row.id, name, config.config, config.hardware, config.hourly_usd, carried)


def _why_not_merged(client: Together, name: str) -> str | None:
    """Why a LoRA fine-tune of a model would be paid and could not be deployed, by its limits; None where it could."""
    try:
        with translate_sdk_errors(f"limits of {name}"):
            limits = client.fine_tuning.model_limits(model_name=name)
    except KeyRefused:
        raise
    except ProviderRefused as error:
        return f"cannot be fine-tuned ({error})"
    if getattr(limits, "lora_training", None) is None:
        return "cannot be fine-tuned with LoRA"
    if getattr(limits, "merge_output_lora", None) is False:
        return "yields an adapter alone when it is fine-tuned (merge_output_lora is false), which is not deployed here"
    return None
