"""What a quality check found, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Severity = Literal["critical", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Failure:
    """One expectation that was not met. `where` names the profile's rows at fault, `observed` their values."""

    profile: str
    expectation: str
    severity: Severity
    observed: Any
    where: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class QualityReport:
    """The outcome of a check. `success` means that no *critical* expectation failed; warnings are in `failures` too."""

    success: bool
    checked: int
    failures: list[Failure]
    data_docs: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, without the path (which differs from machine to machine)."""
        return {"success": self.success, "checked": self.checked, "failures": [asdict(item) for item in self.failures]}
