from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality.dataset.duplicates import (
    CONTAINED,
    MIN_SHINGLES,
    THRESHOLD,
    Suspect,
    containment,
    find_contained,
    find_near_duplicates,
    jaccard,
    strip_template,
)
from quality.dataset.fingerprints import (
    char_grams,
    choose_char_grams,
    count_levels,
    prefixes,
    split_by_text,
    word_grams,
)
from tests.quality.log import sentence


def _grams(texts, make=word_grams):
    return split_by_text(*make(texts), len(texts))


def _words(text):
    """The plain definition that the vectorised hashes are held to."""
    import re

    words = re.findall(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+", text.casefold())
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def _variant(rng, text, changes):
    words = text.split()
    for _ in range(changes):
        words[rng.randrange(len(words))] = "changed"
    return " ".join(words)


def _suspects(texts, *, answers=None, groups=None):
    """Every text shares a gram with every other, so that all are compared."""
    return [
        [
            Suspect(n, n if groups is None else groups[n], "a" if answers is None else answers[n], [1], text)
            for n, text in enumerate(texts)
        ]
    ]


word_grams(["makes the tables, which takes longer than an example may"])


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_word_grams_are_those_of_the_plain_definition(texts):
    assert [len(grams) for grams in _grams(texts)] == [len(_words(text)) for text in texts]


def test_similarity_is_that_of_the_plain_definition():
    rng = random.Random(4)
    for _ in range(50):
        text = sentence(rng, 40) + " 今日はとても良い天気ですね"
        other = _variant(rng, text, rng.randrange(8))
        first, second = _grams([text, other])
        a, b = _words(text), _words(other)
        assert jaccard(first, second) == pytest.approx(len(a & b) / len(a | b))


def test_finds_every_pair_that_brute_force_finds_and_no_other():
    rng = random.Random(4)
    texts = []
    for _ in range(40):
        text = sentence(rng, 60)
        texts += [text, *(_variant(rng, text, changes) for changes in (1, 2, 3, 4, 6))]
    sets = [_words(text) for text in texts]
    kept: list[int] = []
    for n, own in enumerate(sets):
        if all(len(own & sets[m]) / len(own | sets[m]) < THRESHOLD for m in kept):
            kept.append(n)
    dropped = find_near_duplicates(_suspects(texts), by_answer=False).dropped
    assert sorted({*range(len(texts))} - {*dropped}) == kept
    assert 40 < len(dropped) < 200  # both sides of the threshold were tried


@pytest.mark.parametrize("with_levels", [False, True])
def test_near_duplicates_share_a_gram_of_their_prefixes(with_levels):
    rng = random.Random(5)
    texts = []
    for _ in range(100):
        text = "I do not know what you mean. " * 3 + sentence(rng, rng.randrange(16, 80))
        texts += [text, *(_variant(rng, text, changes) for changes in (1, 1, 2))]
    levels = count_levels(texts, [*range(len(texts))]) if with_levels else None
    sets = _grams(texts)
    rare = split_by_text(*prefixes(*word_grams(texts, levels), THRESHOLD, MIN_SHINGLES), len(texts))
    alike = 0
    for n, own in enumerate(sets):
        for m in range(n):
            if jaccard(own, sets[m]) >= THRESHOLD:
                alike += 1
                assert len(np.intersect1d(rare[n], rare[m]))
    assert alike > 100
    if with_levels:  # what all texts say is the last to be looked for
        common = set(_grams(["I do not know what you mean. " * 3])[0].tolist())
        found = [gram & ((1 << 43) - 1) in common for grams in rare for gram in grams.tolist()]
        assert sum(found) < 0.01 * len(found)


def test_rows_of_one_episode_are_not_compared():
    text = sentence(random.Random(1), 40)
    assert find_near_duplicates(_suspects([text, text], groups=[7, 7]), by_answer=False).dropped == []
    assert find_near_duplicates(_suspects([text, text]), by_answer=False).dropped == [1]


def test_rows_of_other_answers_are_noted_and_kept():
    text = sentence(random.Random(1), 40)
    found = find_near_duplicates(_suspects([text] * 4, answers=["a", "b", "a", "b"]), by_answer=True)
    assert found.dropped == [2, 3]
    assert found.alike == [(1, 0, 1.0)]


def test_short_texts_are_not_compared():
    short = "well hello there my dear friend how are you"
    (grams,) = _grams([short])
    assert len(grams) < MIN_SHINGLES
    assert len(prefixes(*word_grams([short]), THRESHOLD, MIN_SHINGLES)[0]) == 0
    assert find_near_duplicates(_suspects([short, short]), by_answer=False).dropped == []


def test_strip_template():
    assert strip_template("You are Ada.\nbob: hi\nAnswer!", frozenset({"You are Ada.", "Answer!"})) == "bob: hi"


def _talk(rng, lines, names=("bob", "carol")):
    return "\n".join(f"{rng.choice(names)}: {sentence(rng)} {rng.choice(names)}" for _ in range(lines))


def _with_typos(rng, text, share):
    return " ".join(
        word[0] + "".join(rng.sample(word[1:], len(word) - 1)) if len(word) > 3 and rng.random() < share else word
        for word in text.split(" ")
    )


PLANTED = {
    "renamed people": lambda rng, text: text.replace("bob", "xavier").replace("carol", "ann-marie"),
    "first half": lambda rng, text: "\n".join(text.split("\n")[: text.count("\n") // 2 + 1]),
    "second half": lambda rng, text: "\n".join(text.split("\n")[text.count("\n") // 2 :]),
    "typos": lambda rng, text: _with_typos(rng, text, 0.06),
    "renamed half with typos": lambda rng, text: _with_typos(
        rng, "\n".join(text.replace("bob", "xavier").split("\n")[:4]), 0.06
    ),
}


@pytest.mark.parametrize("defect", PLANTED)
def test_changed_copies_share_chosen_characters_and_are_contained(defect):
    rng = random.Random(11)
    texts = [_talk(rng, 8) for _ in range(60)]
    copies = [PLANTED[defect](rng, text) for text in texts]
    chosen = _grams(texts + copies, choose_char_grams)
    pairs = [(n, 60 + m) for n in range(60) for m in range(60) if len(np.intersect1d(chosen[n], chosen[60 + m]))]
    both = texts + copies
    found = find_contained(pairs, lambda numbers: {n: both[n] for n in numbers})
    assert {n: later for n, (later, _) in found.items()} == {n: 60 + n for n in range(60)}


def test_unrelated_texts_contain_little_of_each_other():
    rng = random.Random(12)
    grams = _grams([_talk(rng, 8) for _ in range(60)], char_grams)
    shares = [containment(grams[n], grams[m]) for n in range(60) for m in range(n)]
    assert max(shares) < CONTAINED / 2


@given(st.text(), st.text())
def test_jaccard_is_symmetric_and_one_for_the_same(first, second):
    a, b = _grams([first, second])
    assert jaccard(a, b) == jaccard(b, a)
    assert jaccard(a, a) == (1 if len(a) else 0)
