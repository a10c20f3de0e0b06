"""Numbers that tell whether an action belongs into the answer to a transcript's newest line.

They say how alike the line and the action's name and description are, and how alike it is to the logged lines that were
answered with the action. None says which action it is, so an action that was never chosen can be judged too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from learners.artifact import Parts
from learners.features.text import TextIndex, TextSpace
from learners.transcript import Action, Transcript

MAX_TERMS = 60_000
NEIGHBOURS = 15

Plan = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Likeness:
    """Cosines (0..1) of a line with the logged lines, and with the actions by their description and their name."""

    lines: np.ndarray
    words: np.ndarray
    letters: np.ndarray
    names: np.ndarray


class PlanLog:
    """The logged lines with the plans that answered them."""

    def __init__(self, transcripts: Sequence[Transcript], plans: Sequence[Plan]) -> None:
        self.labels = sorted({action for plan in plans for action in plan})
        self.index = {label: i for i, label in enumerate(self.labels)}
        self.chosen = np.zeros((len(plans), len(self.labels)))
        self.offered = np.zeros_like(self.chosen)
        for row, (transcript, plan) in enumerate(zip(transcripts, plans, strict=True)):
            self.chosen[row, [self.index[action] for action in plan]] = 1
            self.offered[row, [self.index[a.name] for a in transcript.actions if a.name in self.index]] = 1
        lines = [transcript.last.text for transcript in transcripts]
        known = sorted({action for transcript in transcripts for action in transcript.actions}, key=astuple)
        self.actions = {action: i for i, action in enumerate(known)}
        documents, names = [_document(action) for action in known], [_split_name(action.name) for action in known]
        corpus = [*lines, *documents]
        self.words = TextSpace(corpus, max_features=MAX_TERMS, stop_words="english", ngram_range=(1, 2))
        self.letters = TextSpace(corpus, max_features=MAX_TERMS, analyzer="char_wb", ngram_range=(3, 5), min_df=2)
        # One index a space, so that a line is looked up once: the logged lines, the actions' documents, their names.
        self.by_words = TextIndex(self.words, corpus)
        self.by_letters = TextIndex(self.letters, [*corpus, *names])

    @classmethod
    def from_parts(cls, parts: Parts) -> PlanLog:
        """The log whose `parts` these are."""
        log = cls.__new__(cls)
        log.labels = parts.values["labels"]
        log.index = {label: i for i, label in enumerate(log.labels)}
        log.actions = {Action(*action): i for i, action in enumerate(parts.values["actions"])}
        log.chosen, log.offered = parts.arrays["chosen"], parts.arrays["offered"]
        log.words, log.letters = (TextSpace.from_parts(parts.get(name)) for name in ("words", "letters"))
        log.by_words = TextIndex.from_parts(log.words, parts.get("by_words"))
        log.by_letters = TextIndex.from_parts(log.letters, parts.get("by_letters"))
        return log

    def parts(self) -> Parts:
        """What an artifact keeps of it."""
        actions = sorted(self.actions, key=self.actions.__getitem__)
        parts = Parts(
            {"labels": self.labels, "actions": [astuple(action) for action in actions]},
            {"chosen": self.chosen, "offered": self.offered},
        )
        for name in ("words", "letters", "by_words", "by_letters"):
            parts.put(name, getattr(self, name).parts())
        return parts

    def offers(self, transcript: Transcript) -> tuple[Action, ...]:
        """The actions on offer; all that were ever chosen when the prompt does not say."""
        return transcript.actions or tuple(Action(label, "") for label in self.labels)

    def compare(self, text: str, actions: Sequence[Action] = ()) -> Likeness:
        """Compare a line with what is logged, and with `actions`."""
        words, letters = self.words.vector(text), self.letters.vector(text)
        by_words, by_letters = self.by_words.likeness(words), self.by_letters.likeness(letters)
        lines, known = len(self.chosen), len(self.actions)
        at = np.array([self.actions.get(action, -1) for action in actions], dtype=int)
        found = Likeness(
            (by_words[:lines] + by_letters[:lines]) / 2,
            by_words[lines + at],
            by_letters[lines + at],
            by_letters[lines + known + at],
        )
        for i in np.flatnonzero(at < 0).tolist():
            document, name = [_document(actions[i])], [_split_name(actions[i].name)]
            found.words[i] = TextIndex(self.words, document).likeness(words)[0]
            found.letters[i] = TextIndex(self.letters, document).likeness(letters)[0]
            found.names[i] = TextIndex(self.letters, name).likeness(letters)[0]
        return found

    def features(
        self, transcript: Transcript, actions: Sequence[Action], like: Likeness, hidden: np.ndarray | None = None
    ) -> np.ndarray:
        """The features, one row an action.

        Args:
            transcript: the question.
            actions: at least one.
            like: what `compare` said of the newest line and `actions`.
            hidden: which logged lines must not be looked at, as booleans.
        """
        previous = transcript.lines[-2].text if len(transcript.lines) > 1 else ""
        line, before = like.lines, self.compare(previous).lines
        chosen, offered = self.chosen.sum(axis=0), self.offered.sum(axis=0)
        if hidden is not None:
            line, before = np.where(hidden, 0.0, line), np.where(hidden, 0.0, before)
            chosen, offered = chosen - self.chosen[hidden].sum(axis=0), offered - self.offered[hidden].sum(axis=0)
        columns, votes, best = self._history(line, self._vote(before), chosen, offered)
        at = np.array([self.index.get(action.name, -1) for action in actions])
        columns = np.append(columns, np.zeros((len(columns), 1)), axis=1)[:, at]  # -1: never chosen, all zero
        vote, nearest, nearest_three, mean, times, share, vote_before = columns
        absent = np.ones(len(self.labels), dtype=bool)
        absent[at[at >= 0]] = False
        lost = float(votes[absent].sum())
        same_for_all = [
            lost,
            np.max(best[absent], initial=0.0) - nearest.max(),
            np.max(best, initial=0.0),
            len(transcript.lines),
            np.log1p(len(transcript.last.text)),
        ]
        return np.column_stack(
            [
                like.words,
                like.words - like.words.max(),
                like.letters,
                like.letters - like.letters.max(),
                like.names,
                like.names - like.names.max(),
                vote,
                vote - vote.max(),
                nearest,
                nearest - nearest.max(),
                nearest_three,
                mean,
                np.log1p(times),
                share,
                share * lost,
                vote_before,
                at < 0,
                np.tile(same_for_all, (len(at), 1)),
            ]
        )

    def _history(
        self, line: np.ndarray, votes_before: np.ndarray, chosen: np.ndarray, offered: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How the logged lines speak for each known action: seven rows of one column an action; and of these, the
        votes of the likest lines and the likeness of the best one."""
        votes = self._vote(line)
        likeness = line[:, None] * self.chosen
        best_three = np.partition(likeness, -3, axis=0)[-3:] if len(likeness) > 3 else likeness
        best = best_three.max(axis=0)
        mean = likeness.sum(axis=0) / np.maximum(chosen, 1)
        usual = chosen / (offered + 2)
        return np.stack([votes, best, best_three.mean(axis=0), mean, chosen, usual, votes_before]), votes, best

    def _vote(self, likeness: np.ndarray) -> np.ndarray:
        nearest = np.argsort(-likeness, kind="stable")[:NEIGHBOURS]
        weights = likeness[nearest] ** 2
        votes: np.ndarray = weights @ self.chosen[nearest] / (weights.sum() + 1e-9)
        return votes


def _split_name(name: str) -> str:
    return re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).replace("_", " ").replace("-", " ").lower()


def _document(action: Action) -> str:
    return f"{_split_name(action.name)}. {action.description}"
