"""How much redaction finds and leaves alone, and how long it takes: `python benchmarks/redaction.py [each] [seed]`.

Plants `each` (100) texts of every kind, and three times as many of every kind that must stay. Prints what was missed
and what was changed by kind, then the microseconds of a line of ordinary chat, and the time of long lines.
"""

from __future__ import annotations

import base64
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

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


if __name__ == "__main__":
    main()
