"""What a classifier sees of a transcript: blocks of numbers side by side, each fitted to the training rows.

`numbers` says who spoke when and whom the last line is for, `words` which words it has, `sentence` what it means
(an embedding by a frozen encoder). Which of them serves best differs from one body of decisions to the next:
`learners.training` lets them compete.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from scipy import sparse

from learners.artifact import Parts
from learners.features.addressee import transcript_features
from learners.features.encoder import SentenceEncoder, load_encoder
from learners.features.text import TextSpace, Vector
from learners.transcript import Transcript

SENTENCE_SCALE = 10.0
"""Embeddings have length 1, the other blocks' columns a variance near 1: one regularisation has to fit both."""


class Block(Protocol):
    """One kind of numbers about a transcript."""

    name: ClassVar[str]

    @classmethod
    def fit(cls, transcripts: Sequence[Transcript]) -> Self:
        """The block for a training set."""

    @classmethod
    def from_parts(cls, parts: Parts) -> Self:
        """The block whose `parts` these are."""

    def parts(self) -> Parts:
        """What an artifact keeps of it."""

    def matrix(self, transcripts: Sequence[Transcript]) -> sparse.csr_matrix:
        """One row a transcript."""

    def vector(self, transcript: Transcript) -> Vector:
        """The row of one transcript: its columns and their values."""


class Numbers:
    """The transcript's features, standardised."""

    name: ClassVar[str] = "numbers"

    def __init__(self, centre: np.ndarray, scale: np.ndarray) -> None:
        self.centre = centre
        self.scale = scale
        self._columns = np.arange(len(centre))

    @classmethod
    def fit(cls, transcripts: Sequence[Transcript]) -> Numbers:
        numbers = _features(transcripts)
        scale = numbers.std(axis=0)
        scale[scale < 1e-9] = 1.0
        return cls(numbers.mean(axis=0), scale)

    @classmethod
    def from_parts(cls, parts: Parts) -> Numbers:
        return cls(parts.arrays["centre"], parts.arrays["scale"])

    def parts(self) -> Parts:
        return Parts({}, {"centre": self.centre, "scale": self.scale})

    def matrix(self, transcripts: Sequence[Transcript]) -> sparse.csr_matrix:
        return sparse.csr_matrix((_features(transcripts) - self.centre) / self.scale)

    def vector(self, transcript: Transcript) -> Vector:
        return self._columns, (_features([transcript])[0] - self.centre) / self.scale


class Words:
    """The words of the last line, and pairs of them, as TF-IDF."""

    name: ClassVar[str] = "words"
    options: ClassVar[dict[str, Any]] = {
        "min_df": 3,
        "max_features": 20_000,
        "ngram_range": (1, 2),
        "token_pattern": r"\b\w+\b|\?",
    }
    scale: ClassVar[float] = 1.0

    def __init__(self, space: TextSpace) -> None:
        self.space = space

    @classmethod
    def fit(cls, transcripts: Sequence[Transcript]) -> Self:
        return cls(TextSpace([transcript.last.text for transcript in transcripts], **cls.options))

    @classmethod
    def from_parts(cls, parts: Parts) -> Self:
        return cls(TextSpace.from_parts(parts.get("space")))

    def parts(self) -> Parts:
        parts = Parts()
        parts.put("space", self.space.parts())
        return parts

    def matrix(self, transcripts: Sequence[Transcript]) -> sparse.csr_matrix:
        return self.scale * self.space.matrix([transcript.last.text for transcript in transcripts])

    def vector(self, transcript: Transcript) -> Vector:
        columns, values = self.space.vector(transcript.last.text)
        return columns, self.scale * values


class Pieces(Words):
    """The last line's character n-grams within words, as TF-IDF: they survive typing errors and inflection."""

    name: ClassVar[str] = "pieces"
    options: ClassVar[dict[str, Any]] = {
        "min_df": 2,
        "max_features": 20_000,
        "analyzer": "char_wb",
        "ngram_range": (2, 4),
    }
    scale: ClassVar[float] = 6.0
    """Measured on BANKING77 beside the sentence embedding: 3 and 10 are worse."""


class Sentence:
    """The embedding of the last line."""

    name: ClassVar[str] = "sentence"

    def __init__(self, encoder: SentenceEncoder) -> None:
        self.encoder = encoder
        self._columns = np.arange(encoder.dimensions)

    @classmethod
    def fit(cls, transcripts: Sequence[Transcript]) -> Sentence:
        return cls(load_encoder())

    @classmethod
    def from_parts(cls, parts: Parts) -> Sentence:
        return cls(load_encoder(parts.values["encoder"]))

    def parts(self) -> Parts:
        return Parts({"encoder": self.encoder.identity})

    def matrix(self, transcripts: Sequence[Transcript]) -> sparse.csr_matrix:
        return sparse.csr_matrix(SENTENCE_SCALE * self.encoder.embed([each.last.text for each in transcripts]))

    def vector(self, transcript: Transcript) -> Vector:
        return self._columns, SENTENCE_SCALE * self.encoder.embed([transcript.last.text])[0]


BLOCKS: dict[str, type[Numbers] | type[Words] | type[Sentence]] = {
    block.name: block for block in (Numbers, Words, Pieces, Sentence)
}


def _features(transcripts: Sequence[Transcript]) -> np.ndarray:
    return np.array([list(transcript_features(transcript).values()) for transcript in transcripts], dtype=float)
