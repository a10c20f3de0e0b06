"""Choose a list of actions for a transcript, in order.

Every action on offer is judged by itself: a gradient-boosted classifier says with which probability it belongs to the plan,
from how alike the newest line and the action's name and description are, and how alike it is to the logged lines that were answered with the
action (so it may choose actions that it never saw chosen). A line's own conversation is left out of its
likenesses while training. The order is the one in which logged plans mostly had the actions.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold

from emulator.transcript import Action, Transcript

MAX_ROWS = 4000
"""Logged lines that are kept to compare with: the newest."""
NEIGHBOURS = 15
THRESHOLDS = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55)
FOLDS = 4

Plan = tuple[str, ...]
Progress = Callable[[float, dict[str, float]], None]


class PlanModel:
    """Plans for transcripts. Build it with `fit_plans`."""

    def __init__(self, transcripts: Sequence[Transcript], plans: Sequence[Plan]) -> None:
        self.labels = sorted({action for plan in plans for action in plan})
        self.index = {label: i for i, label in enumerate(self.labels)}
        self.membership = np.zeros((len(plans), len(self.labels)), dtype=np.float32)
        self.offered = np.zeros_like(self.membership)
        for row, (transcript, plan) in enumerate(zip(transcripts, plans, strict=True)):
            self.membership[row, [self.index[action] for action in plan]] = 1
            self.offered[row, [self.index[a.name] for a in transcript.actions if a.name in self.index]] = 1
        self.before: Counter[tuple[str, str]] = Counter(pair for plan in plans for pair in combinations(plan, 2))
        lines = [transcript.last.text for transcript in transcripts]
        documents = {_document(action) for transcript in transcripts for action in transcript.actions}
        corpus = [*lines, *sorted(documents)]
        self.words = _fit_vectorizer(corpus, token_pattern=r"(?u)\b\w\w+\b", stop_words="english", ngram_range=(1, 2))
        self.letters = _fit_vectorizer(corpus, analyzer="char_wb", ngram_range=(3, 5), min_df=2)
        self.rows = self._vectors(lines)
        self.classifier: HistGradientBoostingClassifier | None = None
        self.threshold = 0.5
        self.confidence: LogisticRegression | None = None
        self._documents: dict[tuple[Action, ...], tuple[sparse.csr_matrix, ...]] = {}

    def decide(self, transcript: Transcript) -> tuple[Plan, float]:
        """The plan and the log of the calibrated probability that it is exactly right."""
        actions = transcript.actions or tuple(Action(label, "") for label in self.labels)
        probabilities = self._probabilities(self._features(transcript, actions))
        plan = self._select(actions, probabilities, self.threshold)
        return plan, float(np.log(self._confidence(actions, probabilities, plan)))

    def nearest(self, transcript: Transcript) -> np.ndarray:
        """Likeness of the transcript's newest line to each logged one, 0..1."""
        return (self.rows @ self._vectors([transcript.last.text]).T).toarray().ravel()

    def _vectors(self, texts: list[str]) -> sparse.csr_matrix:
        half = np.sqrt(0.5)
        return sparse.hstack([self.words.transform(texts) * half, self.letters.transform(texts) * half], format="csr")

    def _features(
        self, transcript: Transcript, actions: Sequence[Action], hidden: np.ndarray | None = None
    ) -> np.ndarray:
        """One row an action. `hidden` marks the logged lines that must not be looked at."""
        line = transcript.last.text
        previous = transcript.lines[-2].text if len(transcript.lines) > 1 else ""
        both = self._vectors([line, previous])
        like_line, like_previous = (self.rows @ both.T).toarray().T
        visible = np.ones(len(like_line)) if hidden is None else 1.0 - hidden
        like_line, like_previous = like_line * visible, like_previous * visible
        votes, votes_before = self._vote(like_line), self._vote(like_previous)
        likeness = like_line[:, None] * self.membership
        chosen = visible @ self.membership
        offered = visible @ self.offered
        top = likeness if len(likeness) <= 3 else np.partition(likeness, -3, axis=0)[-3:]
        best, best_three, mean = likeness.max(axis=0), top.mean(axis=0), likeness.sum(axis=0) / np.maximum(chosen, 1)
        usual = chosen / (offered + 2)

        words, letters, names = self._describe(tuple(actions))
        line_words, line_letters = self.words.transform([line]), self.letters.transform([line])
        by_words = (words @ line_words.T).toarray().ravel()
        by_letters = (letters @ line_letters.T).toarray().ravel()
        by_name = (names @ line_letters.T).toarray().ravel()

        at = np.array([self.index.get(action.name, -1) for action in actions])

        def known(values: np.ndarray) -> np.ndarray:
            return np.where(at >= 0, values[at], 0.0) if len(values) else np.zeros(len(at))

        missing = np.ones(len(self.labels), dtype=bool)
        missing[at[at >= 0]] = False
        lost = float(votes[missing].sum())
        nearest = known(best)
        return np.stack(
            [
                by_words,
                by_letters,
                by_name,
                by_words - by_words.max(),
                by_letters - by_letters.max(),
                by_name - by_name.max(),
                known(votes),
                known(votes) - known(votes).max(),
                nearest,
                nearest - nearest.max(),
                known(best_three),
                known(mean),
                np.log1p(known(chosen)),
                known(usual),
                known(votes_before),
                at < 0,
                np.full(len(at), lost),
                lost * known(usual),
                np.full(len(at), max(best[missing], default=0.0) - nearest.max()),
                np.full(len(at), best.max(initial=0.0)),
                np.full(len(at), len(transcript.lines)),
                np.full(len(at), np.log1p(len(line))),
            ],
            axis=1,
        )

    def _vote(self, likeness: np.ndarray) -> np.ndarray:
        top = np.argsort(-likeness, kind="stable")[:NEIGHBOURS]
        weights = likeness[top] ** 2
        return weights @ self.membership[top] / (weights.sum() + 1e-9)

    def _describe(self, actions: tuple[Action, ...]) -> tuple[sparse.csr_matrix, ...]:
        found = self._documents.get(actions)
        if found is None:
            documents = [_document(action) for action in actions]
            names = [_split_name(action.name) for action in actions]
            found = self.words.transform(documents), self.letters.transform(documents), self.letters.transform(names)
            if len(self._documents) < 500:
                self._documents[actions] = found
        return found

    def _probabilities(self, features: np.ndarray) -> np.ndarray:
        if self.classifier is None:
            return features[:, 13]  # how often it was chosen when offered
        return self.classifier.predict_proba(features)[:, 1]

    def _select(self, actions: Sequence[Action], probabilities: np.ndarray, threshold: float) -> Plan:
        best = int(np.argmax(probabilities))
        chosen = [a.name for a, p in zip(actions, probabilities, strict=True) if p >= threshold] or [actions[best].name]
        together = [
            name for name in chosen if name == actions[best].name or self._go_together(name, actions[best].name)
        ]
        return self._order(together)

    def _go_together(self, a: str, b: str) -> bool:
        """Not only ever alone: an action that no logged plan combines, such as to do nothing, is not combined."""
        combined = self._combined()
        return (a in combined or a not in self.index) and (b in combined or b not in self.index)

    def _combined(self) -> set[str]:
        return {name for pair in self.before for name in pair}

    def _order(self, names: list[str]) -> Plan:
        wins = {a: sum(self.before[a, b] - self.before[b, a] for b in names) for a in names}
        return tuple(sorted(names, key=lambda name: -wins[name]))

    def _confidence(self, actions: Sequence[Action], probabilities: np.ndarray, plan: Plan) -> float:
        if self.confidence is None:
            return float(np.clip(probabilities.max(), 1e-6, 1.0))
        return float(self.confidence.predict_proba([_evidence(actions, probabilities, plan)])[0, 1])


def fit_plans(
    train: Sequence[Transcript],
    plans: Sequence[Plan],
    validation: Sequence[Transcript],
    validation_plans: Sequence[Plan],
    *,
    progress: Progress,
) -> tuple[PlanModel, dict[str, float]]:
    """Fit; the threshold and the confidence are learned from rows whose conversations were not fitted to.

    Those are the training rows in cross-validation by conversation, and the validation rows.
    """
    train, plans = train[-MAX_ROWS:], plans[-MAX_ROWS:]
    model = PlanModel(train, plans)
    groups = _conversations(train)
    offers = [transcript.actions or tuple(Action(label, "") for label in model.labels) for transcript in train]
    features = [
        model._features(transcript, offer, (groups == group).astype(float))
        for transcript, offer, group in zip(train, offers, groups, strict=True)
    ]
    truth = [np.array([a.name in plan for a in offer]) for offer, plan in zip(offers, plans, strict=True)]
    progress(0.3, {})
    flat, targets = np.concatenate(features), np.concatenate(truth)
    if len(set(groups)) < FOLDS or len(set(targets)) < 2:
        return model, {}
    held_out: list[tuple[Sequence[Action], np.ndarray, Plan]] = []
    of_row = np.repeat(np.arange(len(features)), [len(f) for f in features])
    loss = 0.0
    for step, (rest, fold) in enumerate(GroupKFold(FOLDS).split(features, groups=groups)):
        fitted = _fit_classifier(flat[np.isin(of_row, rest)], targets[np.isin(of_row, rest)])
        inside = np.isin(of_row, fold)
        p = fitted.predict_proba(flat[inside])[:, 1]
        loss = float(log_loss(targets[inside], p, labels=[False, True]))
        pieces = np.split(p, np.cumsum([len(features[i]) for i in fold])[:-1])
        held_out += [(offers[i], piece, plans[i]) for i, piece in zip(fold, pieces, strict=True)]
        progress(0.3 + 0.5 * (step + 1) / FOLDS, {"eval_loss": loss})
    model.classifier = _fit_classifier(flat, targets)
    progress(0.9, {"eval_loss": loss})
    for transcript, plan in zip(validation, validation_plans, strict=True):
        if transcript.actions:
            p = model._probabilities(model._features(transcript, transcript.actions))
            held_out.append((transcript.actions, p, plan))

    def score(threshold: float) -> float:
        decided = [(set(model._select(actions, p, threshold)), set(plan)) for actions, p, plan in held_out]
        return float(np.mean([2 * len(a & b) / max(len(a) + len(b), 1) + (a == b) for a, b in decided])) / 2

    model.threshold = max(THRESHOLDS, key=score)
    decided = [model._select(actions, p, model.threshold) for actions, p, _ in held_out]
    right = np.array([a == plan for a, (_, _, plan) in zip(decided, held_out, strict=True)])
    if 0 < right.sum() < len(right):
        evidence = [_evidence(actions, p, plan) for plan, (actions, p, _) in zip(decided, held_out, strict=True)]
        model.confidence = LogisticRegression(C=10.0, max_iter=300).fit(evidence, right)
    metrics = {
        "train_loss": float(log_loss(targets, model.classifier.predict_proba(flat)[:, 1], labels=[False, True])),
        "eval_loss": loss,
        "eval_exact": float(right.mean()),
        "eval_score": score(model.threshold),
        "threshold": model.threshold,
    }
    return model, metrics


def _fit_classifier(features: np.ndarray, targets: np.ndarray) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(
        max_iter=120,
        learning_rate=0.07,
        max_leaf_nodes=7,
        min_samples_leaf=20,
        l2_regularization=5.0,
        early_stopping=False,
        random_state=0,
    ).fit(features, targets)


def _evidence(actions: Sequence[Action], probabilities: np.ndarray, plan: Plan) -> list[float]:
    """What tells whether a plan is right: the joint log-probability of its members and of the others' absence, and its size."""
    p = np.clip(probabilities, 1e-4, 1 - 1e-4)
    inside = np.array([action.name in plan for action in actions])
    members, others = np.log(p[inside]), np.log1p(-p[~inside])
    return [float(members.sum()), float(others.sum()), float(members.min(initial=0.0)), float(len(plan))]


def _conversations(transcripts: Sequence[Transcript]) -> np.ndarray:
    """The number of each row's conversation: rows that begin with the same line are of one."""
    numbers: dict[str, int] = defaultdict(lambda: len(numbers))
    return np.array([numbers[transcript.lines[0].text if transcript.lines else ""] for transcript in transcripts])


def _fit_vectorizer(corpus: list[str], **options: object) -> TfidfVectorizer:
    try:
        return TfidfVectorizer(sublinear_tf=True, max_features=60_000, **options).fit(corpus)
    except ValueError:  # hardly a word in it
        return TfidfVectorizer(analyzer="char").fit([*corpus, "-"])


def _split_name(name: str) -> str:
    return re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).replace("_", " ").replace("-", " ").lower()


def _document(action: Action) -> str:
    return f"{_split_name(action.name)}. {action.description}"
