from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from demo import functions
from demo.episodes import Episode
from demo.errors import DataPackageError
from demo.functions import REPLY, data_directory, read_tasks
from demo.originals import decide_planning
from reasoning.decision_types import get_decision_type

try:
    SOURCE = data_directory()
except DataPackageError:
    pytest.skip("bfcl-eval is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def tasks() -> list[Episode]:
    return read_tasks()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The data files that are read, to break."""
    shutil.copytree(SOURCE / "multi_turn_func_doc", tmp_path / "multi_turn_func_doc")
    (tmp_path / "possible_answer").mkdir()
    for path in SOURCE.glob("BFCL_v4_multi_turn_*.json"):
        shutil.copy(path, tmp_path / path.name)
        shutil.copy(SOURCE / "possible_answer" / path.name, tmp_path / "possible_answer" / path.name)
    return tmp_path


def test_every_task_arrives_once_in_one_variant(tasks: list[Episode]) -> None:
    numbers = [int(task.episode_id.rsplit("_", 1)[1]) for task in tasks]
    assert sorted(numbers) == list(range(200))
    variants = {task.episode_id.removeprefix("task-multi_turn_").rsplit("_", 1)[0] for task in tasks}
    assert variants == set(functions.VARIANTS)
    assert sum(len(task.turns) for task in tasks) == 823


def test_tasks_of_a_group_arrive_together(tasks: list[Episode]) -> None:
    rooms = [task.turns[0].room_id for task in tasks]
    assert len(set(rooms)) < len(rooms)  # at least two share their wording
    runs = [room for i, room in enumerate(rooms) if i == 0 or rooms[i - 1] != room]
    assert len(runs) == len(set(runs))


def test_later_tasks_repeat_no_wording_of_earlier_ones(tasks: list[Episode]) -> None:
    cut = next(i for i in range(120, 200) if tasks[i].turns[0].room_id != tasks[i - 1].turns[0].room_id)

    def pairs(task: Episode) -> set[tuple[str, str]]:
        words = " ".join(line["text"] for line in task.turns[-1].context["messages"]).lower().split()
        return set(pairwise(words))

    earlier = [pairs(task) for task in tasks[:cut]]
    for task in map(pairs, tasks[cut:]):
        assert max(len(task & other) / len(task | other) for other in earlier) < functions.SIMILAR


def test_questions_and_answers(tasks: list[Episode]) -> None:
    kind = get_decision_type("planning")
    for task in tasks:
        for turn in task.turns:
            offered = [action["name"] for action in turn.context["actions"]]
            assert len(set(offered)) == len(offered)
            assert set(turn.truth["actions"]) <= set(offered), task.episode_id
            assert turn.truth["actions"] and len(set(turn.truth["actions"])) == len(turn.truth["actions"])
            assert kind.parse(kind.format_answer(turn.truth), turn.context) == turn.truth


def test_what_is_missing_cannot_be_called(tasks: list[Episode]) -> None:
    late = [task for task in tasks if "miss_func" in task.episode_id]
    assert late
    for task in late:
        offers = [{action["name"] for action in turn.context["actions"]} for turn in task.turns]
        (arrives,) = [i for i in range(1, len(offers)) if offers[i] != offers[i - 1]]
        assert offers[arrives] > offers[arrives - 1]
        assert task.turns[arrives - 1].truth["actions"] == [REPLY]
        assert "You can use these functions now" in task.turns[arrives].context["messages"][-1]["text"]


def test_they_arrive_evenly_spaced_from_the_start() -> None:
    start = datetime(2020, 1, 1, tzinfo=UTC)
    tasks = read_tasks(start=start, spacing=timedelta(hours=1))
    assert [task.turns[0].ts for task in tasks[:3]] == [start + timedelta(hours=i) for i in range(3)]
    for task in tasks:
        assert all(a.ts < a.truth_ts <= b.ts for a, b in pairwise(task.turns))
        assert task.turns[-1].truth_ts <= task.end


def test_the_rule_plans_with_what_is_on_offer(tasks: list[Episode]) -> None:
    kind = get_decision_type("planning")
    right = 0
    for task in tasks:
        for turn in task.turns:
            decision = decide_planning(turn.context)
            assert kind.parse(kind.format_answer(decision), turn.context) == decision
            right += decision["actions"] == turn.truth["actions"]
    assert right / 823 > 0.2  # not a straw man: always the commonest plan would be right in 0.11


def test_a_broken_line_names_file_and_line(copy: Path) -> None:
    path = copy / "BFCL_v4_multi_turn_miss_param.json"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[6] = lines[6][:50]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataPackageError, match=r"miss_param\.json, line 7: not JSON"):
        read_tasks(copy)


def test_a_task_without_an_answer_is_named(copy: Path) -> None:
    path = copy / "possible_answer" / "BFCL_v4_multi_turn_base.json"
    path.write_text("\n".join(path.read_text().splitlines()[1:]))
    with pytest.raises(DataPackageError, match="multi_turn_base_0"):
        read_tasks(copy)


def test_a_call_that_does_not_parse_is_named(copy: Path) -> None:
    for path in (copy / "possible_answer").iterdir():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[3]["ground_truth"][-1] = ["cd(folder="]
        path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataPackageError, match=r"task 3, variant \w+: SyntaxError"):
        read_tasks(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "multi_turn_func_doc" / "math_api.json").unlink()
    with pytest.raises(DataPackageError, match=r"math_api\.json"):
        read_tasks(copy)


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataPackageError, match="pip install --no-deps bfcl-eval"):
        data_directory()
