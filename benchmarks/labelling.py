"""How many labels the queue of `reasoning label` saves against labelling in random order, on the demo's conversations.

`python -m benchmarks.labelling`: people's labels are the outcomes that the demo knows. After each batch the queue is
ordered anew, as in the terminal. The learner is the one that the product trains (`linear`), not the one that orders.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from benchmarks.learning import take, write_rows
from demo.conversations import read_rooms
from demo.episodes import Turn
from demo.originals import ORIGINALS
from learners.training import load_model, train
from quality.dataset.label_policy import LabelPolicy
from quality.labelling.order import order_questions
from quality.labelling.questions import Question, Questions
from reasoning.decision_types import get_decision_type

KIND = get_decision_type("should_respond")
BUDGETS = (40, 80, 160, 320, 640)
BATCH = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=int, default=2000, help="decisions without a label")
    parser.add_argument("--late", type=int, default=1500, help="later decisions to answer")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--orders", nargs="+", default=["random", "queue"])
    options = parser.parse_args()
    pool, late = take(read_rooms(), options.pool, options.late)
    for name, order in (("random", random_order), ("queue", queue_order)):
        if name not in options.orders:
            continue
        scores = {budget: [] for budget in BUDGETS}
        for seed in range(options.seeds):
            chosen = order(pool, seed, max(BUDGETS))
            for budget in BUDGETS:
                scores[budget].append(balanced_accuracy([pool[i] for i in chosen[:budget]], late))
        for budget, found in scores.items():
            each = " ".join(f"{score:.3f}" for score in found)
            print(f"{name:<7} {budget:>4} labels: balanced accuracy {statistics.mean(found):.3f} ({each})", flush=True)


def random_order(pool: Sequence[Turn], seed: int, count: int) -> list[int]:
    return random.Random(seed).sample(range(len(pool)), count)


def queue_order(pool: Sequence[Turn], seed: int, count: int) -> list[int]:
    questions = [as_question(number, turn) for number, turn in enumerate(pool)]
    chosen = random.Random(seed).sample(range(len(pool)), BATCH)
    while len(chosen) < count:
        known = set(chosen)
        labelled = [questions[number] for number in chosen]
        for question in labelled:
            question.label = pool[question.request_id.int].truth
        free = [question for question in questions if question.request_id.int not in known]
        found = order_questions(
            Questions(free, [], [], labelled, len(free), 0),
            KIND,
            LabelPolicy(),
            limit=BATCH,
            random_share=0.0,
            second_share=0.0,
        )
        chosen += [question.request_id.int for question in found]
    return chosen[:count]


def as_question(number: int, turn: Turn) -> Question:
    return Question(
        decision_id=UUID(int=number),
        request_id=UUID(int=number),
        ts=turn.ts,
        decision_type=KIND.name,
        agent_id="agent",
        episode_id=turn.episode_id,
        served_by="original",
        original=KIND.normalize(ORIGINALS["should_respond"](turn.context)),
        candidate=None,
        candidate_model=None,
        confidence=None,
        feedback={},
        messages=KIND.render(turn.context),
    )


def balanced_accuracy(labelled: Sequence[Turn], late: Sequence[Turn]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder, "train.jsonl"), KIND, list(labelled))
        train(Path(folder, "train.jsonl"), None, Path(folder, "model"), learner="linear")
        model = load_model(Path(folder, "model"))
    right: dict[str, list[bool]] = {}
    for turn in late:
        completion = model.complete([dict(message) for message in KIND.render(turn.context)])
        right.setdefault(turn.truth["action"], []).append(
            KIND.parse(completion.text, turn.context)["action"] == turn.truth["action"]
        )
    return statistics.mean(statistics.mean(found) for found in right.values())


if __name__ == "__main__":
    main()
