"""The learner `linear` under the interface of the emulator's trainers. The floor that every other must beat."""

from __future__ import annotations

from pathlib import Path

from learners import training
from learners.model import load_model
from learners.progress import Progress

__all__ = ["load_model", "train"]


def train(
    train_path: Path,
    validation_path: Path | None,
    output_dir: Path,
    *,
    n_epochs: int = 1,
    progress: Progress | None = None,
) -> training.TrainingResult:
    """`learners.training.train` with `linear`. `n_epochs` is without effect: the fits run to their end."""
    return training.train(train_path, validation_path, output_dir, learner="linear", progress=progress)
