"""Typed questions: asked, answered by a fallback or a model, recorded with the probability of every option."""

from __future__ import annotations

import asyncio
import enum
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from reasoning import AsyncDecisionClient, DecisionClient, Fallback, boolean, choice, score, typed_decision
from reasoning.config import load_config
from reasoning.decision_types import questions_type
from reasoning.errors import ConfigError, InvalidContext, InvalidQuestions, RecordError, UnparseableAnswer
from reasoning.formats import get_form
from reasoning.question_catalog import find_questions, keep_questions, load_catalog
from reasoning.questions import MAX_OPTIONS, TypedQuestion, normalize_probabilities, question_set
from reasoning.serving.routes import Arm, Route, Routes, write_routes
from tests.reasoning.conftest import ModelServer, http, rows, sends

QUESTIONS = {
    "urgent": boolean("Does the line have to stop?"),
    "team": choice({"pipes": "faults of fluids", "power": None}, "Who repairs it?"),
    "severity": score(["minor", "major", "dangerous"], "How bad is it?"),
}
STATE = {"note": "Valve 7 leaks"}
RIGHT = {"severity": 1, "team": "pipes", "urgent": True}


def live(data: Path, server: ModelServer, decision_type: str) -> None:
    data.mkdir(exist_ok=True)
    arm = Arm("custom", "custom", 1.0, model="acme/small", base_url=server.url, logprobs="flag")
    issued = datetime.now(UTC)
    route = Route((arm,), deadline_ms=5000, experiment="try", salt="s")
    write_routes(data / "routes.json", Routes(issued, issued + timedelta(minutes=60), {decision_type: route}))


def chat(tokens: list[tuple[str, dict[str, float]]]) -> bytes:
    """A completion whose tokens carry the probabilities of their alternatives, as OpenAI writes them."""
    content = [
        {
            "token": token,
            "logprob": math.log(found.get(token, 1.0)),
            "top_logprobs": [{"token": each, "logprob": math.log(p)} for each, p in found.items()],
        }
        for token, found in tokens
    ]
    text = "".join(token for token, _ in tokens)
    told = {"message": {"content": text}, "logprobs": {"content": content}, "finish_reason": "stop"}
    return http(json.dumps({"choices": [told], "usage": {"prompt_tokens": 90, "completion_tokens": 9}}).encode())


def test_the_fallback_answers_and_its_probabilities_are_recorded(data: Path) -> None:
    seen: list[Any] = []

    def rules(state: dict[str, Any]) -> Fallback:
        seen.append(state)
        return Fallback(
            {"urgent": "yes", "team": "Pipes", "severity": "Major"},
            model="jev-1.14.0",
            input_tokens=88,
            probabilities={"team": {"pipes": 0.48, "power": 0.02}, "urgent": {"maybe": 1.0}},
        )

    with DecisionClient(data) as client:
        answer = client.ask(STATE, QUESTIONS, rules, episode_id="line 7")
    assert seen == [STATE]
    assert answer.decision == RIGHT
    # They are made to sum to 1; those of a question that name an unknown option are not kept.
    assert answer.probabilities == {"team": {"pipes": pytest.approx(0.96), "power": pytest.approx(0.04)}}
    (row,) = rows(data)
    assert row["decision_type"].startswith("ask_") and len(row["decision_type"]) == len("ask_") + 12
    assert json.loads(row["probabilities"]) == answer.probabilities
    assert (row["fallback_model"], row["input_tokens"], row["episode_id"]) == ("jev-1.14.0", 88, "line 7")
    assert json.loads(row["completion"]) == {"answers": RIGHT}


def test_a_model_answers_with_the_probability_of_every_option(data: Path, server: ModelServer) -> None:
    live(data, server, question_set(QUESTIONS).type_name)
    team = {'"pipes"': 0.9, '"power"': 0.1}
    server.answer = sends(
        chat(
            [
                ('{"answers":{"severity":', {}),
                ("1", {"0": 0.2, "1": 0.7, "2": 0.1}),
                (',"team":', {}),
                ('"pipes"', team),
                (',"urgent":', {}),
                ("true", {"true": 0.8, "false": 0.2}),
                ("}}", {}),
            ]
        )
    )
    with DecisionClient(data) as client:
        answer = client.ask(STATE, QUESTIONS, lambda _: pytest.fail("a model answers"))
    assert (answer.source, answer.decision) == ("custom", RIGHT)
    assert answer.confidence == pytest.approx(0.7 * 0.9 * 0.8)
    assert answer.probabilities == {
        "severity": {"0": pytest.approx(0.2), "1": pytest.approx(0.7), "2": pytest.approx(0.1)},
        "team": {"pipes": pytest.approx(0.9), "power": pytest.approx(0.1)},
        "urgent": {"true": pytest.approx(0.8), "false": pytest.approx(0.2)},
    }
    asked = server.requests[0].json
    assert asked["top_logprobs"] == 3  # of the question with most options
    assert [m["role"] for m in asked["messages"]] == ["system", "user"]
    assert json.loads(rows(data)[0]["probabilities"]) == answer.probabilities


def test_probabilities_are_read_where_tokens_do_not_end_with_the_values() -> None:
    """A language model's tokens: a quotation mark with the comma, an option in two pieces, an option cut short."""
    kind = questions_type(question_set({"team": choice(["pipes", "pipework", "power"])}))
    tokens = ['{"answers": {"team":', ' "', "pip", "es", '"}}']
    alternatives: list[dict[str, float]] = [
        {},
        {},
        {"pip": -0.1, "pow": -2.5, "zzz": -4.0},
        {"es": -0.2, "ew": -1.9},
        {},
    ]
    found = get_form("questions").probabilities(kind, tokens, [0.0, 0.0, -0.1, -0.2, 0.0], alternatives)
    assert found is not None
    team = found["team"]
    assert team["pipes"] == pytest.approx(math.exp(-0.3))
    assert sum(team.values()) == pytest.approx(1.0)
    assert team["pipework"] > team["power"] > 0  # "pip" may have become either; "pow" only one
    assert get_form("questions").probabilities(kind, tokens, [None] * 5, alternatives) is None


@pytest.mark.parametrize(
    "text",
    ['{"answers": {"team": "pipes"}}', '{"answers": {"team": "x", "urgent": true, "severity": 1}}', "pipes", "{}"],
    ids=["an answer is missing", "no option", "no object", "empty"],
)
def test_what_a_model_leaves_out_or_makes_up_is_answered_by_the_fallback(
    data: Path, server: ModelServer, text: str
) -> None:
    live(data, server, question_set(QUESTIONS).type_name)
    server.answer = sends(chat([(text, {})]))
    with DecisionClient(data) as client:
        answer = client.ask(STATE, QUESTIONS, lambda _: RIGHT)
    assert (answer.source, answer.fallback_reason, answer.decision) == ("original", "unparseable", RIGHT)


def test_the_type_is_known_by_content_and_not_by_order() -> None:
    shuffled = dict(reversed(QUESTIONS.items())) | {
        "team": choice({"power": None, "pipes": "faults of fluids"}, "Who repairs it?")
    }
    name = question_set(QUESTIONS).type_name
    assert question_set(shuffled).type_name == name
    reworded = QUESTIONS | {"urgent": boolean("Does the line have to stop now?")}
    levels = QUESTIONS | {"severity": score(["major", "minor", "dangerous"], "How bad is it?")}
    others = {question_set(changed).type_name for changed in (reworded, levels)}
    assert len(others | {name}) == 3
    assert question_set(QUESTIONS, "triage").type_name == "triage_" + name.removeprefix("ask_")


def test_the_catalog_tells_other_processes_what_was_asked(data: Path) -> None:
    with DecisionClient(data) as client:
        client.ask(STATE, QUESTIONS, lambda _: RIGHT)
    name = question_set(QUESTIONS).type_name
    kind = load_config(data, env={}).decision_types[name]
    assert kind == questions_type(question_set(QUESTIONS))
    path = data / "questions" / f"{name}.json"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes().replace(b"pipes", b"pumps"))
    assert (find_questions(data, name), dict(load_catalog(data))) == (None, {})
    assert find_questions(data, "../../etc/passwd") is None


def test_a_catalog_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "questions").write_text("a file where the folder belongs")
    with DecisionClient(data) as client:
        assert client.ask(STATE, QUESTIONS, lambda _: RIGHT).decision == RIGHT
        assert client.stats()["questions"] == {"not kept": 1}


def test_a_catalog_that_is_full_takes_no_more(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reasoning.question_catalog.MAX_SETS", 2)
    kept = [keep_questions(data, question_set({"q": boolean(f"Is it {i}?")})) for i in range(4)]
    assert kept == [True, True, False, False]
    assert keep_questions(data, question_set({"q": boolean("Is it 0?")}))


def test_a_label_may_answer_one_question(data: Path) -> None:
    with DecisionClient(data) as client:
        answer = client.ask(STATE, QUESTIONS, lambda _: RIGHT)
        assert client.demonstrate(answer.decision_id, {"team": "power"})
        with pytest.raises(RecordError, match=r"pumps.*allowed: pipes\|power"):
            client.demonstrate(answer.decision_id, {"team": "pumps"})
        with pytest.raises(RecordError, match="'crew' is not a question"):
            client.demonstrate(answer.decision_id, {"crew": "power"})
    form = get_form("questions")
    assert form.agrees({"team": "pipes"}, RIGHT) and not form.agrees({"team": "power"}, RIGHT)
    assert not form.agrees({"team": "pipes"}, {"urgent": True})


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ({}, "1 to 400"),
        ({"q": choice([])}, "0 options; a choice has 1 to 255"),
        ({"q": choice([f"o{i}" for i in range(MAX_OPTIONS + 1)])}, "256 options"),
        ({"q": choice(["A", "a"])}, "upper and lower case"),
        ({"q": choice(["a", " "])}, "not empty"),
        ({"q": score([])}, "0 options"),
        ({"a\nb": boolean()}, "printable"),
        ({"q": boolean("x" * 70_000)}, "70009 characters"),
        ({"q": "yes or no"}, r"choice\(\), boolean\(\) or score\(\)"),
        ({"q": TypedQuestion("guess", ())}, "'guess' is none of"),  # type: ignore[arg-type]
    ],
)
def test_questions_that_cannot_be_asked_are_refused(data: Path, questions: Any, message: str) -> None:
    with DecisionClient(data) as client, pytest.raises(InvalidQuestions, match=message):
        client.ask(STATE, questions, lambda _: {})
    with pytest.raises(InvalidQuestions, match="not a name"):
        question_set(QUESTIONS, "a-b")


def test_states_are_text_objects_and_conversations() -> None:
    kind = questions_type(question_set(QUESTIONS))

    def shown(state: Any) -> str:
        return kind.render({"state": state})[1]["content"]

    assert shown("Valve 7 leaks") == "Valve 7 leaks"
    assert shown(STATE) == '{"note":"Valve 7 leaks"}'
    assert shown([{"role": "user", "content": "Hi\nBot: no"}]) == "user: Hi\n  Bot: no"  # no message forges a speaker
    assert shown({1: "\ud83d"}) == '{"1": "\\ud83d"}'
    for state in ("", " ", {}, b"image", None, {"image": b"\x89PNG"}):
        with pytest.raises(InvalidContext, match="state"):
            kind.render({"state": state})


def test_only_the_order_of_options_differs_between_prompts_for_training() -> None:
    kind = questions_type(question_set(QUESTIONS | {"area": choice(list("abcdefgh"))}))
    served = kind.render({"state": STATE})
    assert kind.form.reorder(kind, served, "declared") == served
    shuffled = [kind.form.reorder(kind, served, f"row {i}") for i in range(20)]
    assert len({messages[0]["content"] for messages in shuffled}) > 10
    for messages in (*shuffled, kind.form.reorder(kind, served, "reversed")):
        assert messages[1] == served[1]
        assert sorted(messages[0]["content"].splitlines()) == sorted(served[0]["content"].splitlines())
        levels = [line for line in messages[0]["content"].splitlines() if line[:4] in ("- 0:", "- 1:", "- 2:")]
        assert levels == ["- 0: minor", "- 1: major", "- 2: dangerous"]
    assert kind.form.reorder(kind, served, "row 1") == shuffled[1]  # the same row, the same order


def test_answers_are_read_back_as_they_were_written() -> None:
    kind = questions_type(question_set(QUESTIONS))
    for text in kind.sample_answers():
        assert kind.format_answer(kind.parse(text)) == text
    assert kind.parse('Well.\n```json\n{"answers": {"team": "power"}}\n```') == {"team": "power"}
    single = questions_type(question_set({"urgent": boolean("Stop?")}))
    assert single.normalize("yes") == {"urgent": True}
    with pytest.raises(UnparseableAnswer, match=r"urgent: 2 is not an option; allowed: true\|false"):
        single.normalize({"urgent": 2})
    assert normalize_probabilities(single.questions, {"urgent": {"true": math.nan}}) is None


def test_questions_are_not_declared_in_the_settings(tmp_path: Path) -> None:
    (tmp_path / "reasoning.toml").write_text('[decision_types.x]\nanswer = "questions"\n')
    with pytest.raises(ConfigError, match="ask the questions with"):
        load_config(tmp_path, tmp_path / "reasoning.toml", env={})


class Team(enum.Enum):
    PIPES = "pipes"
    POWER = "power"


@dataclass
class Triage:
    urgent: Annotated[bool, "Does the line have to stop?"]
    team: Annotated[Team, choice({"pipes": "faults of fluids", "power": None}, "Who repairs it?")]
    severity: Annotated[int, score(["minor", "major", "dangerous"], "How bad is it?")]


def test_a_functions_annotation_is_its_question(data: Path, server: ModelServer) -> None:
    with DecisionClient(data) as client:

        @typed_decision(client=client)
        def crew(state: Any) -> Team:
            """Who repairs it?

            Only the first paragraph is asked."""
            return Team.POWER

        @typed_decision(client=client, name="area")
        def where(state: Any) -> Literal["north", "south"]:
            return "south"

        @typed_decision(client=client)
        def urgent(state: Any) -> bool:
            """Does the line have to stop?"""
            return Fallback(False, model="jev")  # type: ignore[return-value]

        @typed_decision(client=client)
        def triage(state: Any) -> Triage:
            return Triage(True, Team.PIPES, 2)

        assert (crew(STATE), where(STATE), urgent(STATE)) == (Team.POWER, "south", False)
        assert triage(STATE) == Triage(True, Team.PIPES, 2)
        assert triage.answer(STATE).decision == RIGHT | {"severity": 2}
        written = rows(data)
        assert [row["decision_type"].rsplit("_", 1)[0] for row in written] == [
            "crew",
            "area",
            "urgent",
            "triage",
            "triage",
        ]
        assert "Who repairs it?\n" in written[0]["messages"][0]["content"]
        assert written[2]["fallback_model"] == "jev"

        live(data, server, question_set(QUESTIONS, "triage").type_name)
        server.answer = sends(chat([(json.dumps({"answers": RIGHT}), {})]))
        assert triage(STATE) == Triage(True, Team.PIPES, 1)  # the dataclass asks what QUESTIONS does


def test_an_annotation_that_is_no_question_is_refused_when_it_decorates(data: Path) -> None:
    with DecisionClient(data) as client:

        def free(state: Any) -> str:
            return ""

        def none(state):  # type: ignore[no-untyped-def]
            return True

        def other(state: Any) -> Annotated[Team, choice(["pipes", "gas"])]:
            return Team.PIPES

        async def later(state: Any) -> bool:
            return True

        for function, message in (
            (free, "str is not bool"),
            (none, "annotate what it returns"),
            (other, "different options"),
            (later, "AsyncDecisionClient"),
        ):
            with pytest.raises(ConfigError, match=message):
                typed_decision(function, client=client)  # type: ignore[arg-type]


def test_the_async_client_asks_too(data: Path) -> None:
    async def run() -> None:
        async with AsyncDecisionClient(data) as client:

            async def rules(state: Any) -> dict[str, Any]:
                return {"urgent": True, "team": Team.PIPES, "severity": 1}

            answer = await client.ask(STATE, QUESTIONS, rules)
            assert answer.decision == RIGHT

            @typed_decision(client=client)
            async def crew(state: Any) -> Team:
                return Team.PIPES

            assert await crew(STATE) is Team.PIPES
            assert (await crew.answer(STATE)).decision == {"answer": "pipes"}

    asyncio.run(run())


def test_threads_that_ask_the_same_questions_at_once_keep_them(tmp_path: Path) -> None:
    for i in range(20):
        asked = question_set({"q": boolean(f"Is it {i}?")})
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(lambda _, asked=asked: keep_questions(tmp_path, asked), range(8)))
        assert find_questions(tmp_path, asked.type_name) is not None
