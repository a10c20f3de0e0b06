"""A new answer form is two files: itself and its metrics. Shown by one that is added in a temporary place."""

from __future__ import annotations

import ast
import math
import random
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import quality.evaluation.form_metrics
import reasoning.formats
from gateway.ops.openapi import describe_api
from quality.dataset.export import export_dataset
from quality.dataset.manifest import read_rows
from quality.evaluation.evaluate import Label, SourceAnswer, evaluate
from quality.evaluation.thresholds import choose_threshold
from reasoning import DecisionClient
from reasoning.config import Config, load_config
from reasoning.decision_types import DECISION_TYPES, DecisionType
from reasoning.errors import ConfigError, InvalidContext, RecordError, UnparseableAnswer
from reasoning.formats import all_forms, get_form
from reasoning.serving.routes import Arm, Route, Routes, write_routes
from storage.log.land import land_decisions
from tests.quality.log import sentence
from tests.reasoning.conftest import ModelServer, rows, says

ROOT = Path(__file__).parents[2]
FORM = '''
import re

from reasoning.errors import UnparseableAnswer
from reasoning.formats.conversation import conversation_schema, render_conversation
from reasoning.formats.fields import read_fields
from reasoning.formats.port import AnswerForm

BEGIN, END = re.compile("<score>"), re.compile("</score")


class ScoreForm(AnswerForm):
    """`{"score"}`, an integer from 1 to 5."""

    name = "score"

    def render(self, parameters, context):
        return render_conversation(parameters, context, "Answer: <response><score>1 to 5</score></response>")

    def parse(self, parameters, completion, context=None):
        return self.normalize(parameters, read_fields(completion, ("score",), required="score"))

    def normalize(self, parameters, decision, context=None):
        if isinstance(decision, str):
            return self.parse(parameters, decision)
        score = decision.get("score")
        if str(score) not in ("1", "2", "3", "4", "5"):
            raise UnparseableAnswer(f"score: {score!r} is not an integer from 1 to 5")
        return {"score": int(score)}

    def format(self, parameters, decision):
        return f"<response><score>{decision['score']}</score></response>"

    def answer_class(self, decision):
        return str(decision["score"])

    def decision_schema(self, parameters):
        score = {"type": "integer", "minimum": 1, "maximum": 5}
        return {"type": "object", "required": ["score"], "properties": {"score": score}}

    def context_schema(self, parameters):
        return conversation_schema()

    def describe(self, parameters):
        return '{"score": 1 to 5}'

    def deciding_span(self, completion):
        begins = list(BEGIN.finditer(completion))
        end = END.search(completion, begins[-1].end()) if begins else None
        return (begins[-1].end(), end.start()) if end else None

    def sample_decisions(self, parameters):
        return [{"score": score} for score in range(1, 6)]


FORM = ScoreForm()
'''
METRICS = """
from quality.evaluation.form_metrics.rows import FormMetrics, measure_exact_match


def measure(rows):
    errors = [4 if a.decision is None else abs(label["score"] - a.decision["score"]) for label, a in rows.pairs]
    return measure_exact_match(rows) | {"mean_error": rows.mean_of(errors)}


METRICS = FormMetrics(primary="exact_match", measure=measure, less_is_better=frozenset(("mean_error",)))
"""
TOML = """
[decision_types.urgency]
answer = "score"
instruction = "Rate how urgent the last message is for {agent_name}, from 1 to 5."
question = "How urgent is the last message?"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """The configuration of a type of the form `score`, whose two files are found as those of the packages are."""
    for package, text in ((reasoning.formats, FORM), (quality.evaluation.form_metrics, METRICS)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "score.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    (tmp_path / "reasoning.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    yield load_config(tmp_path / "data", env={})
    vars(reasoning.formats)["LOADED"].pop("score", None)
    for package in (reasoning.formats, quality.evaluation.form_metrics):
        sys.modules.pop(f"{package.__name__}.score", None)
        vars(package).pop("score", None)


def test_a_fifth_form_goes_from_the_agent_to_the_evaluation(config: Config) -> None:
    start, rng = datetime(2026, 3, 1, tzinfo=UTC), random.Random(0)
    now = start
    with DecisionClient(config=config, clock=lambda: now.timestamp()) as client:
        for number in range(120):
            right = number % 5 + 1
            context = {"agent_name": "Ada", "messages": [{"speaker": "Eve", "text": f"{sentence(rng)} {right}"}]}
            guess = right if number % 3 else right % 5 + 1
            answer = client.decide("urgency", context, lambda _, guess=guess: {"score": guess}, episode_id=f"e{number}")
            assert answer.decision == {"score": guess}
            now += timedelta(minutes=1)
            assert client.feedback(
                "demonstration", {"score": right}, decision_id=answer.decision_id, kind="demonstration"
            )
            with pytest.raises(RecordError, match="1 to 5"):
                client.feedback("demonstration", {"score": 6}, decision_id=answer.decision_id, kind="demonstration")
            now += timedelta(hours=3)
    assert land_decisions(config.data).decisions == 120
    manifest = export_dataset(config.data, "urgency", now=now, config=config)
    assert (manifest.rows, manifest.dropped) == (120, {})
    assert set(manifest.splits["train"].answers) == {"1", "2", "3", "4", "5"}
    holdout = read_rows(manifest.path, "holdout", config=config)
    labels = [Label(row.label, row.episode, row.label_source) for row in holdout]
    sources = {
        "original": [SourceAnswer(row.original, latency_ms=1.0) for row in holdout],
        "candidate": [SourceAnswer(row.label, 0.9) for row in holdout],
    }
    kind = config.decision_types["urgency"]
    found = evaluate(kind, labels, sources)
    assert found.primary == "exact_match"
    best, guessed = found.sources["candidate"].metrics, found.sources["original"].metrics
    assert (best["exact_match"].value, best["mean_error"].value) == (1.0, 0.0)  # type: ignore[union-attr]
    assert 0.5 < guessed["exact_match"].value < 0.8 and guessed["mean_error"].value > 0.2  # type: ignore[union-attr]
    assert not [note for note in found.notes if "wins over candidate in mean_error" in note]
    assert choose_threshold(kind, labels, sources["candidate"], sources["original"]).metric == "exact_match"


def test_a_fifth_form_is_asked_of_a_model_with_its_confidence(config: Config, server: ModelServer) -> None:
    config.data.mkdir()
    arm = Arm("custom", "custom", 1.0, model="acme/small", base_url=server.url)
    issued = datetime.now(UTC)
    route = Route((arm,), deadline_ms=5000, experiment="try", salt="s")
    write_routes(config.routes, Routes(issued, issued + timedelta(minutes=60), {"urgency": route}))
    tokens = ["<response><score>", "4", "</score></response>"]
    server.answer = says("".join(tokens), tokens, [-0.5, -0.25, 0.0])
    context = {"agent_name": "Ada", "messages": [{"speaker": "Eve", "text": "Help!"}]}
    with DecisionClient(config=config) as client:
        answer = client.decide("urgency", context, lambda _: {"score": 1})
        assert (answer.source, answer.decision) == ("custom", {"score": 4})
        assert answer.confidence == pytest.approx(math.exp(-0.25))
        server.answer = says("<response><score>9</score></response>")
        answer = client.decide("urgency", context, lambda _: {"score": 1})
        assert (answer.decision, answer.fallback_reason) == ({"score": 1}, "unparseable")
    assert "1 to 5" in server.requests[0].json["messages"][0]["content"]
    assert [row["valid"] for row in rows(config.data)] == [True, False, True]
    described = describe_api(config.decision_types, [])["paths"]["/v1/decide/urgency"]["post"]["requestBody"]
    original = described["content"]["application/json"]["schema"]["properties"]["original"]
    assert original["properties"]["score"]["maximum"] == 5


CONVERSATION = {"agent_name": "Ada", "messages": [{"speaker": "Eve", "text": "Weather in Oslo?"}]}
SETTINGS = {"instruction": "Decide.", "question": "What now?", "labels": ["YES", "NO"]}
CASES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("label", CONVERSATION, {"action": "YES"}, {"action": "MAYBE"}),
    ("plan", CONVERSATION | {"actions": [{"name": "A"}]}, {"actions": ["A"]}, {"actions": ["B"]}),
    ("code", {"prompt": "sort"}, {"code": "x"}, {"code": ""}),
    (
        "turn",
        CONVERSATION | {"tools": [{"name": "weather", "parameters": {"type": "object"}}]},
        {"tool_calls": [{"name": "weather", "arguments": {"city": "Oslo"}}]},
        {"tool_calls": [{"name": "launch", "arguments": {}}]},
    ),
]


@pytest.mark.parametrize(("form", "context", "right", "wrong"), CASES, ids=[case[0] for case in CASES])
def test_a_declared_type_may_use_any_form(
    tmp_path: Path, form: str, context: dict[str, Any], right: dict[str, Any], wrong: dict[str, Any]
) -> None:
    own = {name: SETTINGS[name] for name in get_form(form).settings}
    lines = [f"{name} = {value!r}" for name, value in ({"answer": form} | own).items()]
    (tmp_path / "reasoning.toml").write_text("\n".join(["[decision_types.mine]", *lines]))
    kind = load_config(tmp_path / "data", tmp_path / "reasoning.toml", env={}).decision_types["mine"]
    assert kind.answer == form
    prompt = kind.render(context)
    completion = kind.format_answer(right)
    decision = kind.parse(completion, context)
    assert decision == kind.normalize(right, context) == kind.parse_reply(completion, prompt)
    assert kind.form.answer_class(decision)
    with pytest.raises(UnparseableAnswer):
        kind.normalize(wrong, context)
    with pytest.raises(InvalidContext):
        kind.render({})
    labels = [Label(decision, f"e{i}") for i in range(20)]
    found = evaluate(kind, labels, {"a": [SourceAnswer(decision, 0.9)] * 20, "b": [SourceAnswer(None)] * 20})
    assert found.sources["a"].metrics[found.primary].value == 1.0  # type: ignore[union-attr]
    assert found.sources["b"].metrics[found.primary].value == 0.0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answer": "poem"}, "known: code, label, plan, questions, turn"),
        ({"answer": 3}, "answer: text is needed"),
        ({"answer": "port"}, "is not an answer form"),
        ({"answer": "plan", "instruction": "Decide."}, "question is missing"),
        ({"answer": "plan", "labels": ["A", "B"], **SETTINGS}, "labels"),
    ],
)
def test_a_declared_form_that_makes_no_sense_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    (tmp_path / "reasoning.toml").write_text("\n".join(["[decision_types.mine]", *lines]))
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "data", tmp_path / "reasoning.toml", env={})


def test_a_turn_that_calls_a_tool_of_the_context_is_spelled_as_it_was() -> None:
    kind = DecisionType("call", "large", "turn", 100, 0.0, instruction="Help.", question="What now?")
    context = CONVERSATION | {"tools": [{"name": "weather"}]}
    completion = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
    assert kind.parse(completion, context) == {
        "text": "I look.",
        "tool_calls": [{"name": "weather", "arguments": {}}],
    }
    assert '{"name":"weather","description":"","parameters":{}}' in kind.render(context)[0]["content"]


def test_nothing_outside_the_formats_asks_which_form_an_answer_has() -> None:
    """A comparison with a form's name, or a table by their names: a new form would have to be added there."""
    names = set(all_forms())
    found = []
    for room in ("reasoning", "storage", "quality", "provider", "tasks", "flows", "gateway", "cli", "demo"):
        for path in sorted((ROOT / room).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if place.startswith(("reasoning/formats/", "quality/evaluation/form_metrics/")):
                continue
            found += [f"{place}:{line}" for line in questions(path.read_text(), names)]
    # elizaOS's prompts ask for labels and plans in words of its own; other forms are read and written as they are.
    assert [place for place in found if not place.startswith("gateway/decisions/prompts.py")] == []


def questions(source: str, names: set[str]) -> Iterator[int]:
    """Lines that compare `….answer` with something, or match on it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            asked = [side for side in (node.left, *node.comparators) if _is_form(side)]
            told = [n for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value in names]
            if asked and told:
                yield node.lineno
        elif (isinstance(node, ast.Match) and _is_form(node.subject)) or (
            isinstance(node, ast.Dict) and len({k.value for k in node.keys if isinstance(k, ast.Constant)} & names) > 1
        ):
            yield node.lineno


def _is_form(node: ast.expr) -> bool:
    return bool(re.fullmatch(r"(\w+\.)*(answer|answer_format|answer_form)", ast.unparse(node)))


def test_the_search_finds_what_it_looks_for() -> None:
    names = set(all_forms())
    for source in ('if kind.answer == "plan": x', 'x = "code" != answer', 'x = a.b.answer in ("label", "x")'):
        assert list(questions(source, names)) == [1]
    assert list(questions('X = {"label": 1, "plan": 2}', names)) == [1]
    assert list(questions('x = answer == "yes"', names)) == []


def test_every_form_says_what_it_is() -> None:
    assert sorted(all_forms()) == ["code", "label", "plan", "questions", "turn"]
    for kind in DECISION_TYPES.values():
        completions = kind.sample_answers()
        assert [kind.format_answer(kind.parse(text)) for text in completions] == completions
        assert kind.form.describe(kind)
