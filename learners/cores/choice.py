"""A classifier of transcripts: which of a few answers is it?

Multinomial logistic regression on the transcript's features and the words of its last line, with probabilities
calibrated by temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", 2017).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, recall_score
from sklearn.model_selection import KFold, StratifiedKFold

from learners.artifact import Parts
from learners.calibration import automated, cross_entropy, fit_temperature
from learners.features.representations import BLOCKS, Block
from learners.progress import Progress
from learners.transcript import Transcript

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Inverse regularisation strengths that are tried."""
PRIOR_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
FOLDS = 4
LINEAR = ("numbers", "words", "pieces")
"""What the learner `linear` sees."""


class ChoiceModel:
    """Probabilities of the classes for a transcript. Build it with `fit_choice`."""

    def __init__(self, classes: list[str], blocks: Sequence[Block] = ()) -> None:
        self.classes = classes
        self.blocks = list(blocks)
        self.weights = [np.zeros((0, len(classes))) for _ in self.blocks]
        """For each block one row a column of it, one column a class."""
        self.bias = np.zeros(len(classes))
        self.temperature = 1.0
        self.offsets = np.zeros(len(classes))
        """Added to the log-probabilities to decide: rare classes weigh more, as far as macro F1 and recall gain."""

    @classmethod
    def from_parts(cls, parts: Parts) -> ChoiceModel:
        """The model whose `parts` these are."""
        names = parts.values["blocks"]
        model = cls(parts.values["classes"], [BLOCKS[name].from_parts(parts.get(name)) for name in names])
        model.weights = [parts.arrays[f"weights_of_{name}"] for name in names]
        model.temperature = parts.values["temperature"]
        model.bias, model.offsets = parts.arrays["bias"], parts.arrays["offsets"]
        return model

    def parts(self) -> Parts:
        """What an artifact keeps of it."""
        names = [block.name for block in self.blocks]
        parts = Parts(
            {"classes": self.classes, "temperature": self.temperature, "blocks": names},
            {"bias": self.bias, "offsets": self.offsets},
        )
        for block, weights in zip(self.blocks, self.weights, strict=True):
            parts.put(block.name, block.parts())
            parts.arrays[f"weights_of_{block.name}"] = weights
        return parts

    def log_probabilities(self, transcript: Transcript) -> np.ndarray:
        """Calibrated log-probabilities of `classes`."""
        scores = self.bias.copy()
        for block, weights in zip(self.blocks, self.weights, strict=True):
            columns, values = block.vector(transcript)
            scores += values @ weights[columns]
        return np.asarray(log_softmax(scores / self.temperature))

    def decide(self, transcript: Transcript) -> tuple[str, float]:
        """The class decided for and its calibrated log-probability."""
        log_p = self.log_probabilities(transcript)
        best = int(np.argmax(log_p + self.offsets))
        return self.classes[best], float(log_p[best])

    def take(self, head: Head, widths: Sequence[int]) -> None:
        """Take over what was fitted to the blocks' columns side by side, `widths` columns a block."""
        self.weights = np.split(head.weights, np.cumsum(widths)[:-1])
        self.bias = head.bias


class Head:
    """Multinomial logistic regression over the columns of a matrix. Classes that never occurred are all but ruled out.

    Fitted to one strength after the other, from the smallest: each begins where the one before ended.
    """

    def __init__(self, columns: int, classes: int) -> None:
        self.weights = np.zeros((columns, classes))
        self.bias = np.zeros(classes)
        self._model = LogisticRegression(max_iter=300, warm_start=True)

    def fit(self, matrix: sparse.csr_matrix, labels: np.ndarray, strength: float) -> Head:
        present = np.unique(labels)
        self.weights = np.zeros_like(self.weights)
        self.bias = np.full(len(self.bias), -30.0)
        self.bias[present] = 0.0
        if len(present) == 1:
            return self
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The number of unique classes")  # many classes of few rows each
            fitted = self._model.set_params(C=strength).fit(matrix, labels)
        if len(present) == 2:
            self.weights[:, present[1]], self.bias[present[1]] = fitted.coef_[0], fitted.intercept_[0]
        else:
            self.weights[:, present], self.bias[present] = fitted.coef_.T, fitted.intercept_
        return self

    def score(self, matrix: sparse.csr_matrix) -> np.ndarray:
        """One row a row of the matrix, one column a class."""
        return np.asarray(matrix @ self.weights) + self.bias


def fit_choice(
    train: Sequence[Transcript],
    labels: Sequence[str],
    validation: Sequence[Transcript],
    validation_labels: Sequence[str],
    *,
    blocks: Sequence[str] = LINEAR,
    progress: Progress,
) -> tuple[ChoiceModel, dict[str, float]]:
    """Fit, choosing the regularisation, the temperature and the deciding offsets on rows that were not fitted to.

    They are the training rows, cross-validated in blocks of neighbours (often turns of one conversation; single
    questions are shuffled), and the validation rows. `blocks` names what of a transcript is seen
    (`learners.features.representations`).

    Returns:
        The model fitted to `train`, and its losses (nats) and scores on the rows that were not fitted to.
        `eval_quality` is the mean of macro F1 and macro recall there; `eval_automated` the share of decisions that
        could be automated at 5 % error, the surest first, and `automated_from` the least confidence of these.
    """
    classes = sorted(set(labels))
    index = {name: i for i, name in enumerate(classes)}
    y = np.array([index[label] for label in labels])
    model = ChoiceModel(classes, [BLOCKS[name].fit(train) for name in blocks])
    matrices = [block.matrix(train) for block in model.blocks]
    widths = [matrix.shape[1] for matrix in matrices]
    matrix = sparse.hstack(matrices, format="csr")
    if len(classes) == 1 or len(y) < 2 * FOLDS:
        head = Head(matrix.shape[1], len(classes)).fit(matrix, y, STRENGTHS[0])
        model.take(head, widths)
        return model, {"train_loss": cross_entropy(head.score(matrix), y)}

    known = [i for i, label in enumerate(validation_labels) if label in index]
    held_out = (
        sparse.hstack([b.matrix([validation[i] for i in known]) for b in model.blocks], format="csr")
        if known
        else matrix[:0]
    )
    truth = np.append(y, np.array([index[validation_labels[i]] for i in known], dtype=int))
    best, head, scores, _ = _choose(matrix, y, held_out, truth, _folds(train, y), progress)
    model.take(head, widths)
    metrics = _calibrate(model, scores, truth, y)
    return model, {
        "train_loss": cross_entropy(head.score(matrix) / model.temperature, y),
        "eval_loss": cross_entropy(scores / model.temperature, truth),
        "strength": best,
        **metrics,
    }


def _calibrate(model: ChoiceModel, scores: np.ndarray, truth: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Set the temperature and the deciding offsets by the scores of rows that were not fitted to; the metrics there.

    `y` are the classes of the training rows, whose shares are the prior.
    """
    model.temperature = fit_temperature(scores, truth)
    log_p = log_softmax(scores / model.temperature, axis=1)
    prior = np.log(np.bincount(y, minlength=len(model.classes)) / len(y))

    def quality(exponent: float) -> float:
        decided = np.argmax(log_p - exponent * prior, axis=1)
        recall = recall_score(truth, decided, average="macro", zero_division=0)
        return float(f1_score(truth, decided, average="macro", zero_division=0) + recall) / 2

    exponent = max(PRIOR_EXPONENTS, key=quality)
    model.offsets = -exponent * prior
    decided = np.argmax(log_p + model.offsets, axis=1)
    share, least = automated(np.exp(log_p[np.arange(len(decided)), decided]), decided == truth)
    return {
        "eval_accuracy": float(np.mean(decided == truth)),
        "eval_macro_f1": float(f1_score(truth, decided, average="macro", zero_division=0)),
        "eval_quality": quality(exponent),
        "eval_automated": share,
        "automated_from": least,
        "temperature": model.temperature,
        "prior_exponent": exponent,
    }


def _choose(
    matrix: sparse.csr_matrix,
    y: np.ndarray,
    held_out: sparse.csr_matrix,
    truth: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
    progress: Progress,
) -> tuple[float, Head, np.ndarray, float]:
    """The strength with the least loss on unseen rows, the head of all rows, its scores there, and the loss.

    Tried from the strongest regularisation on, until the loss rises.
    """
    classes = int(y.max()) + 1
    heads = [Head(matrix.shape[1], classes) for _ in folds]
    whole = Head(matrix.shape[1], classes)
    best: tuple[float, Head, np.ndarray, float] | None = None
    for step, strength in enumerate(STRENGTHS):
        unseen = np.zeros((len(y), classes))
        for head, (rest, fold) in zip(heads, folds, strict=True):
            unseen[fold] = head.fit(matrix[rest], y[rest], strength).score(matrix[fold])
        whole.fit(matrix, y, strength)
        scores = np.vstack([unseen, whole.score(held_out)])
        loss = cross_entropy(scores / fit_temperature(scores, truth), truth)
        progress((step + 1) / (len(STRENGTHS) + 1), {"strength": strength, "eval_loss": loss})
        if best is not None and loss >= best[3]:
            break
        fitted = Head(matrix.shape[1], classes)
        fitted.weights, fitted.bias = whole.weights, whole.bias
        best = (strength, fitted, scores, loss)
    assert best is not None
    return best


def _folds(transcripts: Sequence[Transcript], y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Neighbours stay together, for they are often of one conversation; questions that stand alone are shuffled."""
    alone = all(len(transcript.lines) == 1 for transcript in transcripts)
    if alone and np.bincount(y).min() >= FOLDS:
        return list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(y, y))
    return list(KFold(FOLDS, shuffle=alone, random_state=0 if alone else None).split(y))
