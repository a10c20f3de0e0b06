"""The console script `reasoning`. The command's code is in a checkout; the wheel holds the client alone."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main() -> None:
    """Run the checkout's command line, or say where it is to be had (exit 1)."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "cli" / "main.py").is_file():
        sys.exit(
            "The command `reasoning` runs from a checkout of the project: clone it, run `uv sync --all-extras` in it, "
            "and use `uv run reasoning` there. This installation has the decision client (`import reasoning`) alone."
        )
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    importlib.import_module("cli.main").main()


if __name__ == "__main__":
    main()
