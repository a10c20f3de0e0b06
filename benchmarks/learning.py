"""How well the local trainer learns the demo's decisions, against the hand-written rules.

`python -m benchmarks.learning` trains on the earlier episodes, answers the later ones in this process (no HTTP), and
compares as an evaluation of the project does.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from demo.conversations import read_rooms
from demo.episodes import Episode, Turn
from demo.functions import read_tasks
from demo.originals import ORIGINALS
from learners.training import load_model, train
from quality.evaluation.evaluate import Label, SourceAnswer, evaluate
from reasoning.decision_types import DecisionType, get_decision_type

VALIDATION_SHARE = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip", type=int, default=0, help="rooms to leave out at the beginning")
    parser.add_argument("--early", type=int, default=3000, help="should_respond decisions to learn from")
    parser.add_argument("--late", type=int, default=2000, help="should_respond decisions to answer")
    options = parser.parse_args()
    rooms = read_rooms()[options.skip :]
    early, late = take(rooms, options.early, options.late)
    measure("should_respond", early, late)
    for name, rule in RULES.items():
        labels = [Label(turn.truth, turn.episode_id) for turn in late]
        answers = [SourceAnswer({"action": "RESPOND" if rule(turn) else "IGNORE"}) for turn in late]
        metrics = evaluate("should_respond", labels, {"rule": answers}).sources["rule"].metrics
        print(f"  other rule: {name:<58} {show(metrics['balanced_accuracy'])}")
    measure("planning", *take(read_tasks(), 500, 300))


def take(episodes: Sequence[Episode], early: int, late: int) -> tuple[list[Turn], list[Turn]]:
    """Turns of the first episodes, and of those after them, whole episodes each."""
    parts: tuple[list[Turn], list[Turn]] = ([], [])
    for episode in episodes:
        if len(parts[0]) < early:
            parts[0].extend(episode.turns)
        elif len(parts[1]) < late:
            parts[1].extend(episode.turns)
    return parts


def measure(name: str, early: list[Turn], late: list[Turn]) -> None:
    kind = get_decision_type(name)
    names = list(dict.fromkeys(turn.episode_id for turn in early))
    held_out = set(names[int(len(names) * (1 - VALIDATION_SHARE)) :])
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder, "train.jsonl"), kind, [t for t in early if t.episode_id not in held_out])
        write_rows(Path(folder, "validation.jsonl"), kind, [t for t in early if t.episode_id in held_out])
        trained = train(
            Path(folder, "train.jsonl"), Path(folder, "validation.jsonl"), Path(folder, "model"), learner="linear"
        )
        model = load_model(Path(folder, "model"))
    custom, original = [], []
    for turn in late:
        messages = [dict(message) for message in kind.render(turn.context)]
        begun = time.perf_counter()
        completion = model.complete(messages)
        latency = (time.perf_counter() - begun) * 1000
        confidence = math.exp(math.fsum(completion.token_logprobs))
        custom.append(SourceAnswer(kind.parse(completion.text, turn.context), confidence, latency))
        original.append(SourceAnswer(ORIGINALS[name](turn.context)))
    labels = [Label(turn.truth, turn.episode_id) for turn in late]
    found = evaluate(kind, labels, {"custom": custom, "original": original})
    latency = statistics.median(answer.latency_ms or 0.0 for answer in custom)
    print(
        f"{name}: learned from {len(early):,} decisions in {trained.seconds:.1f} s; {found.rows:,} later ones of "
        f"{found.episodes} episodes; {latency:.1f} ms an answer (p50)"
    )
    for metric, estimate in found.sources["custom"].metrics.items():
        rule = found.sources["original"].metrics.get(metric)
        difference = found.difference("custom", "original", metric)
        print(f"  {metric:<18} custom {show(estimate)}  original {show(rule)}  difference {show(difference)}")


def write_rows(path: Path, kind: DecisionType, turns: Sequence[Turn]) -> None:
    with path.open("w", encoding="utf-8") as lines:
        for turn in turns:
            answer = {"role": "assistant", "content": kind.format_answer(turn.truth)}
            lines.write(json.dumps({"messages": [*kind.render(turn.context), answer]}) + "\n")


def show(estimate: Any) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]" if estimate else "-"


def speakers(turn: Turn) -> tuple[str, list[str], str]:
    """The agent, who spoke before the last turn, and who spoke last."""
    said = [message["speaker"] for message in turn.context["messages"]]
    return turn.context["agent_name"], said[:-1], said[-1]


def agent_spoke_just_before(turn: Turn) -> bool:
    agent, before, _ = speakers(turn)
    return before[-1:] == [agent]


def agent_answered_the_speaker_last(turn: Turn) -> bool:
    agent, before, last = speakers(turn)
    at = max((i for i, speaker in enumerate(before) if speaker == agent), default=0)
    return at > 0 and before[at - 1] == last


def agent_spoke_once_since_the_speaker(turn: Turn) -> bool:
    agent, before, last = speakers(turn)
    at = max((i for i, speaker in enumerate(before) if speaker == last), default=len(before))
    return before[at:].count(agent) == 1


def speaker_is_most_often_next_to_the_agent(turn: Turn) -> bool:
    agent, before, last = speakers(turn)
    next_to = Counter(b if a == agent else a for a, b in pairwise(before) if agent in (a, b))
    return bool(next_to) and next_to.most_common(1)[0][0] == last


RULES: dict[str, Callable[[Turn], bool]] = {
    "the agent spoke just before": agent_spoke_just_before,
    "the agent answered the speaker last": agent_answered_the_speaker_last,
    "the agent spoke once since the speaker did": agent_spoke_once_since_the_speaker,
    "the speaker stood next to the agent most often": speaker_is_most_often_next_to_the_agent,
}

if __name__ == "__main__":
    main()
