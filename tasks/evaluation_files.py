"""The evaluations of a data folder, as they were written: which models have one, and its verdict."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from quality.promotion import Verdict
from storage.layout import Layout
from tasks.errors import MissingStep


def read_verdict(data: Path, evaluation_id: str) -> Verdict:
    """The verdict that `evaluate_model` reached in an evaluation. Raises `MissingStep` where that is gone."""
    path = Layout(data).evaluations / f"{evaluation_id}.json"
    try:
        return Verdict(**_read_about(path)["verdict"])
    except (KeyError, TypeError) as error:
        raise MissingStep(f"there is no verdict in {path} ({error!r}): `reasoning evaluate MODEL` again") from error


def last_verdict(data: Path, model_id: str) -> Verdict | None:
    """Verdict of the newest evaluation of a model, None without one."""
    for path in sorted(Layout(data).evaluations.glob("*.json"), reverse=True):  # named by UUIDv7: in order of time
        if _read_about(path).get("model_id") == model_id:
            return read_verdict(data, path.stem)
    return None


def evaluated_models(data: Path) -> set[str]:
    """Ids of the models of which there is an evaluation. What cannot be read counts as none."""
    found = set()
    for path in Layout(data).evaluations.glob("*.json"):
        with suppress(MissingStep):
            found.add(str(_read_about(path).get("model_id")))
    return found


def _read_about(path: Path) -> dict[str, Any]:
    try:
        return dict(orjson.loads(path.read_bytes())["about"])
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise MissingStep(
            f"{path} is no evaluation ({error!r}): remove it, then `reasoning evaluate MODEL` again"
        ) from error
