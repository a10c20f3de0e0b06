"""How well each learner decides, and what that costs: accuracy, calibration, share automated, seconds, milliseconds.

`python -m benchmarks.decisions [--banking77 DIR] [--rows 100,500,2000]` trains every learner on the demo's decisions,
and on BANKING77 (Casanueva et al. 2020, CC BY 4.0) where a folder with its `train.csv` and `test.csv` is given. The
rows of a training set are the earliest of the demo's and a seeded sample of BANKING77's. Prints a table; `--json FILE`
keeps the figures.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import balanced_accuracy_score

from benchmarks.learning import take
from demo.conversations import read_rooms
from learners.calibration import automated
from learners.errors import MissingExtra
from learners.features import encoder
from learners.model import load_model
from learners.training import BLOCKS, train
from learners.transcript import parse_transcript
from reasoning.decision_types import get_decision_type

Row = tuple[list[dict[str, Any]], str]
"""A prompt, and the right class."""
LEARNERS = ("majority", *BLOCKS, "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--banking77", type=Path, help="folder with train.csv and test.csv")
    parser.add_argument("--rows", default="100,500,2000", help="sizes of the training sets")
    parser.add_argument("--test", type=int, default=2000, help="rows to answer, at most")
    parser.add_argument("--learners", default=",".join(LEARNERS))
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    options = parser.parse_args()
    figures = []
    heads = f"{'acc':>7}{'bal.acc':>9}{'Brier':>7}{'ECE':>6}{'5%err':>7}{'train s':>9}{'p50 ms':>8}{'p99':>7}"
    print(f"{'set':<16}{'rows':>6} {'learner':<10}{heads}")
    for name, pool, test in read_sets(options.banking77, options.test):
        for count in [int(size) for size in options.rows.split(",")]:
            for learner in options.learners.split(","):
                found = measure(pool[:count], test, learner)
                figures.append({"set": name, "rows": count, "learner": learner, **found})
                print(f"{name:<16}{count:>6} {learner:<10}{show(found)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def read_sets(banking77: Path | None, most: int) -> list[tuple[str, list[Row], list[Row]]]:
    """Each set with the rows to learn from, in the order in which they are taken, and those to answer."""
    responding = get_decision_type("should_respond")
    early, late = take(read_rooms(), 6000, most)
    parts = [
        [([dict(message) for message in responding.render(turn.context)], turn.truth["action"]) for turn in turns]
        for turns in (early, late)
    ]
    sets = [("should_respond", *parts)]
    if banking77:
        parts = []
        for file in ("train.csv", "test.csv"):
            with (banking77 / file).open(encoding="utf-8", newline="") as opened:
                rows = [([{"role": "user", "content": row["text"]}], row["category"]) for row in csv.DictReader(opened)]
            random.Random(0).shuffle(rows)
            parts.append(rows)
        sets.append(("banking77", parts[0], parts[1][:most]))
    return sets


def measure(rows: Sequence[Row], test: Sequence[Row], learner: str) -> dict[str, Any]:
    """Train on `rows` and answer `test`. `skipped` says why a learner could not run."""
    truth = [label for _, label in test]
    if learner == "majority":
        label, count = Counter(label for _, label in rows).most_common(1)[0]
        answers = [(label, count / len(rows))] * len(test)
        return score(truth, answers) | {"train_s": 0.0, "p50_ms": 0.0, "p99_ms": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for prompt, label in rows:
                answer = {"role": "assistant", "content": f"<response><action>{label}</action></response>"}
                file.write(json.dumps({"messages": [*prompt, answer]}) + "\n")
        started = time.perf_counter()
        try:
            result = train(path, None, Path(folder) / "model", learner=learner)  # type: ignore[arg-type]
        except MissingExtra as error:
            return {"skipped": str(error)}
        seconds = time.perf_counter() - started
        encoder.load_encoder.cache_clear()  # it remembers the embeddings of the learner before
        model = load_model(Path(folder) / "model")
        answers, times = [], []
        for prompt, _ in test:
            began = time.perf_counter()
            answer, log_probability = model.decide(parse_transcript(prompt))
            times.append(time.perf_counter() - began)
            answers.append((answer.values[0], float(np.exp(log_probability))))
    p50, p99 = np.percentile(times, [50, 99]) * 1000
    return score(truth, answers) | {"train_s": seconds, "p50_ms": p50, "p99_ms": p99, "kept": result.learner}


def score(truth: Sequence[str], answers: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Accuracy and balanced accuracy; Brier score and expected calibration error (10 bins) of the decided class; and
    the share that could be automated at 5 % error."""
    right = np.array([label == decided for label, (decided, _) in zip(truth, answers, strict=True)])
    confidence = np.array([p for _, p in answers])
    bins = np.clip((confidence * 10).astype(int), 0, 9)
    ece = sum(abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins))
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(balanced_accuracy_score(truth, [decided for decided, _ in answers])),
        "brier": float(((confidence - right) ** 2).mean()),
        "ece": float(ece),
        "automated": automated(confidence, right)[0],
    }


def show(found: dict[str, Any]) -> str:
    if "skipped" in found:
        return f"  not run: {found['skipped']}"
    kept = f"  ({found['kept']})" if "kept" in found else ""
    return (
        f"{found['accuracy']:>7.3f}{found['balanced_accuracy']:>9.3f}{found['brier']:>7.3f}{found['ece']:>6.3f}"
        f"{found['automated']:>7.2f}{found['train_s']:>9.1f}{found['p50_ms']:>8.2f}{found['p99_ms']:>7.2f}{kept}"
    )


if __name__ == "__main__":
    main()
