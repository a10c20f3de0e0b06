"""Hashes of the word triples and of the characters of many texts at once, in numpy.

Word triples find texts that are nearly equal, characters find texts of which one contains the other. Both hash by
prefix sums of a polynomial modulo 2**64: `hash(i..j) = (P[j] - P[i]) * B**-i`, where `P` are the sums of
`value(character) * B**position`. So a batch takes a dozen passes over an array, and no loop over words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

BATCH_ROWS = 4_000
"""Most texts at once: their number takes 13 bits of a key."""
BATCH_CHARACTERS = 1 << 16
GRAM_CHARACTERS = 8
"""So many letters and digits in a row make one character gram."""
CHOSEN_CHARACTERS = 24
"""So many make a gram by which texts to be compared are found: fewer are a word or two, which many texts share."""
WINDOW = 16
"""Of so many of these in a row one is chosen (a power of 2)."""
LEVELS = 1 << 22
"""Buckets of the table of frequent word triples (`count_levels`)."""

_GRAM_BITS = 43
_ORDER_BITS = 51  # of a gram and how frequent it is
_BASE = 0x9E3779B97F4A7C15
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_WORDS = (np.uint64(0x94D049BB133111EB), np.uint64(0xD6E8FEB86659FD93), np.uint64(0xA0761D6478BD642F))
_LAST = np.uint64(2**64 - 1)
_WORD = re.compile(r"\w+")
_SPEAKER = re.compile(r"^[^\S\n]*@?([^\s:][^:\n]{0,39}?)[^\S\n]*:(?=\s)", re.MULTILINE)
_CJK = ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xAC00, 0xD7AF))


def batches(texts: Sequence[str]) -> Iterator[slice]:
    """Slices of `texts` that the functions here take at once."""
    start = characters = 0
    for end, text in enumerate(texts):
        if end > start and (characters + len(text) > BATCH_CHARACTERS or end - start >= BATCH_ROWS):
            yield slice(start, end)
            start, characters = end, 0
        characters += len(text)
    if start < len(texts):
        yield slice(start, len(texts))


def word_grams(texts: Sequence[str], levels: NDArray[np.uint8] | None = None) -> tuple[NDArray[np.int64], Hashes]:
    """Every three consecutive words (characters, in scripts without spaces), case folded, as sorted hashes.

    Returns the number of the text and the hash of each gram, equal ones of a text once. With `levels` of
    `count_levels` rare grams come before frequent ones in each text, and the level is part of the hash.
    """
    codes, owner = _codes([text.casefold() for text in texts])
    kinds = _kinds()[codes]
    word = kinds > 0
    other = kinds == 1  # any but the characters that are words of their own
    run_start = word & ~np.concatenate([[False], word[:-1]])
    seen = np.cumsum(other) - other
    run = np.maximum.accumulate(np.where(run_start, np.arange(len(codes)), 0))
    starts = np.flatnonzero(word & (run_start | (seen == seen[run])))
    if len(starts) < 3:
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    after_run = np.flatnonzero(~word & np.concatenate([[False], word[:-1]]))
    stop = np.minimum(after_run[np.searchsorted(after_run, starts, side="right")], np.append(starts[1:], len(codes)))
    sums = _sums(codes)
    hashes = (sums[stop] - sums[starts]) * _powers(inverse=True)[starts]
    of_text = owner[starts]
    inside = of_text[:-2] == of_text[2:]
    grams = _mix(hashes[:-2] * _WORDS[0] + hashes[1:-1] * _WORDS[1] + hashes[2:] * _WORDS[2])[inside]
    grams >>= np.uint64(64 - _GRAM_BITS)
    if levels is not None:
        grams |= levels[grams & np.uint64(LEVELS - 1)].astype(np.uint64) << np.uint64(_GRAM_BITS)
    return _unique(of_text[:-2][inside], grams)


def count_levels(texts: Sequence[str], groups: Sequence[int]) -> NDArray[np.uint8]:
    """How many groups of a sample have each bucket of word grams, up to 255; 0 for buckets of one group."""
    counted = [np.zeros(0, np.uint64)]
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.uint64)
    for part in batches(texts):
        owner, grams = word_grams(texts[part])
        counted.append(numbers[part][owner] * np.uint64(LEVELS) + (grams & np.uint64(LEVELS - 1)))
    buckets = _distinct(np.concatenate(counted)) & np.uint64(LEVELS - 1)
    counts = np.bincount(buckets.astype(np.int64), minlength=LEVELS)
    counts[counts == 1] = 0
    return np.minimum(counts, 255).astype(np.uint8)


def prefixes(owner: NDArray[np.int64], grams: Hashes, threshold: float, least: int) -> tuple[NDArray[np.int64], Hashes]:
    """The first grams of each text of which two texts of a Jaccard similarity of `threshold` share at least one.

    Of n sorted grams these are the first `n - ceil(threshold * n) + 1`. Texts with fewer than `least` grams have none.
    """
    if not len(owner):
        return owner, grams
    firsts = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
    counts = np.diff(np.append(firsts, len(owner)))
    # The tolerance takes back what 0.8 * 5 = 4.000000000000001 would add.
    wanted = np.where(counts >= least, counts - np.ceil(threshold * counts - 1e-9).astype(np.int64) + 1, 0)
    place = np.arange(len(owner)) - np.repeat(firsts, counts)
    chosen = place < np.repeat(wanted, counts)
    return owner[chosen], grams[chosen]


def char_grams(texts: Sequence[str]) -> tuple[NDArray[np.int64], Hashes]:
    """Every `GRAM_CHARACTERS` consecutive letters and digits of texts, sorted and once a text, as their hashes.

    Texts are case folded, and the names of their speakers are left out wherever they stand.
    """
    owner, hashes = _char_hashes(texts, GRAM_CHARACTERS)
    return _unique(owner, hashes >> np.uint64(64 - _GRAM_BITS))


def choose_char_grams(texts: Sequence[str]) -> tuple[NDArray[np.int64], Hashes]:
    """Of every `WINDOW` consecutive grams of `CHOSEN_CHARACTERS` the least: about one in eight, sorted, once a text.

    "Winnowing" (Schleimer, Wilkerson, Aiken, 2003): texts with `WINDOW + CHOSEN_CHARACTERS - 1` letters and digits in
    common share a chosen gram.
    """
    owner, hashes = _char_hashes(texts, CHOSEN_CHARACTERS)
    if not len(owner):
        return owner, hashes
    places = np.arange(len(hashes)) + (owner + 1) * WINDOW  # a gap around each text
    padded = np.full(int(places[-1]) + 2 * WINDOW, _LAST)
    padded[places] = hashes
    least = padded
    step = 1
    while step < WINDOW:  # minima of the windows that begin at each place
        least = np.minimum(least[:-step], least[step:])
        step *= 2
    most, step = least, 1
    while step < WINDOW:  # and their maxima over the windows that hold each place
        most = np.maximum(most[:-step], most[step:])
        step *= 2
    chosen = most[places - WINDOW + 1] == hashes
    return _unique(owner[chosen], hashes[chosen] >> np.uint64(64 - _GRAM_BITS))


def split_by_text(owner: NDArray[np.int64], grams: Hashes, texts: int) -> list[Hashes]:
    """The grams of each of so many texts."""
    return np.split(grams, np.searchsorted(owner, np.arange(1, texts)))


def without_speakers(text: str) -> str:
    """`text` case folded, without the names of those who speak in it (`name: ...` at the begin of a line)."""
    text = text.casefold()
    # Word by word: one pattern of all names would take time in proportion to their number, too.
    names = {word for name in _SPEAKER.findall(text) for word in _WORD.findall(name) if not word.isdigit()}
    return _WORD.sub(lambda word: " " if word[0] in names else word[0], text) if names else text


def _char_hashes(texts: Sequence[str], length: int) -> tuple[NDArray[np.int64], Hashes]:
    codes, owner = _codes([without_speakers(text) for text in texts])
    word = _kinds()[codes] > 0
    codes, owner = codes[word], owner[word]
    if len(codes) < length:
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    count = len(codes) - length + 1
    sums = _sums(codes)
    inside = owner[:count] == owner[length - 1 :]
    hashes = (sums[length:] - sums[:count]) * _powers(inverse=True)[:count]
    return owner[:count][inside], _mix(hashes[inside])


def _codes(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The characters of texts, with a line end after each text; and which text each character is of."""
    joined = "\n".join([*texts, ""])
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    lengths = np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts))
    return codes, np.repeat(np.arange(len(texts)), lengths)


def _unique(owner: NDArray[np.int64], values: Hashes) -> tuple[NDArray[np.int64], Hashes]:
    keys = (owner.astype(np.uint64) << np.uint64(_ORDER_BITS)) | values
    keys = _distinct(keys)
    return (keys >> np.uint64(_ORDER_BITS)).astype(np.int64), keys & np.uint64((1 << _ORDER_BITS) - 1)


def _distinct(values: Hashes) -> Hashes:
    """The distinct values, sorted. (`np.unique` counts integers by a hash table, which takes ten times as long.)"""
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def _mix(values: Hashes) -> Hashes:
    values = values ^ (values >> np.uint64(31))
    values *= _MIX
    values ^= values >> np.uint64(29)
    values *= _WORDS[0]
    return values


def _sums(codes: NDArray[np.uint32]) -> Hashes:
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(_values()[codes] * _powers(inverse=False)[: len(codes)], out=sums[1:])
    return sums


_table: dict[bool, Hashes] = {}


def _powers(*, inverse: bool) -> Hashes:
    """Powers of the base, or of its inverse, for the longest batch: a text longer than a batch is one of its own."""
    if inverse not in _table:
        length = 1 << 20
        powers = np.full(length, pow(_BASE, -1, 1 << 64) if inverse else _BASE, np.uint64)
        powers[0] = 1
        _table[inverse] = np.cumprod(powers)
    return _table[inverse]


@lru_cache(maxsize=1)
def _values() -> Hashes:
    """A pseudo-random number for each character."""
    return _mix(_mix(np.arange(1, 0x110001, dtype=np.uint64) * np.uint64(_BASE)))


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    """0: no part of a word; 1: a letter or digit; 2: a character that is a word of its own."""
    kinds = np.fromiter((chr(code).isalnum() for code in range(0x110000)), np.uint8, 0x110000)
    for first, last in _CJK:
        kinds[first : last + 1] = 2
    return kinds
