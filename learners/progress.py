"""How far a training is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float, dict[str, float]], None]
"""Called with the finished share (0..1) and the losses known by then."""
