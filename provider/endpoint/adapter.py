"""The adapter of the port: models that somebody else runs at a URL. It answers questions, and that is all it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from provider.endpoint.arms import arm_of, served_name
from provider.endpoint.asking import OnAnswer, ask_arm
from provider.endpoint.capabilities import CAPABILITIES
from provider.errors import RemoteNotFound
from provider.port import CONCURRENCY, CompletionResult, Messages, Provider, Sampling
from reasoning.config import Config
from storage.ledger.rows import ENDPOINT, Model
from storage.progress import OnProgress


class EndpointProvider(Provider):
    """Registered models, each at its own URL. Nothing is trained, started or stopped, and nobody sends a bill."""

    name = ENDPOINT
    capabilities = CAPABILITIES
    poll_seconds = 1.0
    training_parameters: Mapping[str, Any] = {}

    def __init__(self, config: Config, models: Iterable[Model], *, on_answer: OnAnswer | None = None) -> None:
        """`models` are those that may be asked, by the names that they were registered under."""
        self._config, self._on_answer = config, on_answer
        self._models = {served_name(model.name): model for model in models if model.name}

    def close(self) -> None:
        """Nothing: each question closes its own connection."""
        return

    def ask(
        self,
        model: str,
        conversations: Iterable[Messages],
        sampling: Sampling,
        *,
        concurrency: int = CONCURRENCY,
        progress: OnProgress | None = None,
    ) -> list[CompletionResult]:
        """As `Provider.ask`. It charges nothing: `provider.endpoint.charging` does. Raises RemoteNotFound."""
        if model not in self._models:
            raise RemoteNotFound(f"no model {model!r} is registered: `reasoning models register` does it")
        return ask_arm(
            self._config,
            arm_of(self._models[model]),
            conversations,
            sampling,
            concurrency=concurrency,
            on_answer=self._on_answer,
            progress=progress,
        )
