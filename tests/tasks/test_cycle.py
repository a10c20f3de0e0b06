"""The money of a whole cycle: planned, compared with every budget, and held before its first cent."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from pipeline.cycle import plan_cycle, run_cycle
from pipeline.errors import NotWorthIt
from pipeline.models import export, fine_tune
from pipeline.parameters import CycleSettings
from pipeline.triggers import Trigger, find_due
from quality.dataset.manifest import DatasetRow
from quality.evaluation.promotion import certain_refusals, foresee
from storage.errors import BudgetExceeded
from storage.layout import Layout
from storage.ledger.charges import ChargedTo
from storage.ledger.ledger import HOLD_TTL, open_ledger
from storage.ledger.lives import CycleRow
from storage.ledger.rows import FineTuneJob, Model, UploadedDataset
from storage.log.land import land_decisions
from tests.cli.test_commands import reasoning
from tests.tasks.rooms import NOON, write_log
from tests.tasks.test_selection import add_deployment

TYPE = "should_respond"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("cycle") / "data"
    write_log(data, episodes=130, turns=4)
    land_decisions(data)
    return data


def test_reservations_of_the_type_draw_on_what_is_held_for_its_cycle(tmp_path: Path) -> None:
    Layout(tmp_path).create()
    with open_ledger(tmp_path, now=NOON) as ledger:
        for period, limit in (("day", "10"), ("hour", "6"), ("month", None)):
            ledger.set_budget(period, limit, now=NOON)  # type: ignore[arg-type]
        ledger.hold("9.49", TYPE, hourly_usd="5.49", now=NOON)
        with pytest.raises(BudgetExceeded):
            ledger.reserve("4", purpose="another", decision_type="planning", now=NOON)
        job = ledger.reserve("4", purpose="job", decision_type=TYPE, now=NOON)
        runway = ledger.reserve("0.50", purpose="runway", decision_type=TYPE, hourly_usd="5.49", now=NOON)
        assert ledger.held(TYPE, now=NOON) == (Decimal("4.99"), Decimal(0))
        ledger.settle(job, "4", kind="training", what="job", now=NOON)
        ledger.resize(runway, "1.50", now=NOON)
        assert ledger.held(TYPE, now=NOON)[0] == Decimal("3.99")
        ledger.hold("4.50", TYPE, now=NOON)  # again: instead of, not beside; 4 are spent and 1.50 reserved
        assert ledger.held(TYPE, now=NOON) == (Decimal("4.50"), Decimal(0))
        later = NOON + HOLD_TTL + timedelta(seconds=1)
        assert ledger.held(TYPE, now=later) == (Decimal(0), Decimal(0))  # of a killed process: it lapses
        ledger.release_hold(TYPE, now=NOON)
        assert ledger.held(TYPE, now=NOON) == (Decimal(0), Decimal(0))


HOLDER = """
import sys, time
from datetime import datetime, UTC
from pathlib import Path
from pipeline.cycle_plan import holding
from storage.ledger.ledger import open_ledger
data = Path(sys.argv[1])
with holding(data, "should_respond"), open_ledger(data) as ledger:
    ledger.hold("9", "should_respond", hourly_usd="5", now=datetime.now(UTC))
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_hold_of_a_killed_cycle_is_taken_over_by_the_next_and_counted_once(tmp_path: Path) -> None:
    Layout(tmp_path).create()
    now = datetime.now(UTC)
    with open_ledger(tmp_path, now=now) as ledger:
        ledger.set_budget("day", "10", now=now)
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
    with open_ledger(tmp_path) as ledger:
        assert ledger.held(TYPE) == (Decimal(9), Decimal(5))  # nobody released it
        with pytest.raises(BudgetExceeded):
            ledger.reserve("2", purpose="another", decision_type="planning")
        ledger.hold("9", TYPE, hourly_usd="5")
        assert ledger.held(TYPE) == (Decimal(9), Decimal(5))
        assert ledger.held(TYPE, now=datetime.now(UTC) + HOLD_TTL + timedelta(minutes=1)) == (Decimal(0), Decimal(0))
        ledger.release_hold(None)
        ledger.reserve("2", purpose="another", decision_type="planning")


def test_a_refused_hold_changes_nothing(tmp_path: Path) -> None:
    Layout(tmp_path).create()
    with open_ledger(tmp_path, now=NOON) as ledger:
        ledger.set_budget("day", "10", now=NOON)
        ledger.hold("5", TYPE, now=NOON)
        with pytest.raises(BudgetExceeded):
            ledger.hold("11", TYPE, now=NOON)
        assert ledger.held(TYPE, now=NOON)[0] == 5


def test_default_budgets_carry_a_candidate_beside_its_incumbent(tmp_path: Path) -> None:
    Layout(tmp_path).create()
    with open_ledger(tmp_path, now=NOON) as ledger:
        ledger.reserve("0.50", purpose="incumbent", decision_type=TYPE, hourly_usd="5.49", now=NOON)
        ledger.charge("training", "4", key="first", what="the first cycle", now=NOON, of=ChargedTo(decision_type=TYPE))
        ledger.hold(Decimal(4) + 2 * Decimal("5.49"), TYPE, hourly_usd="5.49", now=NOON)


@pytest.mark.parametrize(
    "period, limit, least", [("day", "9", "9.49"), ("hour", "5", "5.49"), ("total", "9.48", "9.49")]
)
def test_a_cycle_that_a_budget_does_not_carry_is_refused_before_its_first_cent(
    log: Path, local: str, period: str, limit: str, least: str
) -> None:
    with open_ledger(log) as ledger:
        ledger.set_budget(period, limit)  # type: ignore[arg-type]
        before = ledger.spent()
    try:
        with pytest.raises(BudgetExceeded, match=f"`reasoning costs set-budget {least} --period {period}`"):
            fine_tune(log, export(log, TYPE).path)
        with open_ledger(log) as ledger:
            assert ledger.spent() == before and ledger.find(FineTuneJob) == []
            assert ledger.held(TYPE) == (Decimal(0), Decimal(0))
    finally:
        with open_ledger(log) as ledger:
            for name, default in (("hour", "12"), ("day", "25"), ("month", "100"), ("total", None)):
                ledger.set_budget(name, default)  # type: ignore[arg-type]


def test_the_plan_names_every_price_and_spends_nothing(log: Path, local: str) -> None:
    plan = plan_cycle(log, TYPE)
    assert [step.step for step in plan.steps] == ["training", "candidate", "evaluation"]
    assert (plan.amount_usd, plan.hourly_usd, plan.blocked_by) == (Decimal("9.49"), Decimal("5.49"), [])
    with open_ledger(log) as ledger:
        assert ledger.charges() == [] and ledger.find(UploadedDataset) == []
        ledger.set_budget("day", "9")
    env = {"REASONING_PROVIDER_URL": local}
    shown = reasoning("cycle", TYPE, "--plan", "--json", "--data", log, env=env)
    assert shown.returncode == 1
    (blocked,) = json.loads(shown.stdout)["blocked_by"]
    assert "the day budget is $9.00" in blocked and "set-budget 9.49 --period day" in blocked
    table = " ".join(reasoning("cycle", TYPE, "--plan", "--data", log, env=env).stdout.split())
    assert "Blocked: the cycle of should_respond needs $9.49" in table
    with open_ledger(log) as ledger:
        ledger.set_budget("day", "25")


def make_rows(
    count: int, episodes: int, source: str = "demonstration", cost: float | None = 0.01, answered: bool = True
) -> list[DatasetRow]:
    answer = {"action": "IGNORE"} if answered else None
    return [
        DatasetRow(
            split="holdout",
            line=n,
            decision_id=str(n),
            episode=f"e{n % episodes}",
            ts=NOON,
            label_source=source,
            messages=[],
            label={"action": "RESPOND"},
            original=answer,
            original_latency_ms=1.0,
            original_cost_usd=cost,
        )
        for n in range(count)
    ]


@pytest.mark.parametrize(
    "rows, cost, incumbent, why",
    [
        (make_rows(60, 25), 0.1, None, None),
        (make_rows(60, 25, cost=None), 0.1, None, None),  # better is still possible
        (make_rows(60, 19), 0.1, None, "60 rows of 19 episodes"),
        (make_rows(49, 25), 0.1, None, "49 rows of 25 episodes"),
        (make_rows(60, 25, answered=False), 0.1, None, "answered none"),
        (make_rows(60, 25, "original", None), 0.001, None, "what the original costs is not known"),
        (make_rows(60, 25, "original"), 0.001, None, None),  # as good and cheaper is possible
        (make_rows(60, 25, "original"), 0.02, None, "will cost $0.02"),
        (make_rows(60, 25, "original"), None, None, "not known, as nothing was asked lately"),
        (make_rows(60, 25, "original"), 0.005, 0.005, "of the incumbent"),
    ],
)
def test_what_no_model_can_pass_is_told_before_it_is_trained(
    rows: list[DatasetRow], cost: float | None, incumbent: float | None, why: str | None
) -> None:
    found = certain_refusals(foresee(rows), cost_usd=cost, incumbent_cost_usd=incumbent, priced=True)
    assert (found == []) if why is None else any(why in each for each in found)


def test_a_dataset_that_proves_nothing_is_said_at_export_and_not_trained_on(tmp_path: Path, local: str) -> None:
    data = tmp_path / "data"
    write_log(data, episodes=20, turns=10)
    land_decisions(data)
    said = reasoning("export", TYPE, "--data", data)
    assert said.returncode == 0 and "certain to be refused: the holdout has" in said.stderr
    with pytest.raises(NotWorthIt, match="--anyway insists"):
        fine_tune(data, export(data, TYPE).path)
    turn = run_cycle(data, TYPE, CycleSettings(force=True))
    assert turn.outcome == "not_enough_data" and "certain to be refused" in turn.why
    with open_ledger(data) as ledger:
        assert ledger.charges() == [] and ledger.held(TYPE) == (Decimal(0), Decimal(0))
        assert ledger.find(UploadedDataset) == []
    job = fine_tune(data, export(data, TYPE).path, anyway=True)
    assert job.state == "completed"
    with open_ledger(data) as ledger:
        assert ledger.held(TYPE) == (Decimal(0), Decimal(0))
        ledger.transition(Model, job.model_id, "promoted")
    # The next plan of the same dataset is of this model, not of another one beside it.
    add_deployment(data, job.model_id, "provisioning", "ready")
    plan = plan_cycle(data, TYPE, CycleSettings(anyway=True, force=True))
    assert [step.step for step in plan.steps] == ["training", "candidate", "evaluation"]
    assert (plan.steps[0].amount_usd, plan.hourly_usd) == (0, 0) and plan.steps[1].what.endswith("runs already")


@pytest.mark.parametrize(("share", "trigger"), [(0.95, Trigger.DRIFT), (0.5, None)])
def test_a_cycle_is_due_for_drift_from_the_last_dataset_with_fewer_decisions(
    tmp_path: Path, log: Path, share: float, trigger: Trigger | None
) -> None:
    data = tmp_path / "data"
    shutil.copytree(log, data)
    dataset = export(data, TYPE)
    later = NOON + timedelta(days=2)
    write_log(data, episodes=60, turns=2, until=later, seed=1, spoken_to_share=share, name="late")
    land_decisions(data)
    last = CycleRow(decision_type=TYPE, dataset_id=dataset.dataset_id, finished_at=NOON.isoformat())
    due = find_due(data, TYPE, last, CycleSettings(), now=later)
    assert due.trigger == trigger, due.why
    assert "120" in due.why
    if trigger is not None:
        assert due.why.startswith("drift: label")
