"""Does it pay? Recorded workloads whose answers are known, and how each figure is made."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from pipeline.economy.pays import TypePays, pays
from pipeline.economy.ways import Way
from pipeline.parameters import PaysSettings
from tests.pipeline.workloads import NOW, Recorded, record

LUNA, OPUS, SONNET = "gpt-6-luna", "claude-opus-5-5", "claude-sonnet-5-5"
WORKDAY: dict[str, Any] = {"weekdays": (0, 1, 2, 3, 4), "hours": tuple(range(8, 16))}
NO_HOME = "[prices.serving.home]\nenabled = false\n"
ONE_GPU = NO_HOME + "[prices.serving.per_token]\nenabled = false\n"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reasoning.toml in force, empty at first."""
    file = tmp_path / "reasoning.toml"
    file.touch()
    monkeypatch.setenv("REASONING_CONFIG", str(file))
    return file


def judged(data: Path, *workloads: Recorded, **changes: Any) -> TypePays:
    record(data, *workloads)
    return pays(data, workloads[0].decision_type, settings=PaysSettings(**changes), now=NOW)[0]


def ways(found: TypePays) -> dict[str, Way]:
    return {way.name: way for way in found.ways}


@pytest.mark.parametrize(
    ("workload", "toml", "verdict", "says"),
    [
        pytest.param(
            Recorded(per_hour=40, cost_usd=0.0, demonstrated=700, quality=0.97),
            "",
            "do not train",
            "is free and agrees with 97% of the demonstrations: no model can be cheaper",
            id="rules that are free and good",
        ),
        pytest.param(
            Recorded(per_hour=417, days=2, model=LUNA),
            "",
            "train",
            "small model at home (CPU): it costs $0.00 a month in place of $28.1",
            id="ten thousand labels a day of a small hosted model",
        ),
        pytest.param(
            Recorded(decision_type="planning", per_hour=12, model=LUNA),
            "",
            "do not train",
            "saves less than $1.00 a month",
            id="few plans of a small hosted model",
        ),
        pytest.param(
            Recorded(decision_type="planning", per_hour=1500, model=OPUS, **WORKDAY),
            ONE_GPU,
            "train",
            "dedicated GPU (Together, 1 x H100): it costs $751 a month in place of $1,013",
            id="plans of a large model on workdays",
        ),
        pytest.param(
            Recorded(per_hour=4, model=SONNET),
            "",
            "not yet",
            "needs 293 more labels",
            id="few labels so far",
        ),
        pytest.param(
            Recorded(per_hour=40),
            "",
            "not yet",
            "unknown for 6,720 of 6,720 answers: return it in a Fallback",
            id="a fallback that does not say what it costs",
        ),
        pytest.param(
            Recorded(per_hour=40, cost_usd=0.0, demonstrated=700, quality=0.7),
            "",
            "train",
            "agrees with only 70% of the demonstrations: train a small model at home",
            id="rules that are free and often wrong",
        ),
        pytest.param(
            Recorded(decision_type="planning", per_hour=300, days=1, model=OPUS),
            NO_HOME,
            "train",
            "adapter hosted per token",
            id="many plans of a large model where tokens are cheaper than a machine",
        ),
        pytest.param(
            Recorded(per_hour=300, days=1, model=OPUS),
            ONE_GPU,
            "do not train",
            "hosted decision model (Jev 1.14), which needs no training",
            id="labels that a hosted decision model gives for less than any machine",
        ),
        pytest.param(
            Recorded(per_hour=20, days=1, hours=(22, 23), model=OPUS),
            "",
            "not yet",
            "log at least 200 over 24 hours",
            id="an hour of the log",
        ),
    ],
)
def test_a_recorded_workload_has_its_known_answer(
    tmp_path: Path, settings: Path, workload: Recorded, toml: str, verdict: str, says: str
) -> None:
    settings.write_text(toml)
    found = judged(tmp_path / "data", workload)
    assert found.verdict == verdict and says in found.why, found.why


def test_the_break_even_of_a_machine_is_its_price_by_that_of_the_fallback(tmp_path: Path, settings: Path) -> None:
    settings.write_text("[prices.serving.dedicated]\nhourly_usd = 5.49\n")
    found = judged(tmp_path / "data", Recorded(per_hour=40, model=LUNA))
    assert ways(found)["dedicated"].break_even_per_hour == Decimal("5.49") / Decimal("0.0000925")  # 1.42 M a day
    assert float(ways(found)["dedicated"].usd_per_month or 0) == pytest.approx(5.49 * 730)
    assert found.fallback_usd_per_1000 == Decimal("0.0925")
    assert [source.split()[0] for source in found.price_sources] == ["genai-prices"]


def test_a_machine_sleeps_when_nobody_asks(tmp_path: Path, settings: Path) -> None:
    found = judged(tmp_path / "data", Recorded(per_hour=60, model=LUNA, **WORKDAY), idle_minutes=30)
    awake = 5 * (8 - 1 / 60 + 0.5)  # five days, until half an hour after each day's last
    window = 7 * 24 - 8  # since Monday 8:00
    assert float(ways(found)["dedicated"].usd_per_month or 0) == pytest.approx(3.99 * awake / window * 730, rel=1e-6)


def test_types_of_one_tier_share_a_replica_and_its_whole_price(tmp_path: Path, settings: Path) -> None:
    settings.write_text(
        '[decision_types.mood]\nanswer = "label"\nlabels = ["A", "B"]\ninstruction = "i"\nquestion = "q"\n'
    )
    data = record(
        tmp_path / "data",
        Recorded(per_hour=30, hours=tuple(range(12)), model=LUNA),
        Recorded(decision_type="mood", per_hour=10, hours=tuple(range(6, 18)), model=LUNA),
    )
    found = {each.decision_type: ways(each)["shared"] for each in pays(data, now=NOW)}
    assert "75% of a replica for 2 types" in found["should_respond"].note
    total = sum((way.usd_per_month or Decimal(0)) for way in found.values())
    last = 54 / 60  # of an hour is when the last one of a day is asked
    assert float(total) == pytest.approx(3.99 * 7 * (17 + last + 0.25) / 168 * 730, rel=1e-3)


def test_what_is_not_known_of_some_answers_is_counted(tmp_path: Path, settings: Path) -> None:
    found = judged(
        tmp_path / "data",
        Recorded(per_hour=30, model=LUNA),
        Recorded(per_hour=10, model="nobodys-model"),
        Recorded(per_hour=10, tokens=False),
    )
    assert (found.unknown_costs, sum(found.price_sources.values())) == (20 * 168, 30 * 168)
    assert found.fallback_usd_per_1000 == Decimal("0.0925")  # of those that are known


def test_the_user_may_say_what_the_fallback_costs(tmp_path: Path, settings: Path) -> None:
    settings.write_text("[prices.fallback]\nshould_respond = 0\n")
    found = judged(tmp_path / "data", Recorded(per_hour=10))
    assert (found.verdict, found.unknown_costs) == ("do not train", 0) and "is free" in found.why


def test_volume_is_by_hour_of_the_week_from_monday(tmp_path: Path, settings: Path) -> None:
    found = judged(tmp_path / "data", Recorded(per_hour=60, days=14, model=LUNA, **WORKDAY))
    busy = {hour for hour, volume in enumerate(found.volume_by_hour) if volume}
    assert busy == {day * 24 + hour for day in range(5) for hour in range(8, 16)}
    assert found.volume_by_hour[8] == pytest.approx(60, rel=0.03) and found.peak_an_hour == 60


def test_an_empty_log_says_nothing(tmp_path: Path, settings: Path) -> None:
    assert pays(record(tmp_path / "data"), now=NOW) == []


def test_the_command_says_the_verdict_and_keeps_it_for_the_dashboard(
    tmp_path: Path, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = record(tmp_path / "data", Recorded(per_hour=10, model=LUNA), Recorded(decision_type="planning", per_hour=5))
    days = (datetime.now(UTC) - NOW).days + 8  # the recorded week, for a command that works now
    found = CliRunner().invoke(app, ["pays", "--data", str(data), "--days", str(days)])
    assert found.exit_code == 0, found.output
    assert "Does a model pay?" in found.output and "hosted decision model (Jev 1.14)" in found.output
    assert "NOT YET. What the fallback of planning costs is unknown for 840 of 840 answers" in found.output
    kept = json.loads((data / "pays.json").read_text())
    assert [(each["decision_type"], each["verdict"]) for each in kept["types"]] == [
        ("planning", "not yet"),
        ("should_respond", "do not train"),
    ]
    as_json = CliRunner().invoke(app, ["pays", "should-respond", "--data", str(data), "--days", str(days), "--json"])
    (one,) = json.loads(as_json.output)
    assert len(one["volume_by_hour"]) == 168 and {way["source"][-12:] for way in one["ways"]} == {"(2026-11-28)"}
