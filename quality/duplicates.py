"""Near duplicates across episodes: MinHash finds candidates, the exact Jaccard similarity decides.

Two things are particular here, both measured in docs/quality.md:

* What is compared is the part of a prompt that varies. A rendered prompt is mostly its template, so that over whole
  prompts any two short questions are near duplicates. Lines that many episodes share are left out.
* It is compared across episodes only. The turns of one conversation contain each other by construction, each is a
  decision of its own, and an episode is never torn between two splits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from rensa import RMinHash, RMinHashLSH

THRESHOLD = 0.8
# With fewer shingles than this a single word moves the similarity across the threshold: texts so short are compared
# for equality only.
MIN_SHINGLES = 16

_NUM_PERM = 128
# 32 bands of 4 rows miss a pair of similarity 0.8 with probability (1 - 0.8**4)**32 < 1e-7.
_NUM_BANDS = 32
# The signatures' estimate has a standard deviation of sqrt(0.8 * 0.2 / 128) = 0.035 at the threshold; candidates are
# taken from nearly six of them below.
_CANDIDATE_ESTIMATE = 0.6
_SEED = 42
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")


def strip_template(text: str, template: frozenset[str]) -> str:
    """`text` without the lines that are in `template`."""
    return "\n".join(line for line in text.split("\n") if line not in template)


def shingles(text: str) -> set[str]:
    """The set of every three consecutive words (characters, in scripts without spaces), case folded."""
    words = _WORD.findall(text.casefold())
    return {" ".join(words[i : i + 3]) for i in range(len(words) - 2)}


def jaccard(first: set[str], second: set[str]) -> float:
    """Size of the intersection over the size of the union; 0 for two empty sets."""
    union = len(first | second)
    return len(first & second) / union if union else 0.0


@dataclass(frozen=True, slots=True)
class Match:
    """The indexed text that is most like the asked one, and how like (exact Jaccard similarity of shingles)."""

    key: int
    similarity: float


class NearDuplicateIndex:
    """Texts by key, each of one episode, to be asked for the most similar text of *another* episode.

    Holds a signature of half a kilobyte a text; the texts themselves are asked back from `read_text(key)`.
    """

    def __init__(self, read_text: Callable[[int], str]) -> None:
        self._read_text = read_text
        self._index = RMinHashLSH(0.5, _NUM_PERM, _NUM_BANDS)
        self._digests: list[np.ndarray] = []
        self._keys: list[int] = []
        self._episodes: list[str] = []

    def find(self, text: str, episode: str) -> Match | None:
        """The most similar text of another episode. Sure to be found from a similarity of `THRESHOLD` on."""
        own = shingles(text)
        if len(own) < MIN_SHINGLES:
            return None
        signature = _sign(own)
        slots = [slot for slot in self._index.query(signature) if self._episodes[slot] != episode]
        if not slots:
            return None
        digest = np.asarray(signature.digest(), dtype=np.uint32)
        estimates = (np.stack([self._digests[slot] for slot in slots]) == digest).mean(axis=1)
        best: Match | None = None
        for slot in sorted(
            slot for slot, estimate in zip(slots, estimates, strict=True) if estimate >= _CANDIDATE_ESTIMATE
        ):
            similarity = jaccard(own, shingles(self._read_text(self._keys[slot])))
            if best is None or similarity > best.similarity:
                best = Match(self._keys[slot], similarity)
        return best

    def add(self, key: int, text: str, episode: str) -> bool:
        """Remember `text`. False if it is too short to be compared."""
        own = shingles(text)
        if len(own) < MIN_SHINGLES:
            return False
        signature = _sign(own)
        self._index.insert(len(self._keys), signature)
        self._digests.append(np.asarray(signature.digest(), dtype=np.uint32))
        self._keys.append(key)
        self._episodes.append(episode)
        return True


def _sign(tokens: Iterable[str]) -> RMinHash:
    signature = RMinHash(num_perm=_NUM_PERM, seed=_SEED)
    signature.update(sorted(tokens))
    return signature
