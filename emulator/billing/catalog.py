"""The base models, their serving configs, the hardware and every price: the data of `catalog.json`.

The list has, on purpose, a model that may be fine-tuned but not deployed (Qwen3.5-4B), one whose training has no
listed price (DeepSeek-V3.1), and one with two serving configs (Llama-3.3-70B): a client has to refuse the first two
and to choose for the third.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from decimal import Decimal
from importlib.resources import files

NANO = 1_000_000_000
"""Nano-USD in a dollar: Together's unit of `total_price`, and the emulator's of every amount."""

# An unknown price is never zero: what has no listed price is billed like the dearest documented tier.
UNLISTED_TRAINING_PRICE = {"lora": Decimal("2.90"), "full": Decimal("7.25")}


@dataclass(frozen=True)
class InstanceType:
    """Hardware that one replica runs on. The price is in whole cents an hour."""

    id: str
    name: str
    gpu_type: str
    gpu_count: int
    gpu_memory_gib: int
    price_cents_per_hour: int
    region: str
    headroom: int


@dataclass(frozen=True)
class Config:
    """A certified way to serve one base model."""

    id: str
    model_id: str
    hardware: str
    quantization: str = "BF16"
    adapter_mode: str = "dynamic"
    max_adapters: int = 0
    """How many LoRA adapters a deployment with it carries at once; 0: none. By the service's page on LoRA adapters."""

    @property
    def serves_trained(self) -> bool:
        """May a trained model (BF16, merged into its base) be deployed with it?"""
        return self.quantization == "BF16" and self.adapter_mode != "fixed"


@dataclass(frozen=True)
class BaseModel:
    """A model that is there without training. Prices are USD per 1M tokens; None: not listed."""

    id: str
    name: str
    display_name: str
    parameters: int
    context_length: int
    architecture: str
    full_training: bool
    products: tuple[str, ...]
    configs: tuple[Config, ...]
    training: dict[str, Decimal] | None
    pricing: dict[str, Decimal] | None

    @property
    def variants(self) -> tuple[Config, ...]:
        """Further certified configs of the same hardware and price, for the form `profiles=several`."""
        return tuple(
            replace(
                config, id=f"{config.id}_{quantization}_{mode}".lower(), quantization=quantization, adapter_mode=mode
            )
            for config in self.configs
            for quantization, mode in (("FP8", "fixed"), ("FP8", "dynamic"), ("BF16", "fixed"), ("BF16", "disabled"))
        )

    @property
    def revision_id(self) -> str:
        return self.id.replace("ml_", "mr_", 1)

    @property
    def trainable(self) -> bool:
        return "PRODUCT_FINE_TUNING" in self.products

    def training_price(self, kind: str) -> int:
        """Nano-USD per 1M tokens for `kind` ("lora" or "full")."""
        prices = self.training or UNLISTED_TRAINING_PRICE
        return int(prices[kind] * NANO)


@dataclass(frozen=True)
class Catalog:
    """The hardware and base models that the emulator offers, and its prices."""

    instance_types: tuple[InstanceType, ...]
    models: tuple[BaseModel, ...]
    minimum_training_price: Decimal

    def model(self, id_or_name: str) -> BaseModel | None:
        return next((model for model in self.models if id_or_name in (model.id, model.name)), None)

    def config(self, id: str) -> Config | None:
        return next((c for model in self.models for c in (*model.configs, *model.variants) if c.id == id), None)

    def instance_type(self, id_or_name: str) -> InstanceType | None:
        return next((kind for kind in self.instance_types if id_or_name in (kind.id, kind.name)), None)


@functools.cache
def load_catalog() -> Catalog:
    raw = json.loads((files("emulator.billing") / "catalog.json").read_text())
    models = []
    for entry in raw["models"]:
        configs = tuple(Config(model_id=entry["id"], **config) for config in entry.pop("configs"))
        models.append(
            BaseModel(
                **entry
                | {
                    "products": tuple(entry["products"]),
                    "configs": configs,
                    "training": _decimals(entry["training"]),
                    "pricing": _decimals(entry["pricing"]),
                }
            )
        )
    return Catalog(
        instance_types=tuple(InstanceType(**entry) for entry in raw["instance_types"]),
        models=tuple(models),
        minimum_training_price=Decimal(raw["minimum_training_price"]),
    )


def _decimals(prices: dict[str, str] | None) -> dict[str, Decimal] | None:
    return {name: Decimal(price) for name, price in prices.items()} if prices else None
