"""Errors of the learners.

::

    LearnerError
    ├── TrainingError        a training failed
    │   └── DatasetError     ... because of the dataset: the submitter's mistake
    ├── ArtifactError        an artifact is unfinished, damaged, of another version, or not one of ours
    └── MissingExtra         a learner needs packages that are not installed (names the line that installs them)
"""

from __future__ import annotations


class LearnerError(Exception):
    """Base of every error that a learner raises on purpose."""


class TrainingError(LearnerError):
    """A training failed."""


class DatasetError(TrainingError):
    """A training failed because of its dataset."""


class ArtifactError(LearnerError):
    """An artifact cannot be used."""


class MissingExtra(LearnerError):
    """A learner needs packages that are not installed."""
