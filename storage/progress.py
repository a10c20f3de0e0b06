"""How far a piece of work is: the one event that all packages report and that the terminal and Prefect show.

It is defined here because every package above the wheel may import `storage`. A function that takes long has a
parameter `progress: OnProgress | None = None`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total`, counted in `unit` (bytes, rows; empty for a share of 1), of the step `what`."""

    done: float
    total: float
    unit: str = ""
    what: str = ""
    note: str = ""

    @property
    def fraction(self) -> float:
        """From 0 to 1; 0 where the total is not known or is nothing."""
        return min(max(self.done / self.total, 0.0), 1.0) if self.total else 0.0

    @property
    def message(self) -> str:
        """The step, the count and the note, for people."""
        count = f"{self.done:,} of {self.total:,} {self.unit}" if self.unit not in ("", "bytes") else ""
        return ": ".join(part for part in (self.what, count, self.note) if part)


OnProgress = Callable[[Progress], None]


def share_done(fraction: float, note: str = "") -> Progress:
    """Progress as a share, from 0 to 1, where there is nothing to count."""
    return Progress(fraction, 1.0, note=note)


def part_of(progress: OnProgress | None, number: int, parts: int, what: str) -> OnProgress | None:
    """A callback for part `number` (from 0) of several equal ones, which reports the progress of the whole."""
    if progress is None:
        return None

    def report(part: Progress) -> None:
        whole = replace(part, done=number + part.fraction, total=parts, unit="", what=what, note=part.message)
        progress(whole)

    return report
