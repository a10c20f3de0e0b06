"""LoRA fine-tuning (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021) with TRL and PEFT.

The loss counts the tokens of the answers only. The prompt is rendered by the chat template that serving uses, and that
is checked for every row. Training stops when the validation loss rises, and keeps the best epoch.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

from learners import artifact
from learners.adapter.base import Base, load_base, split_row
from learners.adapter.model import CONFIG, WEIGHTS, AdapterModel
from learners.calibration import automated, fit_temperature
from learners.errors import DatasetError, MissingExtra, TrainingError
from learners.examples import read_rows
from learners.progress import Progress

Row = tuple[list[dict[str, Any]], str]
"""The messages before an answer, and the answer's text."""
MAX_ANSWERS = 255
"""Up to so many distinct answers are scored, more are generated."""
MAX_CALIBRATION_ROWS = 300
"""A row costs a reading of its prompt."""


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """How an adapter is trained."""

    base: str
    """A folder with a checkpoint, a Hugging Face name, or `smollm2-135m`."""
    epochs: int = 3
    rank: int = 16
    learning_rate: float = 2e-4
    batch_size: int = 8
    max_tokens: int = 2_048
    """Longer rows are left out, and counted: a cut prompt would be another question."""
    seconds: float = 3_600.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class AdapterResult:
    """What a training made."""

    rows: int
    unused_rows: int
    validation_rows: int
    answers: int
    """Distinct answers that are chosen from; 0: answers are generated."""
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)


def train_adapter(
    train_path: Path,
    validation_path: Path | None,
    output_dir: Path,
    options: AdapterOptions,
    *,
    progress: Progress | None = None,
) -> AdapterResult:
    """Train an adapter on a dataset and keep it in a folder.

    A training that was killed goes on from its last finished epoch when it is started again with the same arguments.

    Args:
        train_path: conversational JSONL.
        validation_path: rows that choose when to stop, and calibrate. Without them every tenth training row
            is held out.
        output_dir: made if missing; gets the artifact: `model.json`, and the adapter as safetensors.
        options: the base model and the recipe.
        progress: called with the finished fraction (0..1) and the losses known by then.

    Raises:
        DatasetError: the dataset cannot be learned from.
        TrainingError: memory or time was over.
        MissingExtra: the packages are not installed.
        ArtifactError: the base model cannot be used.
    """
    started = time.monotonic()
    report = progress or (lambda fraction, metrics: None)
    base = load_base(options.base)
    rows = _read(train_path)
    held_out = _read(validation_path) if validation_path else []
    if not held_out:
        rows, held_out = [r for i, r in enumerate(rows) if i % 10 != 9], rows[9::10]
    encoded = [pair for pair in (split_row(base, *row) for row in rows) if _fits(pair, options)]
    judged = [row for row in held_out if _fits(split_row(base, *row), options)]
    if not encoded:
        raise DatasetError(f"{train_path.name}: no row has at most {options.max_tokens} tokens; raise max_tokens")
    report(0.05, {})
    fitting = _Fit(base, options, output_dir / "checkpoints", started + options.seconds)
    model, losses = fitting.run(encoded, [split_row(base, *row) for row in judged], report)
    answers = _answers(answer for _, answer in rows)
    made, metrics = _calibrate(base, model, answers, judged)
    result = AdapterResult(
        len(encoded), len(rows) - len(encoded), len(judged), len(answers), time.monotonic() - started, losses | metrics
    )
    _save(output_dir, made, result, options)
    report(1.0, result.metrics)
    return result


def _save(output_dir: Path, made: AdapterModel, result: AdapterResult, options: AdapterOptions) -> None:
    import peft
    import torch
    import transformers
    import trl

    made.model.save_pretrained(output_dir, safe_serialization=True)
    (output_dir / "README.md").unlink(missing_ok=True)  # an empty template of a card
    lora = made.model.peft_config["default"]
    base = made.base
    values = {"answers": [answer.text for answer in made.answers], "temperature": made.temperature}
    artifact.save(
        output_dir,
        artifact.Parts(values, {"offsets": made.offsets}),
        {
            "learner": "adapter",
            "base": {"name": base.name, "identity": base.identity, "licence": base.licence},
            "lora": {"rank": lora.r, "alpha": lora.lora_alpha, "modules": sorted(lora.target_modules)},
            "options": asdict(options),
            "versions": {each.__name__: str(each.__version__) for each in (torch, transformers, peft, trl)},
            **asdict(result),
        },
        files=(WEIGHTS, CONFIG),
    )
    shutil.rmtree(output_dir / "checkpoints", ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Fit:
    base: Base
    options: AdapterOptions
    checkpoints: Path
    until: float
    """On the monotonic clock."""

    def run(
        self,
        train: Sequence[tuple[list[int], list[int]]],
        validation: Sequence[tuple[list[int], list[int]]],
        report: Progress,
    ) -> tuple[Any, dict[str, float]]:
        """The base model with the adapter of the best epoch, and its losses (nats a token)."""
        try:
            from datasets import Dataset
            from peft import LoraConfig
            from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
            from trl import SFTConfig, SFTTrainer
        except ImportError as error:
            raise MissingExtra(
                f"an adapter needs {error.name}, which is not installed; pip install 'custom-reasoning[adapter]'"
            ) from error
        until = self.until

        class Watch(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                losses = {key: float(state.log_history[-1][key]) for key in ("loss",) if _has(state.log_history, key)}
                report(0.05 + 0.85 * state.global_step / max(state.max_steps, 1), losses)
                if time.monotonic() > until:
                    control.should_training_stop = True

        trainer = SFTTrainer(
            model=self.base.model,
            args=SFTConfig(output_dir=str(self.checkpoints), **self._settings(bool(validation))),
            train_dataset=Dataset.from_list([_row(pair) for pair in train]),
            eval_dataset=Dataset.from_list([_row(pair) for pair in validation]) if validation else None,
            processing_class=self.base.tokenizer,
            peft_config=LoraConfig(
                r=self.options.rank,
                lora_alpha=2 * self.options.rank,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            callbacks=[Watch(), *([EarlyStoppingCallback(1)] if validation else [])],
        )
        trainer.remove_callback(PrinterCallback)  # progress is reported by `Watch`
        try:
            done = trainer.train(resume_from_checkpoint=any(self.checkpoints.glob("checkpoint-*/trainer_state.json")))
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or "memory" in str(error).lower():
                raise TrainingError(
                    f"out of memory: {str(error).splitlines()[0] if str(error) else 'the process hit its limit'}; "
                    "lower batch_size or max_tokens, or use a smaller base model"
                ) from error
            raise
        if time.monotonic() > until:
            raise TrainingError(
                f"not finished within {self.options.seconds:g} s; allow more time, use fewer rows or a smaller base "
                "model"
            )
        losses = {"train_loss": float(done.training_loss)}
        evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        return trainer.model, losses | ({"eval_loss": float(min(evaluated))} if evaluated else {})

    def _settings(self, validated: bool) -> dict[str, Any]:
        import torch

        options, gpu = self.options, torch.cuda.is_available()
        return {
            "num_train_epochs": options.epochs,
            "learning_rate": options.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.05,
            "per_device_train_batch_size": options.batch_size,
            "per_device_eval_batch_size": options.batch_size,
            "max_length": options.max_tokens,
            "eval_strategy": "epoch" if validated else "no",
            "save_strategy": "epoch",
            "save_total_limit": 2,
            "load_best_model_at_end": validated,
            "metric_for_best_model": "eval_loss" if validated else None,
            "logging_steps": 5,
            "seed": options.seed,
            "report_to": [],
            "disable_tqdm": True,
            "bf16": gpu,
            "use_cpu": not gpu,
        }


def _row(pair: tuple[list[int], list[int]]) -> dict[str, list[int]]:
    """Ids, and labels in which the prompt does not count."""
    prompt, answer = pair
    return {"input_ids": [*prompt, *answer], "labels": [*[-100] * len(prompt), *answer]}


def _has(history: Sequence[dict[str, Any]], key: str) -> bool:
    return bool(history) and key in history[-1]


def _fits(pair: tuple[list[int], list[int]], options: AdapterOptions) -> bool:
    return len(pair[0]) + len(pair[1]) <= options.max_tokens


def _answers(texts: Any) -> list[str]:
    """The distinct answers, the commonest first; none if there are too many to choose from."""
    counts = Counter(texts)
    few = len(counts) <= MAX_ANSWERS and (len(counts) <= 2 or counts.total() >= 3 * len(counts))
    return [text for text, _ in counts.most_common()] if few else []


def _calibrate(
    base: Base, model: Any, answers: list[str], rows: Sequence[Row]
) -> tuple[AdapterModel, dict[str, float]]:
    """The model with the temperature that fits the held-out rows, and its metrics there."""
    made = AdapterModel(base, model, answers, 1.0, np.zeros(len(answers)))
    known = [(messages, answers.index(text)) for messages, text in rows if text in answers][:MAX_CALIBRATION_ROWS]
    if len(answers) < 2 or not known:
        return made, {}
    scores = np.array([made.scores(messages) for messages, _ in known])
    truth = np.array([right for _, right in known])
    made.temperature = fit_temperature(scores, truth)
    log_p = log_softmax(scores / made.temperature, axis=1)
    decided = np.argmax(log_p, axis=1)
    share, least = automated(np.exp(log_p[np.arange(len(decided)), decided]), decided == truth)
    return made, {
        "eval_accuracy": float(np.mean(decided == truth)),
        "eval_automated": share,
        "automated_from": least,
        "temperature": made.temperature,
    }


def _read(path: Path) -> list[Row]:
    """The rows of conversational JSONL: the messages before the last answer, and that answer's text."""

    def read(_: dict[str, Any], messages: list[dict[str, Any]], last: int) -> Row:
        answer = messages[last]["content"]
        if not isinstance(answer, str):
            raise TypeError("the assistant's content must be text")
        return messages[:last], answer

    return read_rows(path, read)
