"""A trained adapter on its base model: completes a chat request, in the form of its training data.

Where the training answers were few, they are the only answers: each is scored by its tokens' log-probabilities, and the
scores are calibrated. Otherwise the answer is generated, greedily.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

from learners import artifact
from learners.adapter.base import Base, load_base, render, tokenize
from learners.adapter.scoring import generate, score_answers
from learners.answers import ParsedAnswer, parse_answer
from learners.completion import LearnerCompletion
from learners.errors import ArtifactError, MissingExtra

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


class AdapterModel:
    """A base model with an adapter. Threads may share it; they take turns."""

    def __init__(self, base: Base, model: Any, answers: Sequence[str], temperature: float, offsets: np.ndarray) -> None:
        self.base = base
        self.model = model.eval()
        self.answers: list[ParsedAnswer] = [parse_answer(text) for text in answers]
        self.temperature = temperature
        self.offsets = offsets
        eos = base.tokenizer.eos_token_id
        self._end = None if eos is None else int(eos)
        endings = [] if self._end is None else [self._end]
        self._ids = [[*tokenize(base, text), *endings] for text in answers]
        self._lock = threading.Lock()

    def scores(self, messages: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The log-probabilities of `answers` as the language model gives them."""
        with self._lock:
            return score_answers(self.model, self._prompt(messages), self._ids)

    def log_probabilities(self, messages: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Calibrated log-probabilities of `answers`."""
        return np.asarray(log_softmax(self.scores(messages) / self.temperature))

    def decide_messages(self, messages: Sequence[Mapping[str, Any]]) -> tuple[ParsedAnswer, float]:
        """The answer decided for and its calibrated log-probability (natural)."""
        log_p = self.log_probabilities(messages)
        best = int(np.argmax(log_p + self.offsets))
        return self.answers[best], float(log_p[best])

    def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        logprobs: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> LearnerCompletion:
        """Answer a chat request; arguments as of `learners.model.Model.complete`."""
        prompt = self._prompt(messages)
        if not self.answers:
            with self._lock:
                ids, given, reason = generate(self.model, prompt, max_tokens=max_tokens, end=self._end)
            pieces = self._pieces(ids)
            return LearnerCompletion("".join(pieces), pieces, given if logprobs else [], len(prompt), reason)
        answer, log_probability = self.decide_messages(messages)
        tokens, given = answer.tokens(log_probability)
        cut = len(tokens) > max_tokens
        tokens, given = tokens[:max_tokens], given[:max_tokens]
        return LearnerCompletion(
            "".join(tokens), tokens, given if logprobs else [], len(prompt), "length" if cut else "stop"
        )

    def _prompt(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return tokenize(self.base, render(self.base, messages))

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token: joined they are the text, also where a character needs several tokens."""
        pieces, before = [], ""
        for count in range(1, len(ids) + 1):
            text = self.base.tokenizer.decode(ids[:count], skip_special_tokens=True)
            whole = text if count == len(ids) or not text.endswith("\ufffd") else before
            pieces.append(whole[len(before) :])
            before = whole
        return pieces


def load_adapter(directory: Path, *, base: str | None = None) -> AdapterModel:
    """Load what `train_adapter` kept. `base` says where the base model is now, if it moved.

    Nothing of `adapter_config.json` chooses what is loaded: the artifact's own hashes and `model.json` do.

    Raises:
        ArtifactError: there is no finished adapter, a file is damaged, or the base model is another one.
        MissingExtra: torch, transformers, or peft is not installed.
    """
    parts, about = artifact.load(directory)
    try:
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingExtra(
            f"an adapter needs {error.name}, which is not installed; pip install 'custom-reasoning[adapter]'"
        ) from error
    try:
        told, lora = about["base"], about["lora"]
        loaded = load_base(base or told["name"])
        if loaded.identity != told["identity"]:
            raise ArtifactError(
                f"the adapter in {directory} was trained on another base model than {loaded.name!r} is now "
                f"({told['identity'][:12]}, not {loaded.identity[:12]}); give the right one"
            )
        config = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=lora["modules"])
        model = get_peft_model(loaded.model, config)
        report = set_peft_model_state_dict(model, load_file(directory / WEIGHTS))
        if report.unexpected_keys:
            raise ArtifactError(f"{WEIGHTS} does not fit the base model: {report.unexpected_keys[:3]}; train it again")
        return AdapterModel(
            loaded, model, parts.values["answers"], parts.values["temperature"], parts.arrays["offsets"]
        )
    except (KeyError, TypeError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"no usable adapter in {directory}: {error}; train it again") from error
