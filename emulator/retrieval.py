"""Open text: the nearest logged answer. A stand-in that keeps the wire honest, not a writer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from emulator.transcript import Transcript


class NearestAnswer:
    """Finds the logged question most like a new one: TF-IDF of the last line's letters and words, cosine."""

    def __init__(self, transcripts: Sequence[Transcript]) -> None:
        texts = [_text(transcript) for transcript in transcripts]
        self.vectorizer = TfidfVectorizer(
            sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5), max_features=60_000
        )
        try:
            self.rows = self.vectorizer.fit_transform(texts)
        except ValueError:  # only empty lines
            self.vectorizer = TfidfVectorizer(analyzer="char").fit(["-"])
            self.rows = self.vectorizer.transform(texts)

    def decide(self, transcript: Transcript) -> tuple[int, float]:
        """The row of the nearest question and the log of its likeness, which stands for a probability: 0..1."""
        likeness = (self.rows @ self.vectorizer.transform([_text(transcript)]).T).toarray().ravel()
        best = int(np.argmax(likeness))
        return best, float(np.log(np.clip(likeness[best], 1e-6, 1.0)))


def _text(transcript: Transcript) -> str:
    return transcript.last.text
