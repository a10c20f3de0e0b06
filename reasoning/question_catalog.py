"""The sets of typed questions that were asked, one file each: `<data>/questions/<decision type>.json`.

Questions are written where they are asked, in an agent's code or in a request to the gateway. Export, training and
evaluation run elsewhere and later, so what was asked is kept beside the log. A file's name is its content's hash: a
file that was changed is not read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from reasoning.decision_types import DecisionType, questions_type
from reasoning.errors import InvalidQuestions
from reasoning.questions import TYPE_NAME, QuestionSet, canonical_questions, read_canonical

_log = logging.getLogger("reasoning")

MAX_SETS = 2000
"""More are not kept: they come from questions that hold what belongs into the state."""
_MAX_BYTES = 64 << 20


def keep_questions(data: Path, asked: QuestionSet) -> bool:
    """Keep a set. True where it is kept, or was already; False where the catalog is full. Raises `OSError`."""
    folder = data / "questions"
    path = folder / f"{asked.type_name}.json"
    if path.exists():
        return True
    if not folder.exists():
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    elif sum(1 for _ in os.scandir(folder)) >= MAX_SETS:
        return False
    part = folder / f".{asked.type_name}.{os.getpid()}-{threading.get_ident()}.part"
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(canonical_questions(asked.questions))
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    return True


def load_catalog(data: Path) -> Mapping[str, DecisionType]:
    """The decision types of the sets that are kept, by name. A file that cannot be read is left out, with a warning."""
    try:
        entries = sorted((data / "questions").iterdir())
    except OSError:
        return {}
    found = {}
    for path in entries[: MAX_SETS + 1]:
        if path.suffix == ".json" and (kind := _load(path)) is not None:
            found[kind.name] = kind
    return found


def find_questions(data: Path, name: str) -> DecisionType | None:
    """The decision type `name` of the catalog; None where it has no such set."""
    path = data / "questions" / f"{name}.json"
    return _load(path) if TYPE_NAME.fullmatch(name) and path.is_file() else None


def _load(path: Path) -> DecisionType | None:
    name = path.stem
    try:
        if not TYPE_NAME.fullmatch(name) or path.stat().st_size > _MAX_BYTES:
            raise InvalidQuestions("not a file of ours")
        asked = QuestionSet(name[:-13], read_canonical(path.read_bytes()))
        if asked.type_name != name:
            raise InvalidQuestions("its content is not what its name says")
    except (OSError, InvalidQuestions) as error:
        _log.warning("%s: %s; it is left out, ask the questions again to keep them anew", path, error)
        return None
    return questions_type(asked)
