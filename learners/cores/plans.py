"""Choose a list of actions for a transcript, in order.

Every action on offer is judged by itself: a logistic regression on the features of `learners.features.actions` and
their products says with which probability it belongs to the plan. (Boosted trees were as right, and 15 times slower to
ask; on busy cores their OpenMP threads took up to 0.7 s.) While training, a line is not compared with lines of its own
conversation. The order is the one in which logged plans mostly had the actions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy.special import expit, log_expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold

from learners.artifact import Parts
from learners.features.actions import Plan, PlanLog
from learners.progress import Progress
from learners.transcript import Action, Transcript

MAX_ROWS = 2000
"""Logged lines that are kept to compare with: the newest."""
THRESHOLDS = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55)
FOLDS = 4
STRENGTH = 0.03
"""Inverse regularisation strength of the classifier of actions."""
MAX_DEVIATIONS = 5.0
"""Features count up to so many standard deviations from their mean."""

Judged = tuple[Sequence[Action], np.ndarray]
"""Actions on offer, and the probability of each."""


class ActionClassifier:
    """Does an action belong to the plan? Logistic regression on features and their products of two."""

    def __init__(self, features: np.ndarray, targets: np.ndarray) -> None:
        self.pairs = np.triu_indices(features.shape[1])
        self.centre, self.scale = _standardise(features)
        terms = self._terms(features)
        centre, scale = _standardise(terms)
        fitted = LogisticRegression(C=STRENGTH, max_iter=500).fit((terms - centre) / scale, targets)
        self.weights = fitted.coef_[0] / scale
        self.bias = float(fitted.intercept_[0] - centre @ self.weights)

    @classmethod
    def from_parts(cls, parts: Parts) -> ActionClassifier:
        """The classifier whose `parts` these are."""
        classifier = cls.__new__(cls)
        classifier.centre, classifier.scale = parts.arrays["centre"], parts.arrays["scale"]
        classifier.weights, classifier.bias = parts.arrays["weights"], parts.values["bias"]
        classifier.pairs = np.triu_indices(len(classifier.centre))
        return classifier

    def parts(self) -> Parts:
        """What an artifact keeps of it."""
        return Parts({"bias": self.bias}, {"centre": self.centre, "scale": self.scale, "weights": self.weights})

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """One for each row."""
        probabilities: np.ndarray = expit(self._terms(features) @ self.weights + self.bias)
        return probabilities

    def _terms(self, features: np.ndarray) -> np.ndarray:
        standard = np.clip((features - self.centre) / self.scale, -MAX_DEVIATIONS, MAX_DEVIATIONS)
        first, second = self.pairs
        return np.hstack([standard, standard[:, first] * standard[:, second]])


class PlanModel:
    """Plans for transcripts. Build it with `fit_plans`."""

    def __init__(self, log: PlanLog, plans: Sequence[Plan]) -> None:
        self.log = log
        self.classifier: ActionClassifier | None = None
        self.threshold = 0.5
        self.before = Counter(pair for plan in plans for pair in combinations(plan, 2))
        """How often the first action came before the second."""
        self.alone = set(log.labels) - {action for plan in plans if len(plan) > 1 for action in plan}
        """Actions that no logged plan combines with others, such as to do nothing."""
        self.evidence = np.zeros(5)
        """Weights of a plan's evidence, and a constant: the log-odds that it is right."""

    @classmethod
    def from_parts(cls, parts: Parts) -> PlanModel:
        """The model whose `parts` these are."""
        model = cls(PlanLog.from_parts(parts.get("log")), ())
        model.before = Counter({(first, second): times for first, second, times in parts.values["before"]})
        model.alone = set(parts.values["alone"])
        model.threshold, model.evidence = parts.values["threshold"], parts.arrays["evidence"]
        if parts.values["has_classifier"]:
            model.classifier = ActionClassifier.from_parts(parts.get("classifier"))
        return model

    def parts(self) -> Parts:
        """What an artifact keeps of it."""
        parts = Parts(
            {
                "threshold": self.threshold,
                "before": [[*pair, times] for pair, times in self.before.items()],
                "alone": sorted(self.alone),
                "has_classifier": self.classifier is not None,
            },
            {"evidence": self.evidence},
        )
        parts.put("log", self.log.parts())
        if self.classifier is not None:
            parts.put("classifier", self.classifier.parts())
        return parts

    def decide(self, transcript: Transcript) -> tuple[Plan, float, np.ndarray]:
        """The plan, the log of the calibrated probability that it is right, and the likeness to each logged line."""
        actions = self.log.offers(transcript)
        if not actions:
            return (), 0.0, np.zeros(len(self.log.chosen))
        like = self.log.compare(transcript.last.text, actions)
        judged = actions, self.judge(self.log.features(transcript, actions, like))
        plan = self.select(judged)
        return plan, float(log_expit(self.evidence @ _evidence(judged, plan))), like.lines

    def judge(self, features: np.ndarray) -> np.ndarray:
        """The probability of each action."""
        if self.classifier is None:
            shares: np.ndarray = np.clip(features[:, 6], 0.0, 1.0)  # the share of the nearest logged lines that have it
            return shares
        return self.classifier.probabilities(features)

    def select(self, judged: Judged, threshold: float | None = None) -> Plan:
        """The best action and all that pass the threshold and may go with it, in order."""
        actions, probabilities = judged
        best = actions[int(np.argmax(probabilities))].name
        least = self.threshold if threshold is None else threshold
        passing = {action.name for action, p in zip(actions, probabilities, strict=True) if p >= least} | {best}
        plan = {best} if best in self.alone else passing - self.alone
        order = [action.name for action in actions if action.name in plan]
        wins = {a: sum(self.before[a, b] - self.before[b, a] for b in order) for a in order}
        return tuple(sorted(wins, key=lambda name: -wins[name]))


def fit_plans(
    train: Sequence[Transcript],
    plans: Sequence[Plan],
    validation: Sequence[Transcript],
    validation_plans: Sequence[Plan],
    *,
    progress: Progress,
) -> tuple[PlanModel, dict[str, float]]:
    """Fit to the newest `MAX_ROWS` rows.

    The threshold and the confidence are learned from rows that the judging classifier was not fitted to: the training
    rows, cross-validated by conversation, and the validation rows.
    """
    train, plans = train[-MAX_ROWS:], plans[-MAX_ROWS:]
    log = PlanLog(train, plans)
    model = PlanModel(log, plans)
    groups = _conversations(train)
    offers = [log.offers(transcript) for transcript in train]
    features = []
    for row, (transcript, offer) in enumerate(zip(train, offers, strict=True)):
        like = log.compare(transcript.last.text, offer)
        features.append(log.features(transcript, offer, like, groups == groups[row]))
        if row % 100 == 0:
            progress(0.3 * row / len(train), {})
    flat = np.concatenate(features)
    targets = np.array([action.name in plan for offer, plan in zip(offers, plans, strict=True) for action in offer])
    if len(set(groups)) < FOLDS or len(set(targets)) < 2:
        return model, {}

    of_row = np.repeat(np.arange(len(train)), [len(offer) for offer in offers])
    probabilities = np.zeros(len(flat))
    for step, (_, fold) in enumerate(GroupKFold(FOLDS).split(plans, groups=groups)):
        inside = np.isin(of_row, fold)
        probabilities[inside] = ActionClassifier(flat[~inside], targets[~inside]).probabilities(flat[inside])
        loss = float(log_loss(targets[inside], probabilities[inside], labels=[False, True]))
        progress(0.3 + 0.5 * (step + 1) / FOLDS, {"eval_loss": loss})
    pieces = np.split(probabilities, np.cumsum([len(offer) for offer in offers])[:-1])
    judged: list[Judged] = list(zip(offers, pieces, strict=True))
    truth = list(plans)
    model.classifier = ActionClassifier(flat, targets)
    for transcript, plan in zip(validation, validation_plans, strict=True):
        offer = log.offers(transcript)
        like = log.compare(transcript.last.text, offer)
        judged.append((offer, model.judge(log.features(transcript, offer, like))))
        truth.append(plan)

    metrics = _calibrate(model, judged, truth)
    return model, {
        "train_loss": float(log_loss(targets, model.classifier.probabilities(flat), labels=[False, True])),
        "eval_loss": float(log_loss(targets, probabilities, labels=[False, True])),
        **metrics,
    }


def _calibrate(model: PlanModel, judged: Sequence[Judged], truth: Sequence[Plan]) -> dict[str, float]:
    """Set the threshold and the weights of the evidence by rows that were not fitted to; the metrics there."""

    def score(threshold: float) -> float:
        return float(
            np.mean([_score(model.select(one, threshold), plan) for one, plan in zip(judged, truth, strict=True)])
        )

    model.threshold = max(THRESHOLDS, key=score)
    decided = [model.select(one) for one in judged]
    right = np.array([a == b for a, b in zip(decided, truth, strict=True)])
    if 0 < right.sum() < len(right):
        evidence = np.array([_evidence(one, plan) for one, plan in zip(judged, decided, strict=True)])
        # The constant is one of the columns, and the little regularisation keeps a tiny sample from claiming certainty.
        model.evidence = LogisticRegression(C=10.0, fit_intercept=False, max_iter=500).fit(evidence, right).coef_[0]
    return {"eval_exact": float(right.mean()), "eval_score": score(model.threshold), "threshold": model.threshold}


def _standardise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the columns; 1 for a constant column."""
    scale = values.std(axis=0)
    return values.mean(axis=0), np.where(scale < 1e-9, 1.0, scale)


def _score(decided: Plan, truth: Plan) -> float:
    """The mean of exact match and F1 of the sets: 0..1."""
    return ((decided == truth) + 2 * len(set(decided) & set(truth)) / max(len(decided) + len(truth), 1)) / 2


def _evidence(judged: Judged, plan: Plan) -> np.ndarray:
    """What tells whether a plan is right: log-probabilities of its members and of the others' absence, and its size."""
    actions, probabilities = judged
    p = np.clip(probabilities, 1e-4, 1 - 1e-4)
    inside = np.array([action.name in plan for action in actions])
    members, others = np.log(p[inside]), np.log1p(-p[~inside])
    return np.array([members.sum(), others.sum(), members.min(initial=0.0), len(plan), 1.0])


def _conversations(transcripts: Sequence[Transcript]) -> np.ndarray:
    """The number of each row's conversation: rows that begin with the same line are of one."""
    numbers: defaultdict[str, int] = defaultdict(lambda: len(numbers))
    return np.array([numbers[transcript.lines[0].text if transcript.lines else ""] for transcript in transcripts])
