"""How much redaction finds and leaves alone, and how long it takes: `python benchmarks/redaction.py [each] [seed]`.

Plants `each` (100) texts of every kind, and three times as many of every kind that must stay. Prints what was missed
and what was changed by kind, then the microseconds of a line of ordinary chat, the time of long lines, and what
redaction adds to a request: prompts of decisions, and conversations of 60 KB of this project's source.
"""

from __future__ import annotations

import base64
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from reasoning.decision_types import get_decision_type
from reasoning.redaction.prompts import redact_prompt
from reasoning.redaction.redact import _find_in_line, redact
from tests.quality.planted import draw_negatives, draw_positives, is_gone


def main() -> None:
    each = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    total: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for kind, text, value in draw_positives(random.Random(seed), each):
        total[kind] += 1
        wrong[kind] += not is_gone(text, redact(text)[0], value)
    show("recall", "found", total, wrong)
    total, wrong = Counter(), Counter()
    for kind, text in draw_negatives(random.Random(seed + 1), 3 * each):
        total[kind] += 1
        wrong[kind] += redact(text)[0] != text
    show("precision", "left alone", total, wrong)
    show_times(random.Random(seed))
    show_prompts(random.Random(seed))


def show(name: str, right: str, total: Counter[str], wrong: Counter[str]) -> None:
    print(f"\n| kind ({len(total)}) | {right} |\n|---|---|")
    for kind, count in total.items():
        print(f"| {kind} | {count - wrong[kind]} of {count} |")
    print(f"\n{name}: {1 - wrong.total() / total.total():.5f} of {total.total():,} texts")


def show_times(rng: random.Random) -> None:
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 9))) for _ in range(5000)]
    lines = [f"p{rng.randrange(4)}: " + " ".join(rng.choices(words, k=rng.randrange(8, 30))) for _ in range(20_000)]
    begun = time.perf_counter()
    for line in lines:
        _find_in_line.__wrapped__(line, "US")
    print(f"\na line of chat that was not met before: {(time.perf_counter() - begun) / len(lines) * 1e6:.1f} us")
    for size in (1 << 18, 1 << 19, 1 << 20):
        text = json.dumps({"image": base64.b64encode(rng.randbytes(size * 3 // 4)).decode()})
        begun = time.perf_counter()
        redact(text)
        print(f"base64, {size >> 10:,} KB in one line: {(time.perf_counter() - begun) * 1e3:.0f} ms")


def show_prompts(rng: random.Random) -> None:
    """Milliseconds that redaction adds to a request, with the caches as a process has them."""
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 9))) for _ in range(3000)]
    kind = get_decision_type("should_respond")

    def said() -> dict[str, str]:
        text = " ".join(rng.choices(words, k=rng.randrange(6, 22))) + (
            " ann@example.org" if rng.random() < 0.03 else ""
        )
        return {"speaker": rng.choice(["ann", "bob", "cy"]), "text": text}

    chat = [said() for _ in range(600)]
    windows = [kind.render({"agent_name": "Ada", "messages": chat[n - 30 : n]}) for n in range(30, 600)]
    fresh = [kind.render({"agent_name": "Ada", "messages": [said() for _ in range(30)]}) for _ in range(300)]
    print("\n| a prompt | p50 ms | p99 ms |\n|---|---|---|")
    show_row("3 KB, a chat of which a line is new", [seconds(prompt) for prompt in windows])
    show_row("3 KB, all new", [seconds(prompt) for prompt in fresh])
    sources = [path.read_text() for path in sorted(Path(__file__).parent.parent.glob("*/*.py"))]
    cold, again, longer = [], [], []
    for number in range(40):
        _find_in_line.cache_clear()
        turns = [{"role": "user", "content": f"{number} {rng.choice(sources)[:7_500]}"} for _ in range(8)]
        cold.append(seconds(turns))
        again.append(seconds(turns))
        longer.append(seconds([*turns, {"role": "user", "content": f"{number} {rng.choice(sources)[:2_000]}"}]))
    show_row("60 KB of code, all new", cold)
    show_row("60 KB of code, seen before", again)
    show_row("60 KB of code seen before, and 2 KB new", longer)


def seconds(messages: list[Any]) -> float:
    begun = time.perf_counter()
    redact_prompt(messages)
    return time.perf_counter() - begun


def show_row(name: str, times: list[float]) -> None:
    ranked = sorted(times)
    print(f"| {name} | {ranked[len(ranked) // 2] * 1e3:.2f} | {ranked[int(len(ranked) * 0.99)] * 1e3:.2f} |")


if __name__ == "__main__":
    main()
