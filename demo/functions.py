"""Tasks for `planning`, made of the multi-turn questions of the Berkeley Function Calling Leaderboard.

The package `bfcl-eval` (Apache-2.0; Patil et al., "The Berkeley Function Calling Leaderboard", 2025) holds 200 tasks of
two to seven user turns, each with the function calls that solve the turn, in four variants of the same task: `base`;
`miss_func` (a function arrives one turn late); `miss_param` (the user forgets a detail and adds it a turn later);
`long_context` (more data behind the functions). Only its data files are read: its code needs other versions of our
libraries.

* A task arrives once, in one variant drawn by a hash of its number, so that none is ever seen in another variant.
* Tasks that share much of their wording are one group, which has one `room_id` and arrives together. Cut between two
  groups, and nothing of the later ones has been seen before.
* The source has no times and sorts its tasks by subject. Groups arrive in the order of a hash, tasks evenly spaced.
* The question is the user's turns so far and the functions then available, name and description, in the order of the
  source. The answer is the names of the functions that solve the newest turn, in the order of their first call: how
  often and with which arguments one is called is not planned. Where nothing can be called (a function or a detail is
  missing), it is `REPLY`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import itertools
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from demo.episodes import Episode, Turn
from demo.errors import DataPackageError

AGENT_NAME = "Nova"
REPLY = "REPLY"
VARIANTS = ("base", "miss_func", "miss_param", "long_context")
SIMILAR = 0.2
"""Jaccard similarity of the word pairs of two tasks from which on they are one group."""
START = datetime(2018, 4, 10, tzinfo=UTC)

_DOCS = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "TwitterAPI": "posting_api",
    "VehicleControlAPI": "vehicle_control",
}
_REPLY_FUNCTION = {
    "name": REPLY,
    "description": "Answer in words: ask for a missing detail, or say that no available function can do it.",
}


def data_directory() -> Path:
    """Where the installed package keeps its data files.

    Raises:
        DataPackageError: the package is not installed.
    """
    spec = importlib.util.find_spec("bfcl_eval")  # finds it without running its code
    root = Path(spec.origin).parent / "data" if spec and spec.origin else None
    if root is None or not root.is_dir():
        raise DataPackageError(
            "the demo's planning tasks are missing: the package bfcl-eval is not installed. "
            "Run `uv sync --all-extras`, or `pip install --no-deps bfcl-eval`."
        )
    return root


def _read_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataPackageError(f"cannot read {path}: {error.strerror}. Reinstall bfcl-eval.") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise DataPackageError(f"{path}, line {number}: not JSON: {error}. Reinstall bfcl-eval.") from error
    return rows


def _function_name(call: str) -> str:
    function = ast.parse(call.strip(), mode="eval").body
    if not isinstance(function, ast.Call):
        raise ValueError(f"{call!r} is not a call")
    return ast.unparse(function.func).rsplit(".", 1)[-1]


def read_functions(root: Path | None = None) -> dict[str, list[dict[str, str]]]:
    """The functions of each class of the tasks: `[{"name", "description"}...]`, in the order of the source."""
    root = root or data_directory()
    functions = {}
    for name, file in _DOCS.items():
        path = root / "multi_turn_func_doc" / f"{file}.json"
        try:
            functions[name] = [
                # The class's own sentence comes first in each of its functions: only the function's own is kept.
                {"name": f["name"], "description": " ".join(f["description"].split("Tool description: ")[-1].split())}
                for f in _read_lines(path)
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataPackageError(
                f"{path}: a function without a name and a description. Reinstall bfcl-eval."
            ) from error
    return functions


def read_tasks(
    root: Path | None = None, *, start: datetime = START, spacing: timedelta = timedelta(minutes=30)
) -> list[Episode]:
    """Read the tasks, in the order in which they arrive (see the module's docstring).

    Args:
        root: the data folder of the package; the installed one's when None.
        start: when the first task arrives (UTC).
        spacing: from one task to the next. Turns of a task follow each other by a twentieth of it.

    Raises:
        DataPackageError: a file is missing or does not parse; says the file and the place in it.
    """
    root = root or data_directory()
    functions = read_functions(root)
    tasks: dict[int, dict[str, dict[str, Any]]] = {}
    for variant in VARIANTS:
        path = root / f"BFCL_v4_multi_turn_{variant}.json"
        answers_path = root / "possible_answer" / path.name
        answers = {row.get("id"): row for row in _read_lines(answers_path)}
        for row in _read_lines(path):
            try:
                number = int(row["id"].rsplit("_", 1)[1])
                tasks.setdefault(number, {})[variant] = row | {"answers": answers[row["id"]]["ground_truth"]}
            except (KeyError, ValueError, IndexError) as error:
                raise DataPackageError(
                    f"{path}: task {row.get('id')!r} has no number or no answer in {answers_path}. Reinstall bfcl-eval."
                ) from error
    episodes: list[Episode] = []
    for group in _groups({number: variants["base"] for number, variants in tasks.items()}):
        for number in group:
            variant = VARIANTS[int(_draw("variant", number) * len(VARIANTS))]
            ts = start + len(episodes) * spacing
            try:
                episodes.append(_build_task(tasks[number][variant], f"tasks-{group[0]}", functions, ts, spacing / 20))
            except (KeyError, TypeError, ValueError, SyntaxError, IndexError) as error:
                raise DataPackageError(
                    f"{root}: task {number}, variant {variant}: {type(error).__name__}: {error}. Reinstall bfcl-eval."
                ) from error
    return episodes


def _draw(*parts: object) -> float:
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big") / 2**64


def _word_pairs(task: dict[str, Any]) -> set[tuple[str, str]]:
    words = re.findall(r"[a-z]+", " ".join(m["content"] for turn in task["question"] for m in turn).lower())
    return set(itertools.pairwise(words))


def _groups(tasks: dict[int, dict[str, Any]]) -> list[list[int]]:
    """Tasks that are nearly the same are one group (single linkage); groups come in a hashed order."""
    pairs = {number: _word_pairs(task) for number, task in tasks.items()}
    group = {number: number for number in tasks}
    for a in sorted(tasks):
        for b in sorted(tasks):
            if a < b and group[a] != group[b] and len(pairs[a] & pairs[b]) >= SIMILAR * len(pairs[a] | pairs[b]):
                old, new = group[b], group[a]
                group = {number: new if of == old else of for number, of in group.items()}
    members: dict[int, list[int]] = {}
    for number in sorted(tasks):
        members.setdefault(group[number], []).append(number)
    return sorted(members.values(), key=lambda numbers: _draw("order", numbers[0]))


def _build_task(
    task: dict[str, Any], room_id: str, functions: dict[str, list[dict[str, str]]], start: datetime, step: timedelta
) -> Episode:
    excluded = set(task.get("excluded_function", []))
    offered = [f for name in task["involved_classes"] for f in functions[name] if f["name"] not in excluded]
    late = {int(turn): set(names) for turn, names in task.get("missed_function", {}).items()}
    episode_id = f"task-{task['id']}"
    said: list[dict[str, str]] = []
    turns = []
    for number, (messages, calls) in enumerate(zip(task["question"], task["answers"], strict=True)):
        missing = {name for turn, names in late.items() if number < turn for name in names}
        if number in late:
            said.append(
                {"speaker": "User", "text": f"You can use these functions now: {', '.join(sorted(late[number]))}."}
            )
        said += [{"speaker": "User", "text": message["content"].strip()} for message in messages]
        if not said:
            continue
        actions = list(dict.fromkeys(_function_name(call) for call in calls)) or [REPLY]
        ts = start + number * step
        turns.append(
            Turn(
                decision_type="planning",
                context={
                    "agent_name": AGENT_NAME,
                    "messages": list(said),
                    "actions": [_REPLY_FUNCTION, *(f for f in offered if f["name"] not in missing)],
                },
                truth={"thought": "", "actions": actions, "providers": [], "text": ""},
                ts=ts,
                truth_ts=ts + step,
                episode_id=episode_id,
                room_id=room_id,
                subject_ids=(f"bfcl:{task['id']}",),
            )
        )
    return Episode(episode_id, tuple(turns), start + len(task["question"]) * step)
