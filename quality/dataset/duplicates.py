"""Near duplicates across episodes: MinHash finds candidates, the exact Jaccard similarity decides.

Two things are particular here, both measured in docs/concepts/quality.md:

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
# taken from four of them below.
_CANDIDATE_ESTIMATE = 0.65
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
    """An indexed text that is like the asked one, and how like (exact Jaccard similarity of their shingles)."""

    key: int
    similarity: float


class NearDuplicateIndex:
    """Texts by key, each of one episode, to be asked for a similar text of *another* episode.

    Holds a signature of half a kilobyte a text; the texts themselves are asked back from `read_text(key)`.
    """

    def __init__(self, read_text: Callable[[int], str]) -> None:
        self._read_text = read_text
        self._index = RMinHashLSH(0.5, _NUM_PERM, _NUM_BANDS)
        self._digests = np.zeros((1024, _NUM_PERM), dtype=np.uint32)
        self._keys: list[int] = []
        self._episodes: list[str] = []

    def find(self, text: str, episode: str) -> Match | None:
        """A text of another episode that is as similar as `THRESHOLD` or more; else the most similar candidate."""
        own = shingles(text)
        if len(own) < MIN_SHINGLES:
            return None
        signature = _sign(own)
        slots = np.array([slot for slot in self._index.query(signature) if self._episodes[slot] != episode], dtype=int)
        if not len(slots):
            return None
        slots.sort()
        estimates = (self._digests[slots] == np.asarray(signature.digest(), dtype=np.uint32)).mean(axis=1)
        best: Match | None = None
        for at in np.argsort(-estimates, kind="stable"):
            if estimates[at] < _CANDIDATE_ESTIMATE or (best is not None and best.similarity >= THRESHOLD):
                break
            key = self._keys[slots[at]]
            similarity = jaccard(own, shingles(self._read_text(key)))
            if best is None or similarity > best.similarity:
                best = Match(key, similarity)
        return best

    def add(self, key: int, text: str, episode: str) -> bool:
        """Remember `text`. False if it is too short to be compared."""
        own = shingles(text)
        if len(own) < MIN_SHINGLES:
            return False
        signature, slot = _sign(own), len(self._keys)
        self._index.insert(slot, signature)
        if slot == len(self._digests):
            self._digests = np.concatenate([self._digests, np.zeros_like(self._digests)])
        self._digests[slot] = signature.digest()
        self._keys.append(key)
        self._episodes.append(episode)
        return True


def _sign(tokens: Iterable[str]) -> RMinHash:
    signature = RMinHash(num_perm=_NUM_PERM, seed=_SEED)
    signature.update(sorted(tokens))
    return signature
