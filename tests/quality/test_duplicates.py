from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from quality.dataset.duplicates import MIN_SHINGLES, THRESHOLD, NearDuplicateIndex, jaccard, shingles, strip_template
from tests.quality.log import sentence


def _variant(rng: random.Random, text: str, changes: int) -> str:
    words = text.split()
    for _ in range(changes):
        words[rng.randrange(len(words))] = "changed"
    return " ".join(words)


def test_finds_every_pair_that_brute_force_finds_and_no_other():
    rng = random.Random(4)
    texts = []
    for _ in range(40):
        text = sentence(rng, 60)
        texts += [text, *(_variant(rng, text, changes) for changes in (1, 2, 3, 4, 6))]
    sets = [shingles(text) for text in texts]
    index = NearDuplicateIndex(texts.__getitem__)
    found = 0
    for number, text in enumerate(texts):
        similar = max((jaccard(sets[number], other) for other in sets[:number]), default=0.0)
        match = index.find(text, str(number))
        if similar >= THRESHOLD:
            assert match is not None
            assert similar >= match.similarity >= THRESHOLD
            found += 1
        else:
            assert match is None or match.similarity < THRESHOLD
        index.add(number, text, str(number))
    assert 40 < found < 200  # both sides of the threshold were tried


def test_the_rows_of_one_episode_are_not_compared():
    text = sentence(random.Random(1), 40)
    index = NearDuplicateIndex({0: text, 1: text}.__getitem__)
    index.add(0, text, "a")
    assert index.find(text, "a") is None
    assert index.find(text, "b").similarity == 1


def test_short_texts_are_not_compared():
    short = "well hello there my dear friend how are you"
    assert len(shingles(short)) < MIN_SHINGLES
    index = NearDuplicateIndex({0: short}.__getitem__)
    assert not index.add(0, short, "a")
    assert index.find(short, "b") is None


def test_scripts_without_spaces_have_shingles():
    assert len(shingles("今日はとても良い天気ですね")) == 11


def test_strip_template():
    assert strip_template("You are Ada.\nbob: hi\nAnswer!", frozenset({"You are Ada.", "Answer!"})) == "bob: hi"


@given(st.text(), st.text())
def test_jaccard_is_symmetric_and_one_for_the_same(first, second):
    a, b = shingles(first), shingles(second)
    assert jaccard(a, b) == jaccard(b, a)
    assert jaccard(a, a) == (1 if a else 0)
