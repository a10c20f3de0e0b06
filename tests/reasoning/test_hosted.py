"""A hosted decision model as the fallback: asked over HTTP in both wires, and what becomes of what it says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from reasoning import AsyncDecisionClient, DecisionClient, boolean, choice, score
from reasoning.config import Config, load_config
from reasoning.errors import CallFailed, ConfigError
from reasoning.questions import question_set
from reasoning.serving.decision_wires import WIRES
from tests.reasoning.conftest import ModelServer, http, rows, sends

KEY = "a-secret-of-the-hosted-model"
QUESTIONS = {
    "stop": boolean("Stop the line?", true="somebody may be hurt"),
    "crew": choice({"pipes": "faults of fluids", "power": None}, "Who goes?"),
    "severity": score(["minor", "major"], "How bad?"),
}
SYSTEM_ONE = {
    "model": "jev-1.14.0",
    "answers": {
        "stop": {"type": "noul", "noul": 0.2},
        "crew": {"type": "choice", "choice": "power", "confidence": 0.9, "probabilities": {"pipes": 0.1, "power": 0.9}},
        "severity": {"type": "score", "score": 0.7, "confidence": 0.4, "probabilities": {"0": 0.3, "1": 0.7}},
    },
    "usage": {"input_tokens": 88, "output_tokens": 14},
}
DECISIONS = {
    "model": "gpt-6-luna",
    "answers": [  # in the order in which our request has the questions: by name
        {
            "type": "choice",
            "name": "crew",
            "choice": "power",
            "confidence": 0.9,
            "probabilities": [{"value": "pipes", "probability": 0.1}, {"value": "power", "probability": 0.9}],
        },
        {
            "type": "score",
            "name": "severity",
            "score": 0.7,
            "confidence": 0.4,
            "probabilities": [
                {"value": 0, "label": "minor", "probability": 0.3},
                {"value": 1, "label": "major", "probability": 0.7},
            ],
        },
        {"type": "predicate", "name": "stop", "probability": 0.2},
    ],
    "usage": {"input_tokens": 88, "output_tokens": 14, "total_tokens": 102},
}
ANSWERS = {"systemone": SYSTEM_ONE, "decisions": DECISIONS}
RIGHT = {"crew": "power", "severity": 1, "stop": False}


def configure(folder: Path, url: str, wire: str = "systemone") -> Config:
    file = folder / "reasoning.toml"
    file.write_text(
        f'[decision_models.jev]\nurl = "{url}"\nmodel = "jev-latest"\nwire = "{wire}"\nkey_env = "THE_KEY"\n'
    )
    return load_config(folder / "data", file, env={"THE_KEY": KEY})


def says(body: Any, status: int = 200) -> Any:
    return sends(http(json.dumps(body).encode(), status))


@pytest.mark.parametrize("wire", sorted(WIRES))
def test_a_hosted_model_answers_with_its_probabilities(tmp_path: Path, server: ModelServer, wire: str) -> None:
    config = configure(tmp_path, server.url, wire)
    server.answer = says(ANSWERS[wire])
    with DecisionClient(config=config) as client:
        answer = client.ask({"note": "smoke"}, QUESTIONS, "jev")
    assert (answer.decision, answer.source) == (RIGHT, "original")
    assert answer.probabilities == {
        "crew": {"pipes": 0.1, "power": 0.9},
        "severity": {"0": 0.3, "1": 0.7},
        "stop": {"true": 0.2, "false": 0.8},
    }
    (asked,) = server.requests
    assert (asked.path, asked.headers["authorization"]) == (WIRES[wire].path, f"Bearer {KEY}")
    # What we write, we read back as the same questions, so that a gateway of ours gives them the same type.
    again = WIRES[wire].read_request(asked.json)
    assert again.model == "jev-latest"
    if wire == "systemone":
        assert again.questions == question_set(QUESTIONS) and again.state == {"note": "smoke"}
    (row,) = rows(config.data)
    assert (row["fallback_model"], row["input_tokens"], row["output_tokens"]) == (answer_model(wire), 88, 14)
    assert KEY not in json.dumps(row)


def answer_model(wire: str) -> Any:
    return ANSWERS[wire]["model"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"error": {"message": "no such model"}}, 404, "HTTP 404 no such model"),
        ({"answers": {}}, 200, "every question was refused"),
        ({"answers": {"crew": {"type": "choice", "choice": "gas", "probabilities": {"gas": 1.0}}}}, 200, "crew"),
        ({"answers": {"stop": {"type": "noul", "noul": 7}}}, 200, "not a number from 0 to 1"),
        ([], 200, "not an object"),
    ],
)
def test_what_is_no_answer_is_the_callers_to_catch(
    tmp_path: Path, server: ModelServer, body: Any, status: int, message: str
) -> None:
    config = configure(tmp_path, server.url)
    server.answer = says(body, status)

    with DecisionClient(config=config) as client:

        def first_hosted_then_rules(state: Any) -> Any:
            try:
                return client.ask_hosted("jev", state, QUESTIONS)
            except CallFailed:
                return RIGHT

        with pytest.raises(CallFailed, match=message):
            client.ask("smoke", QUESTIONS, "jev")
        assert client.ask("smoke", QUESTIONS, first_hosted_then_rules).decision == RIGHT
        with pytest.raises(ConfigError, match=r"'luna' is not known \(jev\)"):
            client.ask("smoke", QUESTIONS, "luna")


def test_the_async_client_asks_a_hosted_model_too(tmp_path: Path, server: ModelServer) -> None:
    config = configure(tmp_path, server.url)
    server.answer = says(SYSTEM_ONE)

    async def run() -> None:
        async with AsyncDecisionClient(config=config) as client:
            assert (await client.ask("smoke", QUESTIONS, "jev")).decision == RIGHT
            told = await client.ask_hosted("jev", "smoke", QUESTIONS)
            assert (told.model, told.decision) == ("jev-1.14.0", RIGHT)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('url = "http://example.com"\nmodel = "m"\nkey_env = "THE_KEY"', "unencrypted; use https"),
        ('url = "https://example.com"\nmodel = "m"\napi_key = "secret"', "no place in a file"),
        ('url = "https://example.com"\nmodel = "m"\nwire = "soap"', "'soap' is not known; known: systemone, decisions"),
        ('url = "https://example.com"\nmodel = "m"\npath = "x"', "does not begin with /"),
        ('model = "m"', "url"),
        ('url = "https://example.com"', "model: text is needed"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, settings: str, message: str) -> None:
    file = tmp_path / "reasoning.toml"
    file.write_text(f"[decision_models.jev]\n{settings}\n")
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path, file, env={"THE_KEY": KEY})


def test_the_key_is_in_no_text_of_ours(tmp_path: Path) -> None:
    config = configure(tmp_path, "https://example.com")
    assert KEY in config.secrets
    assert KEY not in repr(config)
