"""A classifier of transcripts: which of a few answers is it?

Multinomial logistic regression on the transcript's features and the words of its last line, with probabilities
calibrated by temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, recall_score
from sklearn.model_selection import KFold

from learners.artifact import Parts
from learners.features import transcript_features
from learners.text import TextSpace
from learners.transcript import Transcript

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Inverse regularisation strengths that are tried."""
PRIOR_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
FOLDS = 4

Progress = Callable[[float, dict[str, float]], None]


class ChoiceModel:
    """Probabilities of the classes for a transcript. Build it with `fit_choice`."""

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes
        self.words: TextSpace | None = None
        self.centre = np.zeros(0)
        self.scale = np.ones(0)
        self.weights = np.zeros((1, len(classes)))
        self.bias = np.zeros(len(classes))
        self.temperature = 1.0
        self.offsets = np.zeros(len(classes))
        """Added to the log-probabilities to decide: rare classes weigh more, as far as macro F1 and recall gain."""

    @classmethod
    def from_parts(cls, parts: Parts) -> ChoiceModel:
        """The model whose `parts` these are."""
        model = cls(parts.values["classes"])
        model.temperature = parts.values["temperature"]
        model.words = TextSpace.from_parts(parts.get("words")) if parts.values["has_words"] else None
        arrays = parts.arrays
        model.centre, model.scale, model.weights = arrays["centre"], arrays["scale"], arrays["weights"]
        model.bias, model.offsets = arrays["bias"], arrays["offsets"]
        return model

    def parts(self) -> Parts:
        """What an artifact keeps of it."""
        names = ("centre", "scale", "weights", "bias", "offsets")
        parts = Parts(
            {"classes": self.classes, "temperature": self.temperature, "has_words": self.words is not None},
            {name: getattr(self, name) for name in names},
        )
        if self.words is not None:
            parts.put("words", self.words.parts())
        return parts

    def log_probabilities(self, transcript: Transcript) -> np.ndarray:
        """Calibrated log-probabilities of `classes`."""
        numbers = (_numbers([transcript])[0] - self.centre) / self.scale
        scores = numbers @ self.weights[: len(numbers)] + self.bias
        if self.words is not None:
            columns, values = self.words.vector(transcript.last.text)
            scores += values @ self.weights[len(numbers) + columns]
        calibrated: np.ndarray = log_softmax(scores / self.temperature)
        return calibrated

    def decide(self, transcript: Transcript) -> tuple[str, float]:
        """The class decided for and its calibrated log-probability."""
        log_p = self.log_probabilities(transcript)
        best = int(np.argmax(log_p + self.offsets))
        return self.classes[best], float(log_p[best])

    def _score(self, matrix: sparse.csr_matrix) -> np.ndarray:
        return np.asarray(matrix @ self.weights) + self.bias

    def _matrix(self, transcripts: Sequence[Transcript]) -> sparse.csr_matrix:
        numbers = (_numbers(transcripts) - self.centre) / self.scale
        if self.words is None:
            return sparse.csr_matrix(numbers)
        words = self.words.matrix([transcript.last.text for transcript in transcripts])
        return sparse.hstack([sparse.csr_matrix(numbers), words], format="csr")

    def _prepare(self, transcripts: Sequence[Transcript]) -> None:
        numbers = _numbers(transcripts)
        self.centre, self.scale = numbers.mean(axis=0), numbers.std(axis=0)
        self.scale[self.scale < 1e-9] = 1.0
        lines = [transcript.last.text for transcript in transcripts]
        self.words = TextSpace(lines, min_df=3, max_features=20_000, ngram_range=(1, 2), token_pattern=r"\b\w+\b|\?")  # noqa: S106

    def _fit(self, matrix: sparse.csr_matrix, labels: np.ndarray, strength: float) -> None:
        present = np.unique(labels)
        self.weights = np.zeros((matrix.shape[1], len(self.classes)))
        self.bias = np.full(len(self.classes), -30.0)
        self.bias[present] = 0.0
        if len(present) == 1:
            return
        fitted = LogisticRegression(C=strength, max_iter=300).fit(matrix, labels)
        if len(present) == 2:
            self.weights[:, present[1]], self.bias[present[1]] = fitted.coef_[0], fitted.intercept_[0]
        else:
            self.weights[:, present], self.bias[present] = fitted.coef_.T, fitted.intercept_


def _numbers(transcripts: Sequence[Transcript]) -> np.ndarray:
    return np.array([list(transcript_features(transcript).values()) for transcript in transcripts], dtype=float)


def fit_choice(
    train: Sequence[Transcript],
    labels: Sequence[str],
    validation: Sequence[Transcript],
    validation_labels: Sequence[str],
    *,
    progress: Progress,
) -> tuple[ChoiceModel, dict[str, float]]:
    """Fit, choosing the regularisation, the temperature and the deciding offsets on rows that were not fitted to.

    They are the training rows, cross-validated in blocks of neighbours (often turns of one conversation), and
    the validation rows.

    Returns:
        The model fitted to `train`, and its losses (nats) and scores on the rows that were not fitted to.
    """
    classes = sorted(set(labels))
    index = {name: i for i, name in enumerate(classes)}
    y = np.array([index[label] for label in labels])
    model = ChoiceModel(classes)
    model._prepare(train)
    matrix = model._matrix(train)
    if len(classes) == 1 or len(y) < 2 * FOLDS:
        model._fit(matrix, y, STRENGTHS[0])
        return model, {"train_loss": _loss(model._score(matrix), y)}

    known = [i for i, label in enumerate(validation_labels) if label in index]
    held_out = model._matrix([validation[i] for i in known]) if known else matrix[:0]
    truth = np.append(y, np.array([index[validation_labels[i]] for i in known], dtype=int))
    scores: dict[float, np.ndarray] = {}
    losses: dict[float, float] = {}
    for step, strength in enumerate(STRENGTHS):
        unseen = np.zeros((len(y), len(classes)))
        for rest, fold in KFold(FOLDS).split(unseen):
            model._fit(matrix[rest], y[rest], strength)
            unseen[fold] = model._score(matrix[fold])
        model._fit(matrix, y, strength)
        scores[strength] = np.vstack([unseen, model._score(held_out)])
        losses[strength] = _loss(scores[strength], truth)
        progress((step + 1) / (len(STRENGTHS) + 1), {"strength": strength, "eval_loss": losses[strength]})
    best = min(STRENGTHS, key=lambda strength: losses[strength])
    model._fit(matrix, y, best)
    model.temperature = _fit_temperature(scores[best], truth)
    log_p = log_softmax(scores[best] / model.temperature, axis=1)
    prior = np.log(np.bincount(y, minlength=len(classes)) / len(y))

    def quality(exponent: float) -> float:
        decided = np.argmax(log_p - exponent * prior, axis=1)
        recall = recall_score(truth, decided, average="macro", zero_division=0)
        return float(f1_score(truth, decided, average="macro", zero_division=0) + recall) / 2

    exponent = max(PRIOR_EXPONENTS, key=quality)
    model.offsets = -exponent * prior
    decided = np.argmax(log_p + model.offsets, axis=1)
    metrics = {
        "train_loss": _loss(model._score(matrix) / model.temperature, y),
        "eval_loss": _loss(scores[best] / model.temperature, truth),
        "eval_accuracy": float(np.mean(decided == truth)),
        "eval_macro_f1": float(f1_score(truth, decided, average="macro", zero_division=0)),
        "strength": best,
        "temperature": model.temperature,
        "prior_exponent": exponent,
    }
    return model, metrics


def _loss(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean cross-entropy (nats)."""
    return float(-log_softmax(scores, axis=1)[np.arange(len(truth)), truth].mean())


def _fit_temperature(scores: np.ndarray, truth: np.ndarray) -> float:
    found = minimize_scalar(lambda log_t: _loss(scores / np.exp(log_t), truth), bounds=(-2, 2), method="bounded")
    return float(np.exp(found.x))
