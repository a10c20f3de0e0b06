"""Trained models in memory, asked on a thread of their own so that the event loop stays free.

One thread: the models are small and hold the interpreter lock, so more threads would only make every answer later.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from learners.completion import LearnerCompletion, fixed_completion

TRAINERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sklearn": ("learners.training", {"learner": "linear"}),
    "auto": ("learners.training", {"learner": "auto"}),
    "majority": ("learners.majority", {}),
}
"""Trainers by name: a module with `train` and `load_model`, and the options of its `train`."""

TRAINER_FILE = "trainer.json"


class ChatModel(Protocol):
    """A model that answers chat completions."""

    def complete(
        self, messages: list[dict[str, Any]], *, max_tokens: int, temperature: float, logprobs: bool
    ) -> LearnerCompletion: ...


class UntunedModel:
    """A base model as the emulator has it: no weights, no knowledge, and it says so."""

    def __init__(self, name: str) -> None:
        self._text = f"I am {name}, untuned. The local emulator has no weights of me, so I cannot answer."

    def complete(
        self, messages: list[dict[str, Any]], *, max_tokens: int, temperature: float = 0.0, logprobs: bool = False
    ) -> LearnerCompletion:
        return fixed_completion(self._text, 0.0, messages, max_tokens=max_tokens)


class ModelCache:
    """Loads each model once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._models: dict[str, ChatModel] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")

    def warm(self, name: str) -> None:
        """Begin to load the model in the directory `name`, so that the first question finds it there."""
        self._thread.submit(self._load, name)

    async def complete(
        self, name: str, messages: list[dict[str, Any]], *, max_tokens: int, temperature: float, logprobs: bool
    ) -> LearnerCompletion:
        """Ask the model in the directory `name`."""

        def ask() -> LearnerCompletion:
            model = self._load(name)
            return model.complete(messages, max_tokens=max_tokens, temperature=temperature, logprobs=logprobs)

        return await asyncio.get_running_loop().run_in_executor(self._thread, ask)

    def remove(self, name: str) -> None:
        """Forget the model in the directory `name` and delete it."""
        self._models.pop(name, None)
        shutil.rmtree(self._directory / name, ignore_errors=True)
        (self._directory / f"{name}.tar.gz").unlink(missing_ok=True)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _load(self, name: str) -> ChatModel:
        model = self._models.get(name)
        if model is None:
            directory = self._directory / name
            trainer = json.loads((directory / TRAINER_FILE).read_text())["trainer"]
            model = self._models[name] = importlib.import_module(TRAINERS[trainer][0]).load_model(directory)
        return model
