"""Models that somebody else runs at a URL: registered by address and price, served again, unregistered."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from pipeline.errors import MissingStep, NameTaken
from pipeline.models import take_down
from pipeline.parameters import RegisterSettings
from provider.endpoint.check import ServerCheck, check_key, check_model, check_url, golden_context
from provider.endpoint.serving import begin_serving
from provider.errors import ProviderSettingsError
from reasoning.config import load_config
from reasoning.decision_types import DecisionType, get_decision_type
from reasoning.errors import UnparseableAnswer
from storage.ledger.database import new_id
from storage.ledger.ledger import Ledger, open_ledger
from storage.ledger.money import round_up
from storage.ledger.rows import ENDPOINT, Deployment, Model, ModelState, required

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,35}")


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered model, what serves it, and what there is to say of its server."""

    model: Model
    deployment: Deployment
    notes: list[str]


def register_model(
    data: Path,
    name: str,
    decision_type: str,
    url: str,
    model: str,
    settings: RegisterSettings | None = None,
    *,
    now: datetime | None = None,
) -> Registered:
    """Register `model` (its name at the server) at `url` under `name`, ready to be evaluated and promoted.

    The server is asked one question, whole and streamed, which is charged at the model's prices. Registered before with
    the same parameters, it is only checked again. Raises NameTaken, ProviderSettingsError for a wrong parameter,
    BudgetExceeded, and what `check_model` does; then nothing is registered.
    """
    settings, when = settings or RegisterSettings(), now or datetime.now(UTC)
    config = load_config(data)
    kind = get_decision_type(decision_type, config)
    wanted = _model_of(name, kind, check_url(url), model, settings, when)
    check_key(config, required(wanted.base_url, "the URL"), wanted.key_variable, allow_http=settings.allow_http)
    with open_ledger(data) as ledger:
        known = _find_known(ledger, wanted)
        checked = check_model(config, ledger, known or wanted, kind, now=when)
        with ledger.transaction():
            row = _find_known(ledger, wanted) or _add(ledger, wanted, when)  # another process may have been quicker
            row = ledger.update(Model, row.id, logprobs=checked.logprobs, now=when)
            deployment = begin_serving(ledger, row, now=when)
    return Registered(row, deployment, _notes(kind, row, checked))


def unregister_model(
    data: Path, name: str, *, why: str = "unregistered by the user", now: datetime | None = None
) -> Model:
    """Withdraw a registered model (its name or id) for good; returns its ledger row, `retired`.

    Its server is not touched. Raises `MissingStep` where there is none of that name.
    """
    with open_ledger(data) as ledger:
        found = ledger.find(Model, provider=ENDPOINT, name=name) or ledger.find(Model, provider=ENDPOINT, id=name)
    if not found:
        raise MissingStep(f"no model is registered as {name!r}: `reasoning models list` shows them")
    take_down(data, found[0].id, why=why, now=now)
    with open_ledger(data) as ledger:
        return ledger.transition(Model, found[0].id, ModelState.RETIRED, why=why, now=now)


def _model_of(name: str, kind: DecisionType, url: str, model: str, settings: RegisterSettings, now: datetime) -> Model:
    """The ledger row that is wanted. Raises ProviderSettingsError for a wrong parameter."""
    if not _NAME.fullmatch(name) or name.startswith("rsn-"):
        raise ProviderSettingsError(
            f"{name!r} is no name for a model: use at most 36 lower-case letters, digits, dots, _ and -; rsn- is taken"
        )
    if not model.strip() or len(model) > 100:
        raise ProviderSettingsError("--model: the model's name at its server is needed, at most 100 characters")
    prices = {
        field: _price(f"--{option}", value)
        for field, option, value in (
            ("input_million_usd", "input-usd-per-million", settings.input_usd_per_million),
            ("output_million_usd", "output-usd-per-million", settings.output_usd_per_million),
            ("hourly_usd", "hourly-usd", settings.hourly_usd),
        )
    }
    by_token = [prices["input_million_usd"], prices["output_million_usd"]]
    if by_token.count(None) == 1:
        raise ProviderSettingsError(
            "--input-usd-per-million and --output-usd-per-million are given both or not at all: 0 for what is free"
        )
    if all(price is None for price in prices.values()):
        raise ProviderSettingsError(
            "no price: give --input-usd-per-million and --output-usd-per-million, or --hourly-usd; 0 where it costs "
            "nothing. What has no price could not be kept within the budgets"
        )
    return Model(
        id=new_id(),
        state=ModelState.TRAINED,
        created_at=now,
        updated_at=now,
        decision_type=kind.name,
        tier=None,
        base_model=model,
        upload_id=None,
        job_id=None,
        model_object_id=model,
        output_name=None,
        provider=ENDPOINT,
        name=name,
        base_url=url,
        key_variable=settings.key_variable,
        logprobs=None,
        input_million_usd=prices["input_million_usd"],
        output_million_usd=prices["output_million_usd"],
        hourly_usd=prices["hourly_usd"],
    )


def _price(option: str, value: str | None) -> Decimal | None:
    if value is None:
        return None
    try:
        price = round_up(value)
        if price < 0 or price != Decimal(value):
            raise ValueError(f"{value!r} is below zero, or finer than a nano-dollar (0.000000001)")
    except ValueError as error:
        raise ProviderSettingsError(f"{option}: {error}") from None
    return price


_FIELDS = (
    *("decision_type", "model_object_id", "base_url", "key_variable"),
    *("input_million_usd", "output_million_usd", "hourly_usd"),
)


def _find_known(ledger: Ledger, wanted: Model) -> Model | None:
    """The model that is registered by this name already, if it is the same one. Raises NameTaken."""
    for row in ledger.find(Model, name=wanted.name):
        if row.state == ModelState.RETIRED:
            raise NameTaken(f"{row.name} was registered before, and its decisions are in the log: take another name")
        differs = [name for name in _FIELDS if getattr(row, name) != getattr(wanted, name)]
        if differs:
            told = ", ".join(f"{name} {getattr(row, name)}" for name in differs)
            raise NameTaken(f"{row.name} is registered with {told}: take another name, or unregister it first")
        return row
    return None


def _add(ledger: Ledger, model: Model, now: datetime) -> Model:
    own = {
        name: getattr(model, name)
        for name in (
            *("decision_type", "base_model", "model_object_id", "provider", "name", "base_url", "key_variable"),
            *("input_million_usd", "output_million_usd", "hourly_usd"),
        )
    }
    return ledger.add(Model, id=model.id, state=model.state, now=now, **own)


def _notes(kind: DecisionType, model: Model, checked: ServerCheck) -> list[str]:
    notes = []
    if checked.logprobs == "none":
        notes.append(
            "the server gives no log-probabilities: answers have no confidence, and --min-confidence refuses all"
        )
    if not checked.counts_tokens_streamed:
        notes.append("the server does not count the tokens of streamed answers: these are charged at most")
    try:
        kind.parse_reply(checked.text, kind.render(golden_context()))
    except UnparseableAnswer as error:
        notes.append(f"its answer to the golden question is no answer of {kind.name} ({error}): evaluate it first")
    if model.hourly_usd:
        notes.append(
            f"charged by the hour until `reasoning models unregister {model.name}`, which does not stop its server"
        )
    return notes
