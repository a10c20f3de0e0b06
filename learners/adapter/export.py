"""An adapter as GGUF, which llama.cpp's servers load beside the base model (`--lora FILE`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from learners import artifact
from learners.adapter.base import Base, load_base
from learners.adapter.model import WEIGHTS
from learners.errors import ArtifactError, MissingExtra

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2"}
"""Names of the architectures in GGUF, by those of transformers."""
_PREFIX = "base_model.model."


def export_gguf(directory: Path, target: Path, *, base: str | None = None) -> None:
    """Write the adapter in `directory` as a GGUF file in half precision.

    Args:
        directory: what `train_adapter` kept.
        target: the file, replaced if it is there.
        base: where the base model is now, if it moved.

    Raises:
        ArtifactError: there is no finished adapter, or its architecture has no GGUF form here.
        MissingExtra: a package is not installed.
    """
    _, about = artifact.load(directory)
    try:
        import gguf
        from safetensors.numpy import load_file
    except ImportError as error:
        raise MissingExtra(
            f"the export needs {error.name}, which is not installed; pip install 'custom-reasoning[adapter]'"
        ) from error
    loaded = load_base(base or about["base"]["name"])
    kind = loaded.model.config.model_type
    if kind not in ARCHITECTURES:
        raise ArtifactError(f"no GGUF form is known for {kind!r}; known: {', '.join(ARCHITECTURES)}; keep safetensors")
    temporary = target.with_name(f"{target.name}.part")
    writer = gguf.GGUFWriter(temporary, ARCHITECTURES[kind])
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(about["lora"]["alpha"]))
    for name, array in _tensors(loaded, load_file(directory / WEIGHTS), gguf):
        writer.add_tensor(name, array.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(target)


def _tensors(base: Base, weights: dict[str, np.ndarray], gguf: Any) -> Iterator[tuple[str, np.ndarray]]:
    config = base.model.config
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == ARCHITECTURES[config.model_type])
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for key, array in sorted(weights.items()):
        module, _, part = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        name = names.get_name(module)
        if name is None or part not in ("A", "B"):
            raise ArtifactError(f"{WEIGHTS} holds {key!r}, which has no place in a GGUF file; keep safetensors")
        if part == "B" and ARCHITECTURES[config.model_type] == "llama":
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
                module.rpartition(".")[2]
            )
            if heads:
                array = _interleave(array, heads)
        yield f"{name}.weight.lora_{part.lower()}", array


def _interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a rotary projection in llama.cpp's order: the two halves of each head alternate."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
