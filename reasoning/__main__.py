"""The console script `reasoning`. Its code is in a checkout (`python -m cli`); the wheel has the client alone."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run the checkout's command line, or say where it is to be had (exit 1)."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "cli" / "__main__.py").is_file():
        sys.exit(
            "The command `reasoning` runs from a checkout of the project: clone it, run `uv sync --all-extras` in it, "
            "and use `uv run reasoning` there. This installation has the decision client (`import reasoning`) alone."
        )
    sys.path.insert(0, str(checkout))  # before the current folder, which may hold a `cli/` of the user's own
    runpy.run_module("cli", run_name="__main__")  # as `python -m cli`: nothing of the checkout is imported here


if __name__ == "__main__":
    main()
