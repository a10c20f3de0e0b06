"""Open text: the nearest logged answer. A stand-in that keeps the wire honest, not a writer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learners.artifact import Parts
from learners.features.text import TextIndex, TextSpace
from learners.transcript import Transcript


class NearestAnswer:
    """Finds the logged question most like a new one: the cosine of the letter n-grams of the last lines."""

    def __init__(self, transcripts: Sequence[Transcript]) -> None:
        lines = [transcript.last.text for transcript in transcripts]
        space = TextSpace(lines, analyzer="char_wb", ngram_range=(2, 5), max_features=60_000)
        self.index = TextIndex(space, lines)

    @classmethod
    def from_parts(cls, parts: Parts) -> NearestAnswer:
        """The model whose `parts` these are."""
        model = cls.__new__(cls)
        model.index = TextIndex.from_parts(TextSpace.from_parts(parts.get("space")), parts.get("index"))
        return model

    def parts(self) -> Parts:
        """What an artifact keeps of it."""
        parts = Parts()
        parts.put("space", self.index.space.parts())
        parts.put("index", self.index.parts())
        return parts

    def decide(self, transcript: Transcript) -> tuple[int, float]:
        """The row of the nearest question, and the log of its likeness (0..1), which stands for a probability."""
        likeness = self.index.likeness(self.index.space.vector(transcript.last.text))
        best = int(np.argmax(likeness))
        return best, float(np.log(np.clip(likeness[best], 1e-6, 1.0)))
