"""A model at somebody else's URL: registered, evaluated, promoted, served, charged, withdrawn."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from pipeline.cycle_plan import look_ahead, read_holdout, serving_steps
from pipeline.errors import MissingStep, NameTaken
from pipeline.evaluation import evaluate_model, show_card
from pipeline.models import deploy, export, undeploy
from pipeline.money import guard, reconcile
from pipeline.parameters import PromoteSettings, RegisterSettings
from pipeline.promotion import promote_model
from pipeline.registration import register_model, unregister_model
from provider.endpoint.adapter import EndpointProvider
from provider.errors import (
    AccessDenied,
    KeyRefused,
    NotOffered,
    ProviderError,
    ProviderRefused,
    ProviderSettingsError,
    ProviderUnavailable,
    RemoteNotFound,
    UnexpectedAnswer,
)
from provider.port import Sampling
from reasoning import DecisionClient
from reasoning.config import load_config
from reasoning.decision_types import DECISION_TYPES
from reasoning.serving.routes import read_routes
from storage.errors import BudgetExceeded
from storage.layout import Layout
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import last_evaluation
from storage.ledger.rows import Deployment, FineTuneJob, Model
from storage.log.land import land_decisions
from storage.progress import Progress
from tests.cli.test_commands import failure, reasoning
from tests.reasoning.conftest import Hangup, ModelServer, Request, http
from tests.storage.logs import make_decision, write_segment
from tests.tasks.rooms import write_log

KEY = "vk-0123456789abcdef"
CONTEXT = {"agent_name": "Robin", "messages": [{"speaker": "Ana", "text": "Robin, what about the news?"}]}
IN, OUT = 200, 9  # tokens that the server counts
PRICES = RegisterSettings(input_usd_per_million="0.10", output_usd_per_million="0.333333333", key_variable="VLLM_KEY")
CALL_USD = (Decimal("0.10") * IN + Decimal("0.333333333") * OUT) / 1_000_000


@dataclass
class Vllm:
    """An OpenAI-compatible server of one model: `org/small`, that knows when Robin is spoken to."""

    server: ModelServer
    logprobs: bool = True
    usage: bool = True
    refuse: tuple[int, bytes] | None = None
    refused_fields: tuple[str, ...] = ()
    asked: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, request: Request, connection: socket.socket) -> None:
        self.asked.append(request.json)
        if self.refuse is not None:
            connection.sendall(http(self.refuse[1], self.refuse[0]))
        elif request.headers.get("authorization") != f"Bearer {KEY}":
            connection.sendall(http(b'{"error": {"message": "Unauthorized"}}', 401))
        elif request.json["model"] != "org/small":
            connection.sendall(http(b'{"error": {"message": "The model does not exist."}}', 404))
        elif found := [name for name in self.refused_fields if name in request.json]:
            connection.sendall(http(orjson.dumps({"error": {"message": f"unknown field {found}"}}), 400))
        else:
            self._answer(request, connection)

    def _answer(self, request: Request, connection: socket.socket) -> None:
        named = "Robin," in str(request.json["messages"][-1]["content"])
        text = f"<response><action>{'RESPOND' if named else 'IGNORE'}</action></response>"
        usage = {"prompt_tokens": IN, "completion_tokens": OUT} if self.usage else None
        logprobs = None
        if self.logprobs and request.json.get("logprobs") is True:
            logprobs = {"content": [{"token": c, "logprob": -0.001, "top_logprobs": []} for c in text]}
        if not request.json.get("stream"):
            choice = {"index": 0, "message": {"content": text}, "finish_reason": "stop", "logprobs": logprobs}
            connection.sendall(http(orjson.dumps({"choices": [choice], "usage": usage})))
            return
        chunks = [
            {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop", "logprobs": logprobs}]}
        ]
        chunks += [{"choices": [], "usage": usage}] if usage else []
        body = b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        connection.sendall(head + body)
        raise Hangup


@pytest.fixture
def vllm() -> Iterator[Vllm]:
    server = ModelServer()
    found = Vllm(server)
    server.answer = found
    yield found
    server.close()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a log and a dataset of it."""
    folder = tmp_path_factory.mktemp("exported") / "data"
    Layout(folder).create()
    write_log(folder, episodes=110, turns=4, until=datetime.now(UTC))
    land_decisions(folder)
    export(folder, "should_respond")
    return folder


@pytest.fixture
def data(tmp_path: Path, vllm: Vllm, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder without any provider: neither an emulator nor Together can be reached."""
    for name in ("REASONING_PROVIDER_URL", "TOGETHER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REASONING_PROVIDER", "emulator")
    monkeypatch.setenv("REASONING_KEYS", f"VLLM_KEY={vllm.server.url}")
    monkeypatch.setenv("VLLM_KEY", KEY)
    folder = tmp_path / "data"
    Layout(folder).create()
    with open_ledger(folder) as ledger:
        for period in ("day", "month", "total"):
            ledger.set_budget(period, "1")
    return folder


def register(data: Path, vllm: Vllm, settings: RegisterSettings = PRICES, **changes: Any) -> Model:
    given = {"name": "mine", "decision_type": "should_respond", "url": f"{vllm.server.url}/v1", "model": "org/small"}
    return register_model(data, **{**given, **changes}, settings=settings).model


def spent(data: Path) -> Decimal:
    with open_ledger(data) as ledger:
        return ledger.spent()


def decide(data: Path, times: int = 1) -> list[str]:
    with DecisionClient(data) as client:
        answers = [client.decide_should_respond(CONTEXT, lambda _: "IGNORE") for _ in range(times)]
    land_decisions(data)
    return [answer.source for answer in answers]


def _check_card(data: Path) -> None:
    """The card has slices by what the log knows, and its questions are read from the holdout: the ledger has none."""
    card, questions = show_card(data, "mine")
    assert {"language", "length", "day"} & {each.facet for each in card.slices}
    assert card.won > 0 and set(questions) == {each.decision_id for each in (*card.wins, *card.losses)}
    with open_ledger(data) as ledger:
        kept = last_evaluation(ledger, card.model_id)
    assert kept is not None and not any(text in json.dumps(kept.content) for text in questions.values())
    shown = reasoning("models", "card", "mine", "--data", data).stdout
    assert shown.startswith("# Model ") and "**Verdict: promote.**" in shown and card.wins[0].decision_id in shown


def test_a_registered_model_is_evaluated_promoted_served_charged_and_withdrawn_when_its_budget_is_spent(
    data: Path, vllm: Vllm, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(exported, data, dirs_exist_ok=True)
    settings = data.parent / "reasoning.toml"
    settings.write_text("[worth.should_respond]\nmax_usd_per_1000 = 1\n")
    monkeypatch.setenv("REASONING_CONFIG", str(settings))
    model = register(data, vllm)
    # Once whole, once streamed, which is all that was charged.
    assert [asked.get("stream", False) for asked in vllm.asked] == [False, True]
    assert (model.logprobs, model.base_url) == ("flag", vllm.server.url)
    charged = spent(data)
    assert 0 <= charged - 2 * CALL_USD < Decimal("0.00000001")

    vllm.asked.clear()
    evaluation = evaluate_model(data, "mine")
    asked, charged = len(vllm.asked), spent(data) - charged
    assert asked == evaluation.rows > 0
    assert 0 <= charged - asked * CALL_USD < Decimal("0.00000001")
    assert any("was not trained here" in note for note in evaluation.notes)
    assert evaluation.about["verdict"]["decision"] == "promote", evaluation.about["verdict"]["why"]
    _check_card(data)

    promote_model(data, "mine", PromoteSettings(weight=1))
    _check_plan(data, asked)
    arm = read_routes(data / "routes.json").routes["should_respond"].arms[0]
    assert (arm.model, arm.request_model, arm.key_variable) == ("endpoint/mine", "org/small", "VLLM_KEY")
    assert KEY not in (data / "routes.json").read_text()
    report = guard(data)
    assert (report.errors, report.lease) == ([], "renewed")  # though there is no provider
    before = spent(data)
    assert decide(data, 40) == ["custom"] * 40
    guard(data)
    charged = spent(data) - before
    assert 0 <= charged - 40 * CALL_USD < Decimal("0.00000001")
    with open_ledger(data) as ledger:
        assert ledger.charges(model_id=model.id)[-1].amount_usd == charged
        ledger.set_budget("day", spent(data) + Decimal("0.00002"))
    decide(data, 2)
    report = guard(data)
    assert "withdrew endpoint/mine from should_respond" in report.actions
    guard(data)
    with open_ledger(data) as ledger:
        (row,) = ledger.find(Deployment)
        assert row.state == "deleted" and "day budget" in (row.reason or "")
        assert ledger.get(Model, model.id).state == "promoted"
    vllm.asked.clear()
    assert decide(data) == ["original"] and vllm.asked == []

    with pytest.raises(BudgetExceeded):  # not even the question whether it is there is asked
        deploy(data, "mine")
    assert vllm.asked == []
    with open_ledger(data) as ledger:
        ledger.set_budget("day", "1")
    assert deploy(data, "mine").state == "ready"
    promote_model(data, "mine", PromoteSettings(weight=1))
    guard(data)
    assert decide(data) == ["custom"]
    assert unregister_model(data, "mine").state == "retired"
    assert decide(data) == ["original"]
    with pytest.raises(MissingStep, match="was unregistered"):
        deploy(data, "mine")


def _check_plan(data: Path, questions: int) -> None:
    """The next cycle counts what it costs to ask the incumbent, and does not take it for one that costs nothing."""
    (manifest,) = Layout(data).datasets.glob("*/*/manifest.json")
    holdout = read_holdout(data, manifest.parent, "should_respond")
    rented: Any = SimpleNamespace(hourly_usd=Decimal("5.49"), hardware="1xh100", adapters=0)
    with open_ledger(data) as ledger:
        *_, evaluation = steps = serving_steps(ledger, "should_respond", rented, holdout=holdout)
    assert [step.step for step in steps] == ["candidate", "incumbent", "evaluation"]
    assert evaluation.amount_usd > questions * CALL_USD and f"{questions} questions to mine" in evaluation.what
    refusals, _ = look_ahead(data, manifest.parent, "should_respond", steps, now=datetime.now(UTC))
    assert refusals == []


def test_answers_whose_tokens_nobody_counted_are_charged_at_most(data: Path, vllm: Vllm) -> None:
    register(data, vllm)
    promote_model(data, "mine", PromoteSettings(weight=1, force=True, deadline_ms=300))
    guard(data)
    before = spent(data)
    vllm.server.answer = vllm.server.hang  # the client gives up; its server may charge all the same
    assert decide(data) == ["original"]
    guard(data)
    assert spent(data) - before > Decimal("0.333333333") * 512 / 1_000_000
    before = spent(data)
    guard(data)
    assert spent(data) == before


def test_a_shadow_of_a_registered_model_is_charged_as_well(data: Path, vllm: Vllm) -> None:
    register(data, vllm)
    promote_model(data, "mine", PromoteSettings(mode="shadow", force=True))
    guard(data)
    before = spent(data)
    assert decide(data, 3) == ["original"] * 3
    assert guard(data).errors == []
    assert 0 <= spent(data) - before - 3 * CALL_USD < Decimal("0.00000001")


def test_a_log_that_tells_odd_counts_of_tokens_is_not_a_discount(data: Path, vllm: Vllm) -> None:
    register(data, vllm)
    promote_model(data, "mine", PromoteSettings(weight=1, force=True))
    guard(data)
    before, now = spent(data), datetime.now(UTC)
    odd = [(-1_000_000, 9), (200, -1_000_000), (None, None), (200, 9)]
    values = {"source": "custom", "model": "endpoint/mine", "cost_usd": 0.0}
    write_segment(data, [make_decision(now, input_tokens=i, output_tokens=o, **values) for i, o in odd])
    land_decisions(data)
    assert guard(data).errors == []
    most = Decimal("0.10") * 1000 + Decimal("0.333333333") * 512 * 2
    assert CALL_USD * 2 < spent(data) - before < CALL_USD * 4 + most / 1_000_000
    write_segment(data, [make_decision(now, input_tokens=2**55, output_tokens=9, **values)])
    land_decisions(data)
    report = guard(data)
    assert report.lease == "left" and "tokens of registered models are not charged" in str(report.errors)


def test_an_hourly_model_is_charged_by_the_hour_until_it_is_unregistered(data: Path, vllm: Vllm) -> None:
    start = datetime.now(UTC)
    register_model(
        data,
        "mine",
        "should_respond",
        vllm.server.url,
        "org/small",
        RegisterSettings(hourly_usd="0.60", key_variable="VLLM_KEY"),
        now=start,
    )
    assert spent(data) == 0
    with open_ledger(data) as ledger:
        ledger.set_budget("hour", "1", now=start)
    for minute in (1, 9, 30):  # a missed tick is made up for by the next
        guard(data, now=start + timedelta(minutes=minute))
    assert spent(data) == Decimal("0.30")  # idle for half an hour: it is not ours to stop
    with open_ledger(data) as ledger:
        ledger.set_budget("hour", "0.5", now=start)
    guard(data, now=start + timedelta(minutes=31))
    report = guard(data, now=start + timedelta(minutes=32))
    assert any("not ours to stop" in warning for warning in report.warnings)
    guard(data, now=start + timedelta(minutes=90))
    assert spent(data) == Decimal("0.32")


def test_the_budgets_hold_before_anything_is_asked(data: Path, vllm: Vllm) -> None:
    with open_ledger(data) as ledger:
        ledger.set_budget("day", "0.0000001")
    with pytest.raises(BudgetExceeded):
        register(data, vllm)
    with open_ledger(data) as ledger:
        ledger.set_budget("day", "1")
        ledger.set_budget("hour", "0.5")
    with pytest.raises(BudgetExceeded):
        register(data, vllm, RegisterSettings(hourly_usd="0.6", key_variable="VLLM_KEY"))
    with open_ledger(data) as ledger:
        assert ledger.find(Model) == ledger.find(Deployment) == []


WRONG_MODEL: Callable[[Path, Vllm], Model] = lambda data, vllm: register(data, vllm, model="org/other")  # noqa: E731


def answers(status: int, body: bytes) -> Callable[[Path, Vllm], Model]:
    def attempt(data: Path, vllm: Vllm) -> Model:
        vllm.refuse = status, body
        return register(data, vllm)

    return attempt


@pytest.mark.parametrize(
    ("attempt", "error", "told"),
    [
        (WRONG_MODEL, RemoteNotFound, "no model 'org/other'"),
        (
            answers(401, f'{{"error": {{"message": "wrong key {KEY}!"}}}}'.encode()),
            KeyRefused,
            "check the key in VLLM_KEY",
        ),
        (answers(403, b"{}"), AccessDenied, "use one that may"),
        (answers(307, b""), UnexpectedAnswer, "redirects elsewhere"),
        (answers(200, b"<html>hello</html>"), UnexpectedAnswer, "not OpenAI-shaped"),
        (answers(200, b'{"choices": []}'), UnexpectedAnswer, "not OpenAI-shaped"),
        (answers(400, b'{"error": "no"}'), ProviderRefused, "the request was refused"),
        (answers(500, b"{}"), ProviderUnavailable, "when the server is well"),
        (lambda d, v: register(d, v, url="http://127.0.0.1:9"), ProviderSettingsError, "not for http://127.0.0.1:9"),
        (
            lambda d, v: register(d, v, RegisterSettings(hourly_usd="0"), url="http://127.0.0.1:9"),
            ProviderUnavailable,
            "cannot be reached",
        ),
        (
            lambda d, v: register(d, v, RegisterSettings(hourly_usd="0"), url="http://nowhere.invalid"),
            ProviderUnavailable,
            "cannot be reached",
        ),
        (lambda d, v: register(d, v, RegisterSettings(hourly_usd="0")), KeyRefused, "--key-variable"),
        (lambda d, v: register(d, v, url="http://gpu.example"), ProviderSettingsError, "unencrypted"),
        (lambda d, v: register(d, v, url="https://u:p@gpu.example"), ProviderSettingsError, "user name or password"),
        (lambda d, v: register(d, v, url="http://169.254.169.254"), ProviderSettingsError, "link-local"),
        (lambda d, v: register(d, v, url="ftp://gpu.example"), ProviderSettingsError, "not an http"),
        (lambda d, v: register(d, v, RegisterSettings()), ProviderSettingsError, "no price"),
        (
            lambda d, v: register(d, v, RegisterSettings(input_usd_per_million="1")),
            ProviderSettingsError,
            "both or not",
        ),
        (lambda d, v: register(d, v, RegisterSettings(hourly_usd="-1")), ProviderSettingsError, "below zero"),
        (lambda d, v: register(d, v, RegisterSettings(hourly_usd="1e-12")), ProviderSettingsError, "finer"),
        (lambda d, v: register(d, v, RegisterSettings(hourly_usd="cheap")), ProviderSettingsError, "not an amount"),
        (
            lambda d, v: register(d, v, RegisterSettings(hourly_usd="0", key_variable=f"{KEY}")),
            ProviderSettingsError,
            "the name of an environment variable",
        ),
        (lambda d, v: register(d, v, name="Mine!"), ProviderSettingsError, "is no name"),
        (lambda d, v: register(d, v, name="rsn-x"), ProviderSettingsError, "rsn- is taken"),
    ],
)
def test_what_cannot_be_registered_is_told_and_nothing_is_kept(
    data: Path, vllm: Vllm, attempt: Callable[[Path, Vllm], Model], error: type[ProviderError], told: str
) -> None:
    with pytest.raises(error, match=told) as raised:
        attempt(data, vllm)
    assert type(raised.value) is error and KEY not in str(raised.value) and "u:p" not in str(raised.value)
    with open_ledger(data) as ledger:
        assert ledger.find(Model) == ledger.find(Deployment) == []


def test_a_server_that_does_not_count_tokens_cannot_be_paid_by_them(data: Path, vllm: Vllm) -> None:
    vllm.usage = False
    with pytest.raises(ProviderRefused, match="register it with --hourly-usd"):
        register(data, vllm)
    assert spent(data) > Decimal("0.333333333") * 512 * 2 / 1_000_000  # what it may have cost
    assert register(data, vllm, RegisterSettings(hourly_usd="0", key_variable="VLLM_KEY")).input_million_usd is None


@pytest.mark.parametrize(
    ("refused", "gives", "way", "calls"),
    [((), True, "flag", 2), ((), False, "none", 3), (("logprobs",), True, "none", 4)],
)
def test_it_is_found_out_how_log_probabilities_are_asked_for(
    data: Path, vllm: Vllm, refused: tuple[str, ...], gives: bool, way: str, calls: int
) -> None:
    vllm.refused_fields, vllm.logprobs = refused, gives
    assert register(data, vllm).logprobs == way
    assert len(vllm.asked) == calls


def test_registering_again_is_harmless_and_a_name_stands_for_one_model(data: Path, vllm: Vllm) -> None:
    first = register(data, vllm)
    assert register(data, vllm).id == first.id
    with open_ledger(data) as ledger:
        assert len(ledger.find(Deployment)) == 1
    dearer = RegisterSettings(input_usd_per_million="9", output_usd_per_million="9", key_variable="VLLM_KEY")
    with pytest.raises(NameTaken, match=r"input_million_usd 0\.1"):
        register(data, vllm, dearer)
    unregister_model(data, "mine")
    with pytest.raises(NameTaken, match="take another name"):
        register(data, vllm, dearer)
    assert register(data, vllm, dearer, name="mine-2").input_million_usd == 9
    with pytest.raises(MissingStep, match="no model is registered"):
        unregister_model(data, "other")


def test_an_undeployed_model_has_no_route_and_may_be_deployed_again(data: Path, vllm: Vllm) -> None:
    model = register(data, vllm)
    promote_model(data, "mine", PromoteSettings(weight=1, force=True))
    guard(data)
    assert [row.state for row in undeploy(data, "should_respond")] == ["deleted"]
    assert decide(data) == ["original"]
    with open_ledger(data) as ledger:
        assert ledger.get(Model, model.id).state == "trained"
    assert deploy(data, model.id).name == "mine-2"


def test_a_route_to_a_model_that_nobody_registered_is_withdrawn(data: Path, vllm: Vllm) -> None:
    register(data, vllm)
    promote_model(data, "mine", PromoteSettings(weight=1, force=True))
    routes = data / "routes.json"
    routes.write_text(routes.read_text().replace("endpoint/mine", "endpoint/forged"))
    assert "withdrew endpoint/forged from should_respond" in guard(data).actions


def test_questions_of_an_interrupted_evaluation_are_charged_as_far_as_they_were_asked(
    data: Path, vllm: Vllm, exported: Path
) -> None:
    shutil.copytree(exported, data, dirs_exist_ok=True)
    register(data, vllm)
    before, vllm.asked = spent(data), []

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_model(data, "mine", progress=interrupt)
    assert spent(data) - before >= len(vllm.asked) * CALL_USD


def test_a_ledger_lists_no_key(data: Path, vllm: Vllm) -> None:
    register(data, vllm)
    for path in data.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_the_commands_register_list_and_unregister(data: Path, vllm: Vllm) -> None:
    env = {name: os.environ[name] for name in ("REASONING_KEYS", "VLLM_KEY")}
    asked = ("--type", "should-respond", "--url", vllm.server.url, "--key-variable", "VLLM_KEY", "--data", data)
    prices = ("--input-usd-per-million", "0.10", "--output-usd-per-million", "0.40")
    refused = failure(reasoning("models", "register", "mine", *asked, "--model", "other", *prices, env=env))
    assert "no model 'other'" in refused
    done = reasoning("models", "register", "mine", *asked, "--model", "org/small", *prices, env=env)
    assert done.returncode == 0 and "Registered" in done.stdout, done.stderr
    (listed,) = json.loads(reasoning("models", "list", "--json", "--data", data).stdout)
    assert (listed["name"], listed["provider"], listed["deployment_state"]) == ("mine", "endpoint", "ready")
    assert reasoning("models", "unregister", "mine", "--data", data).returncode == 0
    assert json.loads(reasoning("models", "list", "--json", "--data", data).stdout) == []


def test_stop_withdraws_registered_models_though_no_provider_can_be_asked(data: Path, vllm: Vllm) -> None:
    register(data, vllm)
    promote_model(data, "mine", PromoteSettings(weight=1, force=True))
    guard(data)
    assert decide(data) == ["custom"]
    assert "Withdrawn all the same: endpoint/mine" in failure(
        reasoning("stop", "--provider", "emulator", "--data", data)
    )
    assert decide(data) == ["original"]
    guard(data)
    with open_ledger(data) as ledger:
        assert [row.state for row in ledger.find(Deployment)] == ["deleted"]


def test_late_decisions_are_charged_where_there_is_no_provider(data: Path, vllm: Vllm) -> None:
    register(data, vllm)
    promote_model(data, "mine", PromoteSettings(weight=1, force=True))
    guard(data)
    decide(data)
    before = spent(data)
    assert reconcile(data, now=datetime.now(UTC) + timedelta(days=9)).errors == []
    assert 0 <= spent(data) - before - CALL_USD < Decimal("0.00000001")
    with open_ledger(data) as ledger:
        ledger.add(FineTuneJob, state="running", suffix="rsn-1", base_model="m", parameters="{}", estimate_usd=4)
    with pytest.raises(ProviderSettingsError):  # what is at a provider must be asked for there
        reconcile(data)
    assert guard(data).lease == "left"


def test_a_model_without_log_probabilities_is_not_promoted_with_a_least_confidence(data: Path, vllm: Vllm) -> None:
    vllm.logprobs = False
    register(data, vllm)
    with pytest.raises(MissingStep, match="gives no log-probabilities"):
        promote_model(data, "mine", PromoteSettings(min_confidence=0.5, force=True))


def test_the_adapter_answers_questions_and_offers_nothing_else(data: Path, vllm: Vllm) -> None:
    model = register(data, vllm)
    config, kind = load_config(data), DECISION_TYPES["should_respond"]
    conversations = [kind.render(CONTEXT)] * 3
    told: list[Progress] = []
    with EndpointProvider(config, [model]) as provider:
        found = provider.ask("endpoint/mine", conversations, Sampling.of(kind), progress=told.append)
        assert [(each.input_tokens, each.error) for each in found] == [(IN, None)] * 3
        assert [each.done for each in told] == [1, 2, 3]
        with pytest.raises(RemoteNotFound, match="no model 'org/small' is registered"):
            provider.ask("org/small", conversations, Sampling.of(kind))
        assert (provider.jobs(), provider.endpoints(), provider.hourly_prices(), provider.time()) == ([], [], {}, None)
        for verb in (provider.create_endpoint, provider.job, provider.cancel_job, provider.base_model):
            with pytest.raises(NotOffered):
                verb("x")
