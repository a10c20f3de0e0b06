"""What the checks of an export find of planted defects: `python benchmarks/dataset_quality.py [of each] > result.json`.

Plants so many rows of each defect in the training days of a log, with their originals in the days of the holdout, and
exports it. Recall: the share of planted rows that are not in the dataset. Precision: the share of the rows dropped by
the checks that were planted. A defect that no check looks for says `check: null`.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from quality.dataset.export import export_dataset
from quality.dataset.manifest import Manifest, read_rows
from quality.settings import ExportSettings
from reasoning.decision_types import get_decision_type
from reasoning.ids import uuid7
from reasoning.io.spool import SegmentWriter
from reasoning.records import Decision, Feedback
from storage.layout import Layout
from storage.log.land import land_decisions

# The records have fixed dates and land in any year.
os.environ |= {"REASONING_MAX_DAYS_AHEAD": "36500", "REASONING_MAX_DAYS_BEHIND": "36500"}
START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 30
Talk = list[tuple[str, str]]

_WORDS = [
    "".join(random.Random(n).choices("etaoinshrdlucmfwypvbgk", weights=range(22, 0, -1), k=2 + n % 7))
    for n in range(4000)
]
_CZECH = "dobrý den prosím vás kdy přijde zásilka objednal jsem ji minulý týden a stále nic děkuji za odpověď".split()  # noqa: SIM905
_CODE = "def return import self class lambda yield async await raise except finally while assert None True".split()  # noqa: SIM905


def _sentence(rng: random.Random, words: list[str] = _WORDS) -> str:
    return " ".join(rng.choices(words, k=rng.randrange(8, 20)))


def _talk(rng: random.Random, words: list[str] = _WORDS) -> Talk:
    return [(rng.choice(["bob", "carol", "dave"]), _sentence(rng, words)) for _ in range(6)]


def _typos(rng: random.Random, talk: Talk, share: float) -> Talk:
    def swap(match: re.Match[str]) -> str:
        word = match[0]
        return word[0] + word[2] + word[1] + word[3:] if rng.random() < share else word

    return [(who, re.sub(r"\w{3,}", swap, text)) for who, text in talk]


# By defect: what is planted in the training days, made from a talk of the holdout; and the reasons that count.
COPIES: dict[str, tuple[Callable[[random.Random, Talk], Talk], tuple[str, ...]]] = {
    "exact duplicate": (lambda rng, talk: talk, ("duplicate", "contradictory")),
    "near duplicate": (lambda rng, talk: [*talk[:-1], (talk[-1][0], talk[-1][1] + " indeed")], ("near_duplicate",)),
    "renamed people": (lambda rng, talk: [({"bob": "xi"}.get(who, f"my{who}"), text) for who, text in talk], ("leak",)),
    "first half": (lambda rng, talk: talk[:3], ("leak",)),
    "second half": (lambda rng, talk: talk[3:], ("leak",)),
    "typos in 5 % of words": (lambda rng, talk: _typos(rng, talk, 0.05), ("leak", "near_duplicate")),
    "typos in 15 % of words": (lambda rng, talk: _typos(rng, talk, 0.15), ("leak", "near_duplicate")),
    "typos in 30 % of words": (lambda rng, talk: _typos(rng, talk, 0.30), ("leak", "near_duplicate")),
}
ROWS: dict[str, tuple[Callable[[random.Random], Talk], tuple[str, ...]]] = {
    "very long row": (lambda rng: [("bob", _sentence(rng) * 1_000)], ("too_long",)),
    "answer that feedback called wrong": (_talk, ("ruled_out",)),
    "echo of our own model": (_talk, ("self_label",)),
    "other language": (lambda rng: _talk(rng, _CZECH), ()),
    "foreign domain": (lambda rng: _talk(rng, _CODE), ()),
    "flipped label": (_talk, ()),
}


class _Log:
    """Writes decisions, and remembers which were planted."""

    def __init__(self, data: Path) -> None:
        self.planted: dict[str, str] = {}
        self._writer = SegmentWriter(Layout(data).create().spool, max_age=1e9)
        self._kind = get_decision_type("should_respond")

    def add(self, ts: datetime, episode: str, talk: Talk, label: str, *, defect: str | None = None) -> None:
        own = defect == "echo of our own model"
        taught = defect not in ("echo of our own model", "answer that feedback called wrong")
        messages = [{"speaker": who, "text": text} for who, text in talk]
        decision = Decision(
            decision_id=uuid7(ts),
            request_id=uuid7(ts),
            ts=ts,
            decision_type="should_respond",
            source="custom" if own else "original",
            model="model-1" if own else None,
            served=True,
            messages=self._kind.render({"agent_name": "Ada", "messages": messages}),
            episode_id=episode,
            completion=self._kind.format_answer(label),
            decision={"action": label},
            latency_ms=1.0,
        )
        self._writer.write(decision)
        given = (
            ("demonstration", json.dumps({"action": label}), "demonstration")
            if taught
            else ("helpful", False, "metric")
        )
        if not own:
            metric, value, kind = given
            feedback = Feedback(feedback_id=uuid7(ts), ts=ts, metric=metric, value=value, kind=kind)  # type: ignore[arg-type]
            feedback.decision_id = decision.decision_id
            self._writer.write(feedback)
        if defect is not None:
            self.planted[str(decision.decision_id)] = defect

    def close(self) -> None:
        self._writer.close()


def plant(data: Path, of_each: int) -> dict[str, str]:
    """Write and land the log. Returns the defect of each planted row, by its decision's id."""
    rng = random.Random(7)
    log = _Log(data)
    for number in range(DAYS * 60):
        ts = START + timedelta(minutes=24 * number)
        log.add(ts, f"sound-{number}", _talk(rng), rng.choice(["RESPOND", "IGNORE"]))
    at = 0
    for defect, (change, _) in COPIES.items():
        for _ in range(of_each):
            at += 1
            talk = _talk(rng)
            log.add(START + timedelta(days=DAYS - 2, seconds=at), f"original-{at}", talk, "RESPOND")
            copy = START + timedelta(days=2, seconds=at)
            log.add(copy, f"copy-{at}", change(rng, talk), "RESPOND", defect=defect)
    for defect, (make, _) in ROWS.items():
        for _ in range(of_each):
            at += 1
            log.add(START + timedelta(days=3, seconds=at), f"row-{at}", make(rng), "RESPOND", defect=defect)
    log.close()
    land_decisions(data)
    return log.planted


def measure(planted: dict[str, str], manifest: Manifest) -> dict[str, object]:
    """Recall by defect, and the precision of all checks together."""
    kept = {row.decision_id for split in manifest.splits for row in read_rows(manifest.path, split)}
    total = Counter(planted.values())
    gone = Counter(defect for decision, defect in planted.items() if decision not in kept)
    checks = {defect: reasons for defect, (_, reasons) in (COPIES | ROWS).items()}  # type: ignore[operator]
    dropped = sum(
        manifest.dropped.get(reason, 0) for reason in {each for reasons in checks.values() for each in reasons}
    )
    return {
        "dropped": manifest.dropped,
        "sound_rows": manifest.selected - len(planted),
        "sound_rows_dropped": dropped - gone.total(),
        "precision": round(gone.total() / dropped, 3),
        "defects": {
            defect: {
                "check": list(reasons) or None,
                "planted": total[defect],
                "recall": round(gone[defect] / total[defect], 3),
            }
            for defect, reasons in checks.items()
        },
    }


def main() -> None:
    of_each = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        planted = plant(data, of_each)
        settings = ExportSettings(validation_share=0.1, holdout_share=0.2)
        manifest = export_dataset(data, "should_respond", settings, now=START + timedelta(days=DAYS))
        print(json.dumps(measure(planted, manifest), indent=2))


if __name__ == "__main__":
    main()
