"""The certified ways of serving a model, the fittest first.

What we serve is a LoRA that the provider merges into its base, in BF16. Of several certified configs the fitting ones
are those of that precision, with adapters switched off; price decides only among equally fit ones. Configs come from
the configs API, where a trained model's base is asked for as the SDK's own command does (together 3.1.1,
`lib/cli/api/endpoints/_utils/_resolve_model.py`), and from the profiles of `/v2/supported-models`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from provider.errors import KeyRefused, NotServable, ProviderRefused, UnexpectedAnswer
from provider.hardware import price_of
from provider.together.answers import count, listed, text
from provider.together.client import translate_sdk_errors
from provider.together.prices import hourly_prices

if TYPE_CHECKING:
    from together import Together

MODEL_PATH = re.compile(r"projects/([^/]+)/models/([^/]+)(?:/revisions/([^/]+))?")
_CONFIG_PATH = re.compile(r"projects/([^/]+)/configs/([^/]+)")

_PRECISIONS = {"bf16": 0, "bfloat16": 0, "fp16": 1, "": 1}  # then all quantised ones
_LOSSY = ("fp8", "int8", "int4", "nvfp4", "mxfp4")
_ADAPTER_MODES = {"disabled": 0, "": 1, "unspecified": 1, "dynamic": 2}  # then `fixed`: it is for one given adapter


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """A certified config on hardware with a known price. `config` is its path, `hardware` an instance type's name."""

    config: str
    hardware: str
    hourly_usd: Decimal
    quantization: str = ""
    adapter_mode: str = ""
    max_adapters: int | None = None

    @property
    def unfitness(self) -> tuple[int, int, Decimal]:
        """Lower is better: precision, adapter mode, price."""
        precision = _PRECISIONS.get(self.quantization.lower(), 2)
        return precision, _ADAPTER_MODES.get(self.adapter_mode, 3), self.hourly_usd

    @property
    def adapters(self) -> int | None:
        """How many adapters it carries; None: it carries some, and does not tell how many."""
        return self.max_adapters if self.adapter_mode == "dynamic" and self.quantization.lower() not in _LOSSY else 0

    @property
    def about(self) -> str:
        """What it is, in words."""
        about = [self.quantization or "precision not told", f"adapters {self.adapter_mode or 'not told'}"]
        return f"{self.config.rsplit('/', 1)[-1]} ({', '.join(about)}) on {self.hardware}"


@dataclass(frozen=True, slots=True)
class _Profile:
    """What a row of `/v2/supported-models` says of one way of serving."""

    path: str
    shape: str
    quantization: str
    adapter_mode: str


def fittest(configs: Iterable[ServingConfig]) -> ServingConfig | None:
    """The config to serve a merged BF16 LoRA with: by precision, then adapter mode, then price."""
    return min(configs, key=lambda config: config.unfitness, default=None)


def configs_of_supported(client: Together, row: Any, prices: Mapping[str, Decimal]) -> list[ServingConfig]:
    """The configs of a row of `/v2/supported-models` whose price is known."""
    profiles = _profiles(row)
    ids = (text(getattr(row, "base_model_id", None)), text(getattr(row, "id", None)))
    known = _configs_by_path(client, dict.fromkeys(id for id in ids if id))
    ours = {path: known[path] for path in profiles if path in known}
    return _priced(profiles, ours or _configs_at(client, profiles), prices) or _priced(profiles, {}, prices)


def configs_of_trained(client: Together, model_object_id: str, base_name: str) -> list[ServingConfig]:
    """The configs that a trained model of ours may be deployed with, also when its base can no longer be trained.

    Raises NotServable, with the reason, where there is none.
    """
    prices = hourly_prices(client)
    profiles = _profiles_of(client, base_name)
    found = _priced(profiles, _configs_by_path(client, _references(client, model_object_id)), prices)
    # What the configs API does not list for it, the catalogue of its base may still certify.
    found = found or _priced(profiles, _configs_at(client, profiles), prices) or _priced(profiles, {}, prices)
    if not found:
        raise NotServable(
            f"model {model_object_id} cannot be deployed: the provider has no certified config for it or for its base "
            f"{base_name} on hardware with a known price. Train the type anew on a model that it serves"
        )
    return found


@contextlib.contextmanager
def _perhaps_untold() -> Iterator[None]:
    """Go on without what the provider refuses to tell. That it refuses the key says nothing of a model."""
    try:
        yield
    except KeyRefused:
        raise
    except (ProviderRefused, UnexpectedAnswer):
        pass


def _references(client: Together, model_object_id: str) -> list[str]:
    """Ids of the models whose configs serve a trained model: its base, then itself."""
    base = None  # the catalogue may still tell
    with _perhaps_untold(), translate_sdk_errors(f"model {model_object_id}"):
        base = base_of(client.models.retrieve(model_object_id))
    return [id for id in (base, model_object_id) if id]


def base_path(client: Together, model_object_id: str) -> str | None:
    """Path of the base of a trained model (`projects/<project>/models/<id>`), None where it is not told."""
    with _perhaps_untold(), translate_sdk_errors(f"model {model_object_id}"):
        path = text(getattr(client.models.retrieve(model_object_id), "base_model", None))
        found = MODEL_PATH.match(path or "")
        return f"projects/{found[1]}/models/{found[2]}" if found else None
    return None


def base_of(model: Any) -> str | None:
    """Id of the base of a trained model, or None where it is not told."""
    found = MODEL_PATH.match(text(getattr(model, "base_model", None)) or "")
    return text(getattr(model, "base_model_id", None)) or (found[2] if found else None)


def _profiles_of(client: Together, base_name: str) -> dict[str, _Profile]:
    with _perhaps_untold(), translate_sdk_errors(f"what serves {base_name}"):
        rows = listed(client.models.list_supported())
        return _profiles(next((row for row in rows if getattr(row, "name", None) == base_name), None))
    return {}  # the configs API tells the rest


def _profiles(row: Any) -> dict[str, _Profile]:
    """The profiles of a supported model by the path of their config; without one that has none."""
    found = {}
    for profile in getattr(row, "deployment_profiles", None) or ():
        path = _config_path(profile)
        if path is None:
            continue
        number, gpu = count(getattr(profile, "gpu_count", None)), text(getattr(profile, "gpu_type", None))
        found[path] = _Profile(
            path=path,
            shape=f"{number}x{gpu}" if number and gpu else "",
            quantization=text(getattr(profile, "quantization", None)) or "",
            adapter_mode=_mode(text(getattr(profile, "adapter_mode", None))),
        )
    return found


def _config_path(profile: Any) -> str | None:
    """Path of a profile's config: the one that it pins, else its certified revision in its model's project."""
    if (pinned := text(getattr(profile, "config", None))) and _CONFIG_PATH.fullmatch(pinned):
        return pinned
    revision = text(getattr(profile, "certified_config_revision_id", None))
    model = MODEL_PATH.match(text(getattr(profile, "model", None)) or "")
    return f"projects/{model[1]}/configs/{revision}" if revision and model else None


def _configs_by_path(client: Together, references: Iterable[str]) -> dict[str, Any]:
    """The configs of these models by their path, uncertified ones left out. Empty where the provider tells none."""
    found: dict[str, Any] = {}
    for reference in references:
        configs: list[Any] = []
        with _perhaps_untold(), translate_sdk_errors(f"configs of {reference}"):
            configs = listed(client.models.configs.list(reference_model_id=reference))
        for config in configs:
            id, project = text(getattr(config, "id", None)), text(getattr(config, "project_id", None))
            if id and project and _is_certified(config):
                path = f"projects/{project}/configs/{id}"
                whole = config if selected_hardware(config) else _configs_at(client, [path]).get(path, config)
                found.setdefault(path, whole)
    return found


def _configs_at(client: Together, paths: Iterable[str]) -> dict[str, Any]:
    """The whole configs at these paths: a list may leave their selectors out. Without what the provider refuses."""
    found = {}
    for path in paths:
        if parts := _CONFIG_PATH.fullmatch(path):
            with _perhaps_untold(), translate_sdk_errors(f"config {parts[2]}"):
                found[path] = client.models.configs.retrieve(parts[2], project_id=parts[1])
    return found


def _is_certified(config: Any) -> bool:
    """Is it certified, or is nothing said of that?"""
    kinds = [getattr(entry, "certification_type", None) for entry in getattr(config, "certifications", None) or ()]
    return not kinds or "CERTIFICATION_TYPE_CERTIFIED" in kinds


def _priced(
    profiles: Mapping[str, _Profile], configs: Mapping[str, Any], prices: Mapping[str, Decimal]
) -> list[ServingConfig]:
    """Configs and profiles joined by their path; without those whose hardware has no known price.

    Where the configs are known, they alone are taken: a profile may pin other weights than those that were trained.
    """
    found = []
    for path in configs or profiles:
        config, profile = configs.get(path), profiles.get(path)
        hardware = selected_hardware(config) or (profile.shape if profile else "")
        price = price_of(prices, hardware) if hardware else None
        if price is None:
            continue
        mode = _mode(selector(config, "adapter_mode") or selector(config, "adapterMode"))
        found.append(
            ServingConfig(
                config=path,
                hardware=hardware,
                hourly_usd=price,
                quantization=(profile.quantization if profile else "") or selector(config, "quantization") or "",
                adapter_mode=mode or (profile.adapter_mode if profile else ""),
                max_adapters=_number(selector(config, "max_adapters") or selector(config, "maxAdapters")),
            )
        )
    return found


def _number(value: str | None) -> int | None:
    return int(value) if value is not None and value.isdigit() else None


def _mode(value: str | None) -> str:
    return (value or "").strip().lower().removeprefix("adapter_mode_")


def selected_hardware(config: Any) -> str | None:
    """Name of the instance type that a config's selectors ask for (`1xnvidia-h100-80gb`), or None."""
    accelerator = selector(config, "accelerator_type")
    count = selector(config, "accelerator_count")
    return f"{count}x{accelerator}" if accelerator and count else None


def selector(config: Any, key: str) -> str | None:
    """The value of one selector of a config, or None."""
    selectors = getattr(config, "selectors", None)
    for entry in selectors if isinstance(selectors, list) else ():
        if getattr(entry, "key", None) == key:
            return text(getattr(entry, "value", None))
    return None
