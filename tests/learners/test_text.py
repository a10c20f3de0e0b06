from __future__ import annotations

import functools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learners.features.text import TextIndex, TextSpace

CORPUS = ["the cat sat on the mat", "a dog sat", "cats and dogs", "", "Über den Wolken", "?"]


@functools.cache
def spaces() -> list[tuple[TextSpace, TextIndex]]:
    made = [TextSpace(CORPUS, ngram_range=(1, 2)), TextSpace(CORPUS, analyzer="char_wb", ngram_range=(2, 4))]
    return [(space, TextIndex(space, CORPUS)) for space in made]


@given(st.text(max_size=60) | st.lists(st.sampled_from(CORPUS), max_size=4).map(" ".join))
def test_one_text_at_a_time_is_what_scikit_learn_gives(text: str) -> None:
    for space, index in spaces():
        columns, values = space.vector(text)
        dense = np.zeros(space.size)
        dense[columns] = values
        wanted = space.matrix([text]).toarray()[0]
        assert np.allclose(dense, wanted)
        assert np.allclose(index.likeness((columns, values)), space.matrix(CORPUS).toarray() @ wanted)


def test_a_corpus_without_words_is_like_nothing() -> None:
    space = TextSpace(["", "?"], token_pattern=r"\b\w+\b")
    assert TextIndex(space, ["", "?"]).likeness(space.vector("word")).tolist() == [0, 0]
