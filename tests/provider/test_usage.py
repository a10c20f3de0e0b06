"""Whom a line of the bill is for, whatever its attributes are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.money.billed import Bill, Objects
from provider.together.usage import _aliases, _kind_of, _names_somebody, _read_window
from storage.ledger.money import LARGEST_USD

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
DEPLOYMENT = SimpleNamespace(
    id="d1",
    remote_id="dep_0123456789abcdefghij",
    name="rsn-abc123-d1d1d1d1",
    endpoint_id="ep_0123456789abcdefghij",
    model_object_id="ml_0123456789abcdefghij",
)
DOUBLE = SimpleNamespace(**{**vars(DEPLOYMENT), "id": "d2", "remote_id": "dep_double", "name": "dep_double"})
JOB = SimpleNamespace(id="j1", remote_id="ft-6f1c2a3b-0000-4000-8000-000000000000", suffix="rsn-abc123-j1j1j1j1")
ALIASES = _aliases(Objects(deployments=[DEPLOYMENT, DOUBLE], jobs=[JOB]))

texts = st.text(max_size=30)
noise = st.dictionaries(texts, st.one_of(texts, st.none(), st.integers(), st.lists(texts, max_size=2)), max_size=5)
products = st.one_of(texts, st.sampled_from(["Dedicated Inference", "Fine-tuning", "Serverless Inference", "H100", ""]))


def read(attributes: Any, *, product: Any = "Dedicated Inference", cost: Any = "1.50", hour: int = 2) -> Bill:
    bill = Bill(since=NOW - timedelta(days=1), until=NOW, as_of=NOW)
    line = SimpleNamespace(attributes=attributes, cost=cost, product_name=product)
    _read_window(SimpleNamespace(end_time=NOW - timedelta(hours=hour), line_items=[line]), bill, ALIASES, "proj_ours")
    return bill


def billed(bill: Bill) -> dict[str, Decimal]:
    return {object_id: entry.usd for object_id, entry in bill.of.items() if entry.usd}


@given(attributes=noise, product=products)
def test_a_line_that_names_nothing_of_ours_is_charged_to_nobody(attributes: dict[str, Any], product: str) -> None:
    bill = read(attributes, product=product)
    assert (billed(bill), bill.named, bill.unreadable) == ({}, set(), 0)


@given(
    attributes=noise,
    key=texts,
    path=st.sampled_from(["", "projects/p/", "slug/"]),
    name=st.sampled_from([DEPLOYMENT.remote_id, DEPLOYMENT.name, DEPLOYMENT.endpoint_id]),
)
def test_a_line_that_names_a_deployment_anywhere_is_for_it(
    attributes: dict[str, Any], key: str, path: str, name: str
) -> None:
    bill = read(attributes | {key: path + name})
    assert (billed(bill), bill.named) == ({"d1": Decimal("1.50")}, {"deployments"})
    assert bill.of["d1"].by_endpoint is (name != DEPLOYMENT.remote_id)


@given(attributes=noise, key=texts, name=st.sampled_from([JOB.remote_id, JOB.suffix, f"slug/M-{JOB.suffix}-1"]))
def test_a_line_of_training_that_names_a_job_is_for_it(attributes: dict[str, Any], key: str, name: str) -> None:
    bill = read(attributes | {key: name}, product="Fine-tuning - Training Tokens")
    assert (billed(bill), bill.named) == ({"j1": Decimal("1.50")}, {"fine_tune_jobs"})


@pytest.mark.parametrize(
    ("attributes", "product", "wanted"),
    [
        # The most exact name counts: a deployment under an endpoint, serving what a job has trained.
        ({"endpoint_id": DEPLOYMENT.endpoint_id, "deployment_id": DOUBLE.remote_id}, "Dedicated Inference", "d2"),
        ({"model": f"slug/M-{JOB.suffix}-1", "id": DEPLOYMENT.remote_id}, "Dedicated Inference", "d1"),
        ({"job": JOB.remote_id, "model": DEPLOYMENT.model_object_id}, "Fine-tuning", "j1"),
        ({"id": JOB.remote_id}, "A new name", "j1"),
        # Tokens of a model that was trained here are no deployment's minutes.
        ({"model_id": DEPLOYMENT.model_object_id}, "Serverless Inference - Input Tokens", None),
        ({"model": f"slug/M-{JOB.suffix}-1"}, "Serverless Inference - Input Tokens", None),
    ],
)
def test_a_line_is_for_the_most_exact_of_what_it_names(
    attributes: dict[str, str], product: str, wanted: str | None
) -> None:
    assert set(billed(read(attributes, product=product))) == ({wanted} if wanted else set())


def test_a_line_that_names_two_of_ours_is_charged_to_neither_and_doubted() -> None:
    bill = read({"a": DEPLOYMENT.remote_id, "b": DOUBLE.remote_id})
    assert billed(bill) == {}
    assert bill.of["d1"].doubtful and bill.of["d2"].doubtful and bill.unreadable == 1


@given(attributes=st.one_of(st.none(), st.lists(texts), texts, st.integers()))
def test_attributes_that_are_none_make_all_doubtful(attributes: Any) -> None:
    bill = read(attributes)
    assert billed(bill) == {} and bill.unreadable == 1
    assert all(bill.of[object_id].doubtful for object_id in ("d1", "d2", "j1"))


@given(cost=st.one_of(st.none(), st.booleans(), texts, st.floats(max_value=-1e-9), st.just("NaN"), st.just("1e999")))
def test_a_cost_that_is_none_charges_nothing(cost: Any) -> None:
    bill = read({"id": DEPLOYMENT.remote_id}, cost=cost)
    try:
        readable = 0 <= Decimal(str(cost)) < LARGEST_USD and not isinstance(cost, bool)
    except ArithmeticError:
        readable = False
    assert bill.of["d1"].doubtful is not readable


@pytest.mark.parametrize(
    ("attributes", "product", "nameless", "unsure"),
    [
        ({}, "Dedicated Inference", "deployments", False),
        ({"hardware": "1xh100", "region": "us"}, "Dedicated Endpoints - H100", "deployments", False),
        ({"model": "Qwen/Qwen3.5-2B"}, "Fine-tuning - LoRA", "fine_tune_jobs", False),
        ({"project_id": "proj_ours"}, "Dedicated Inference", "deployments", False),
        ({"project_id": "proj_theirs"}, "Dedicated Inference", None, False),
        ({"deployment_id": "dep_of_a_stranger"}, "Dedicated Inference", None, False),
        ({"endpoint_name": "their/endpoint"}, "Dedicated Inference", None, False),
        ({"fine_tune_id": "ft-of-a-stranger"}, "Fine-tuning", None, False),
        ({}, "Serverless Inference - Input Tokens", None, False),
        ({}, "Something new", None, True),
    ],
)
def test_what_names_nobody_may_be_ours_by_its_product(
    attributes: dict[str, str], product: str, nameless: str | None, unsure: bool
) -> None:
    bill = read(attributes, product=product)
    assert [kind for kind, days in bill.nameless.items() if sum(days.values())] == ([nameless] if nameless else [])
    assert bool(bill.unsure) is unsure
    day = f"{NOW:%Y-%m-%d}"
    if nameless:
        assert not bill.silence_is_sure(nameless, day, named_that_day=True)  # type: ignore[arg-type]
    assert bill.silence_is_sure("deployments", day, named_that_day=False) is not (unsure or nameless == "deployments")


def test_an_hour_that_is_not_complete_does_not_count() -> None:
    assert billed(read({"id": DEPLOYMENT.remote_id}, hour=-1)) == {}
    assert billed(read({"id": DEPLOYMENT.remote_id}, hour=0)) == {"d1": Decimal("1.50")}


def test_kinds_of_products() -> None:
    assert _kind_of("Dedicated Model Inference Tokens") == "deployments"
    assert _kind_of("GPU Clusters H100") == "other"
    assert _kind_of("Storage") == "other"
    assert _kind_of("") is None
    assert not _names_somebody({"model": "Qwen/Qwen3.5-2B", "hardware": "1xh100", "endpoint_type": "dedicated"})
