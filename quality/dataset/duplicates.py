"""Rows of different episodes whose prompts are nearly equal, or of which one contains most of the other.

Two things are particular here, both measured in docs/concepts/quality.md:

* What is compared is the part of a prompt that varies. A rendered prompt is mostly its template, so that over whole
  prompts any two short questions are near duplicates. Lines that many episodes share are left out.
* It is compared across episodes only. The turns of one conversation contain each other by construction, each is a
  decision of its own, and an episode is never torn between two splits.

There are two detectors. Near duplicates share 0.8 of their word triples (Jaccard similarity, exact): rows that share
none of their rarest triples cannot, so only the others are compared. Contained texts share 0.6 of the character grams
of the shorter one, without the names of speakers: one may be a half of the other, have other names, or typos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from quality.dataset.fingerprints import Hashes, batches, char_grams, split_by_text, word_grams

THRESHOLD = 0.8
# With fewer shingles than this a single word moves the similarity across the threshold: texts so short are compared
# for equality only.
MIN_SHINGLES = 16
CONTAINED = 0.6
# Texts with fewer character grams are compared for equality only: stock phrases are contained in many texts.
MIN_CHARACTERS = 40


def strip_template(text: str, template: frozenset[str]) -> str:
    """`text` without the lines that are in `template`."""
    return "\n".join(line for line in text.split("\n") if line not in template)


def jaccard(first: Hashes, second: Hashes) -> float:
    """Size of the intersection over the size of the union, of sorted distinct values; 0 for two empty sets."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    union = len(first) + len(second) - common
    return common / union if union else 0.0


def containment(first: Hashes, second: Hashes) -> float:
    """The share of the smaller set's values that the other has; 0 where one is empty."""
    smaller = min(len(first), len(second))
    return len(np.intersect1d(first, second, assume_unique=True)) / smaller if smaller else 0.0


@dataclass(slots=True)
class Suspect:
    """A row that shares a rare gram with a row of another episode. `shared` are such grams."""

    n: int
    group: int
    answer: str
    shared: Sequence[int]
    text: str


@dataclass(slots=True)
class NearDuplicates:
    """`dropped`: rows to leave out. `alike`: pairs of kept rows of different answers, with their similarity."""

    dropped: list[int] = field(default_factory=list)
    alike: list[tuple[int, int, float]] = field(default_factory=list)


def find_near_duplicates(suspects: Iterable[Sequence[Suspect]], *, by_answer: bool) -> NearDuplicates:
    """Go through batches of suspects, the row to be preferred first, and drop what resembles a kept row.

    With `by_answer` a row that resembles kept rows of other answers only is no duplicate. What is remembered of a kept
    row are its grams, 8 bytes each.
    """
    found = NearDuplicates()
    kept: list[tuple[Suspect, Hashes]] = []
    places: dict[int, list[int]] = {}
    for rows in suspects:
        for row, grams in zip(rows, _grams_of([row.text for row in rows], word_grams), strict=True):
            alike, duplicate = [], False
            for place in sorted({place for gram in row.shared for place in places.get(gram, ())}):
                other, others = kept[place]
                if other.group == row.group or not _may_be_alike(len(grams), len(others)):
                    continue
                similarity = jaccard(grams, others)
                if similarity >= THRESHOLD:
                    if not by_answer or other.answer == row.answer:
                        duplicate = True
                        break
                    alike.append((row.n, other.n, similarity))
            if duplicate:
                found.dropped.append(row.n)
                continue
            found.alike += alike
            row.text = ""
            for gram in row.shared:
                places.setdefault(gram, []).append(len(kept))
            kept.append((row, grams))
    return found


def _may_be_alike(first: int, second: int) -> bool:
    return min(first, second) >= max(MIN_SHINGLES, THRESHOLD * max(first, second))


def find_contained(
    pairs: Iterable[tuple[int, int]], read_texts: Callable[[Sequence[int]], dict[int, str]]
) -> dict[int, tuple[int, float]]:
    """Of pairs (earlier row, later row): the earlier rows that contain a later one or are contained in it.

    Returns the later row, and the share of the shorter text that both have, by earlier row. `read_texts` gives the
    texts of some rows.
    """
    of: dict[int, list[int]] = {}
    for earlier, later in pairs:
        of.setdefault(earlier, []).append(later)
    found: dict[int, tuple[int, float]] = {}
    order = sorted(of)
    for start in range(0, len(order), 200):
        part = order[start : start + 200]
        numbers = sorted({*part, *(later for earlier in part for later in of[earlier])})
        texts = read_texts(numbers)
        grams = dict(zip(numbers, _grams_of([texts[n] for n in numbers], char_grams), strict=True))
        for earlier in part:
            for later in of[earlier]:
                if min(len(grams[earlier]), len(grams[later])) < MIN_CHARACTERS:
                    continue
                share = containment(grams[earlier], grams[later])
                if share >= CONTAINED:
                    found[earlier] = later, share
                    break
    return found


def measure_pairs(
    pairs: Sequence[tuple[int, int]], read_texts: Callable[[Sequence[int]], dict[int, str]]
) -> list[tuple[float, float]]:
    """Of each pair the Jaccard similarity of words, and the share of the shorter text's characters that both have.

    0 where a text is too short for the measure.
    """
    found = []
    for start in range(0, len(pairs), 500):
        part = pairs[start : start + 500]
        numbers = sorted({n for pair in part for n in pair})
        texts = list(map(read_texts(numbers).__getitem__, numbers))
        words = dict(zip(numbers, _grams_of(texts, word_grams), strict=True))
        characters = dict(zip(numbers, _grams_of(texts, char_grams), strict=True))
        for a, b in part:
            long = min(len(words[a]), len(words[b])) >= MIN_SHINGLES
            longer = min(len(characters[a]), len(characters[b])) >= MIN_CHARACTERS
            similarity = jaccard(words[a], words[b]) if long else 0.0
            found.append((similarity, containment(characters[a], characters[b]) if longer else 0.0))
    return found


def _grams_of(texts: Sequence[str], make: Callable[[Sequence[str]], tuple[np.ndarray, Hashes]]) -> list[Hashes]:
    grams: list[Hashes] = []
    for batch in batches(texts):
        part = texts[batch]
        owner, values = make(part)
        grams += split_by_text(owner, values, len(part))
    return grams
