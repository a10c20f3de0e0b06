"""Texts as TF-IDF vectors: fitted by scikit-learn, then read one at a time without its overhead (0.3 ms a call)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from learners.artifact import Parts

_FITTING = {"min_df", "max_features"}  # options that choose the vocabulary: those of a fitted space have done so

MAX_CHARS = 4_000
"""A text counts with its newest characters."""


Vector = tuple[np.ndarray, np.ndarray]
"""The columns of a sparse vector, and their values."""


class TextSpace:
    """A vocabulary with weights. Vectors have length 1 (or 0 when nothing in the text is known)."""

    def __init__(self, corpus: Sequence[str], **options: Any) -> None:
        """Options are those of `TfidfVectorizer`; JSON can hold them."""
        texts = [text[-MAX_CHARS:] for text in corpus]
        try:
            vectorizer = TfidfVectorizer(sublinear_tf=True, **options).fit(texts)
        except ValueError:  # no word is left: a space without dimensions but one
            options = {"analyzer": "char"}
            vectorizer = TfidfVectorizer(**options).fit(["\0"])
        self._set(vectorizer, options)

    @classmethod
    def from_parts(cls, parts: Parts) -> TextSpace:
        """The space whose `parts` these are."""
        options = {name: value for name, value in parts.values["options"].items() if name not in _FITTING}
        options |= {name: tuple(value) for name, value in options.items() if isinstance(value, list)}
        vocabulary = {term: column for column, term in enumerate(parts.values["terms"])}
        vectorizer = TfidfVectorizer(sublinear_tf=True, vocabulary=vocabulary, **options)
        vectorizer.idf_ = parts.arrays["idf"]
        space = cls.__new__(cls)
        space._set(vectorizer, parts.values["options"])
        return space

    def parts(self) -> Parts:
        """What an artifact keeps of it."""
        terms = sorted(self.vocabulary, key=self.vocabulary.__getitem__)
        return Parts({"options": self._options, "terms": terms}, {"idf": self.weights})

    def _set(self, vectorizer: TfidfVectorizer, options: dict[str, Any]) -> None:
        self.vectorizer = vectorizer
        self._options = options
        self.vocabulary: dict[str, int] = {term: int(column) for term, column in vectorizer.vocabulary_.items()}
        self.weights = np.asarray(vectorizer.idf_)
        self._analyze: Any = None

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
        columns = space.matrix(texts).tocsc()
        self._set(space, len(texts), columns.indptr, columns.indices, columns.data)

    @classmethod
    def from_parts(cls, space: TextSpace, parts: Parts) -> TextIndex:
        """The index over `space` whose `parts` these are."""
        index, arrays = cls.__new__(cls), parts.arrays
        index._set(space, int(parts.values["rows"]), arrays["starts"], arrays["members"], arrays["values"])
        return index

    def parts(self) -> Parts:
        """What an artifact keeps of it, besides its space."""
        arrays = {"starts": self.starts, "members": self.members, "values": self.values}
        return Parts({"rows": self.rows}, arrays)

    def _set(self, space: TextSpace, rows: int, starts: np.ndarray, members: np.ndarray, values: np.ndarray) -> None:
        self.space, self.rows = space, rows
        self.starts, self.members, self.values = starts, members, values

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
