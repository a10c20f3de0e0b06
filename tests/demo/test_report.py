from __future__ import annotations

import copy
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from demo.report import print_report, write_report
from quality.evaluation.evaluate import Label, SourceAnswer, evaluate

VOID = {"meta", "br", "link", "img"}


def comparison(right: int, of: int = 40) -> dict[str, Any]:
    """The custom answers to `of` questions, of which it has `right` right; the original has half of them."""
    labels = [Label({"action": "RESPOND" if i % 2 else "IGNORE"}, f"episode {i // 2}") for i in range(of)]
    other = {"RESPOND": "IGNORE", "IGNORE": "RESPOND"}

    def answers(count: int, confidence: float | None) -> list[SourceAnswer]:
        given = [
            label.decision["action"] if i < count else other[label.decision["action"]] for i, label in enumerate(labels)
        ]
        return [SourceAnswer({"action": action}, confidence, 1.5) for action in given]

    sources = {"original": answers(of // 2, None), "custom": answers(right, 0.9)}
    evaluation = evaluate("should_respond", labels, sources).as_dict()
    return {
        "decision_type": "should_respond",
        "rows_of": "served",
        "evaluation": evaluation,
        "verdict": "promote: <b>ok",
    }


RESULT: dict[str, Any] = {
    "provider": "emulator",
    "seconds": 130.0,
    "collected_from": "2018-05-01T00:00:00Z",
    "turned_at": "2018-05-05T02:00:00Z",
    "served_until": "2018-05-05T09:00:00Z",
    "steps": [{"name": "collect", "seconds": 4.0, "said": "<script>alert(1)</script> & [bold]more"}],
    "decisions": [{"decision_type": "should_respond", "phase": "serve", "source": "custom", "rows": 1234}],
    "funnels": {
        "should_respond": {
            "selected": 2000,
            "dropped": {"near_duplicate": 17, "no_label": 0},
            "splits": {"train": 1983},
            "label_sources": {"demonstration": 1983},
        }
    },
    "quality": {"success": True, "checked": 42, "failures": []},
    "trainings": [
        {
            "decision_type": "should_respond",
            "model": "m",
            "base_model": "base/model",
            "rows": 1983,
            "tokens": 765432,
            "seconds": 3.25,
            "cost_usd": "4.00",
        }
    ],
    "comparisons": [comparison(38)],
    "calibration": {"should_respond": [(0.93, True), (0.4, False), (1.0, True), (0.0, False)]},
    "latencies_ms": {"should_respond": {"custom": [1.5, 2.5, 0.0], "original": [0.02, 0.03]}},
    "budgets": [{"period": "total", "decision_type": None, "limit_usd": "75", "spent_usd": "71.913"}],
    "spend": [{"ts": "2018-05-05T02:00:00Z", "spent_usd": "8"}, {"ts": "2018-05-05T08:00:00Z", "spent_usd": "71.913"}],
    "actions": [{"ts": "2018-05-05T08:00:00Z", "what": "stopped rsn-1: 96 % of the budget"}],
    "reconciliation": {
        "billed_usd": "71.913",
        "charged_usd": "71.9130001",
        "difference_usd": "-0.0000001",
        "orphans": [],
    },
    "places": [{"what": "SQL", "how": "duckdb -c 'select 1'"}],
}

EMPTY: dict[str, Any] = RESULT | {
    "steps": [],
    "decisions": [],
    "funnels": {},
    "quality": {"success": False, "checked": 0, "failures": []},
    "trainings": [],
    "comparisons": [],
    "calibration": {},
    "latencies_ms": {"should_respond": {"custom": []}},
    "budgets": [],
    "spend": [],
    "actions": [],
    "places": [],
}


class Page(HTMLParser):
    """Tags that are opened and closed in order, and everything that the page would load or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {name}={value}" for name, value in attrs if name in ("src", "srcset") or tag == "script"]
        self.loads += [f"{tag} {v}" for name, v in attrs if name.endswith("href") and not (v or "").startswith("#")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def render(result: dict[str, Any], folder: Path) -> tuple[str, Page]:
    write_report(result, folder / "report.html")  # type: ignore[arg-type]
    html = (folder / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return render(RESULT, tmp_path_factory.mktemp("report"))


def test_one_file_that_loads_nothing(page: tuple[str, Page]) -> None:
    html, parsed = page
    assert parsed.loads == []
    assert "@import" not in html and not re.search(r"url\((?!['\"]?#)", html)
    # What is left of addresses are the names of XML's vocabularies.
    assert {match for match in re.findall(r"https?://[^\"'<\s]+", html) if "w3.org" not in match} == set()


def test_it_says_what_was_found(page: tuple[str, Page]) -> None:
    text = page[1].text
    for found in (
        "1,234",
        "near duplicate 17",
        "$71.91",
        "765,432",
        "3.2 s",
        "2 min 10 s",
        "-$0.000000",
        "stopped rsn-1",
    ):
        assert found in text
    evaluation = RESULT["comparisons"][0]["evaluation"]
    difference = evaluation["differences"]["custom - original"]["balanced_accuracy"]
    assert f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]" in text
    assert "better, the interval is clear of zero" in text
    assert "no label" not in text  # nothing was dropped for it


def test_what_people_wrote_is_text_not_markup(page: tuple[str, Page]) -> None:
    assert "<script>" not in page[0]
    assert "<script>alert(1)</script> & [bold]more" in page[1].text
    assert "promote: <b>ok" in page[1].text


def test_figures_are_well_formed_and_take_the_pages_ink(page: tuple[str, Page]) -> None:
    figures = re.findall(r"<svg.*?</svg>", page[0], re.DOTALL)
    assert len(figures) == 3
    ids: list[str] = []
    for figure in figures:
        root = ET.fromstring(figure)
        assert root.get("viewBox") and "currentColor" in figure
        ids += [element.get("id", "") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("right", "said"), [(2, "worse, the interval is below zero"), (21, "no difference shown")])
def test_it_says_so_when_the_rule_wins_or_nothing_is_shown(tmp_path: Path, right: int, said: str) -> None:
    _, parsed = render(RESULT | {"comparisons": [comparison(right)]}, tmp_path)
    assert said in parsed.text


def test_a_demo_in_which_nothing_came_about(tmp_path: Path) -> None:
    _, parsed = render(EMPTY, tmp_path)
    assert "Nothing had to be." in parsed.text and "Not passed." in parsed.text
    print_report(EMPTY, Console(file=StringIO()))  # type: ignore[arg-type]


def test_the_same_result_gives_the_same_file(tmp_path: Path, page: tuple[str, Page]) -> None:
    assert render(copy.deepcopy(RESULT), tmp_path)[0] == page[0]


@pytest.mark.parametrize("width", [60, 140])
def test_tables_for_the_terminal(width: int) -> None:
    out = StringIO()
    print_report(RESULT, Console(file=out, width=width))  # type: ignore[arg-type]
    text = " ".join(out.getvalue().split())
    for found in ("1,234", "17", "$71.91", "stopped rsn-1", "passed", "duckdb -c"):
        assert found in text
