"""The bill against one computed by hand, to the cent and beyond."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.billing.bill import _count_minutes
from tests.emulator.conftest import START, Server, start


def amounts(server: Server, kind: str) -> list[tuple[int, Decimal]]:
    bill = server.get("/emulator/bill")
    total = sum(Decimal(item["amount_usd"]) for item in bill["items"])
    assert Decimal(bill["total_usd"]) == total
    return [(item["quantity"], Decimal(item["amount_usd"])) for item in bill["items"] if item["kind"] == kind]


def test_replicas_are_billed_by_the_started_minute_from_ready_to_stopped(frozen: Server) -> None:
    endpoint, deployment = frozen.deploy("billed", replicas=2)
    frozen.advance(59)
    assert frozen.state(endpoint, deployment) == "PROVISIONING"
    assert amounts(frozen, "deployment") == []
    frozen.advance(1)
    assert frozen.state(endpoint, deployment) == "READY"
    frozen.advance(600)
    assert amounts(frozen, "deployment") == [(10, Decimal("0.915"))] * 2
    frozen.advance(1)
    frozen.scale(endpoint, deployment, 1)
    frozen.advance(3600)
    frozen.scale(endpoint, deployment, 0)
    frozen.advance(86_400)
    # 601 s are 11 started minutes, 4201 s are 71, of 5.49 USD an hour.
    assert sorted(amounts(frozen, "deployment")) == [(11, Decimal("1.0065")), (71, Decimal("6.4965"))]
    assert frozen.state(endpoint, deployment) == "STOPPED"


def test_bill_outlives_what_it_is_for(frozen: Server) -> None:
    endpoint, deployment = frozen.deploy("gone")
    frozen.advance(60 + 120)
    frozen.scale(endpoint, deployment, 0)
    path = f"/v2/projects/proj_local/endpoints/{endpoint}"
    frozen.patch(f"{path}?updateMask=trafficSplit", {"trafficSplit": []})
    frozen.http.delete(f"{path}/deployments/{deployment}").raise_for_status()
    frozen.http.delete(path).raise_for_status()
    frozen.advance(3600)
    assert amounts(frozen, "deployment") == [(2, Decimal("0.183"))]


def test_replica_that_never_ran_costs_nothing(frozen: Server) -> None:
    endpoint, deployment = frozen.deploy("brief")
    frozen.advance(30)
    frozen.scale(endpoint, deployment, 0)
    frozen.advance(3600)
    assert amounts(frozen, "deployment") == []


def test_usage_windows_add_up_to_the_bill(frozen: Server, dataset: Path) -> None:
    job = frozen.finish(frozen.train(frozen.upload(dataset))["id"])
    frozen.deploy("long")
    frozen.advance(60 + 30 * 3600 + 17)
    for _ in range(3):
        frozen.chat("Qwen/Qwen3.5-9B").raise_for_status()
    total = Decimal(frozen.get("/emulator/bill")["total_usd"])
    for granularity, windows in (("day", 2), ("hour", 31)):
        report = frozen.get("/v1/billing/usage", granularity=granularity)
        assert report["billing_period"] == "2026-03"
        assert len(report["data"]) == windows
        costs = [Decimal(item["cost"]) for window in report["data"] for item in window["line_items"]]
        assert sum(costs) == total
    training = report["data"][0]["line_items"][0]
    assert (training["product_name"], training["attributes"]["resource_id"]) == ("Fine-tuning", job["id"])
    assert frozen.get("/v1/billing/usage", month="2026-02")["data"] == []
    assert frozen.http.get("/v1/billing/usage?month=March").status_code == 400


def test_serverless_tokens_are_billed_by_their_price(frozen: Server) -> None:
    usage = [frozen.chat("Qwen/Qwen3.5-9B").json()["usage"] for _ in range(7)]
    prompt, output = (sum(entry[key] for entry in usage) for key in ("prompt_tokens", "completion_tokens"))
    million = Decimal(1_000_000)
    assert amounts(frozen, "inference") == [
        (prompt, prompt * Decimal("0.10") / million),
        (output, output * Decimal("0.15") / million),
    ]


def test_used_up_balance_refuses_what_costs(frozen: Server, dataset: Path) -> None:
    file_id = frozen.upload(dataset)
    frozen.post("/emulator/balance", {"usd": "3.99"})
    body = {"model": "Qwen/Qwen3.5-9B", "training_file": file_id, "n_epochs": 1}
    assert frozen.post("/v1/fine-tunes/estimate-price", body)["allowed_to_proceed"] is False
    refused = frozen.http.post("/v1/fine-tunes", json=body)
    assert refused.status_code == 402
    assert refused.json()["error"]["code"] == "insufficient_balance"
    frozen.post("/emulator/balance", {"usd": "4.05"})
    frozen.finish(frozen.train(file_id)["id"])
    endpoint, deployment = frozen.deploy("poor")
    frozen.advance(60 + 30)
    assert frozen.get("/emulator/bill")["balance_usd"] == "-0.0415"
    assert frozen.chat("local/poor").status_code == 402
    frozen.scale(endpoint, deployment, 0)  # stopping has to be possible without money
    more = frozen.http.patch(
        f"/v2/projects/proj_local/endpoints/{endpoint}/deployments/{deployment}",
        json={"autoscaling": {"minReplicas": 1, "maxReplicas": 1}},
    )
    assert (more.status_code, more.json()["details"]) == (402, [{"detail": "insufficient_balance"}])
    frozen.post("/emulator/balance", {"usd": None})
    frozen.scale(endpoint, deployment, 1)


@pytest.mark.parametrize("body", [{"usd": "a lot"}, {"usd": "NaN"}])
def test_balance_that_is_no_amount_is_refused(server: Server, body: dict[str, str]) -> None:
    assert server.http.post("/emulator/balance", json=body).status_code == 400


def test_clock_is_set_advanced_stopped_and_kept_from_going_back(frozen: Server) -> None:
    assert frozen.get("/emulator/clock") == {"now": "2026-03-01T12:00:00.000000Z", "frozen": True}
    frozen.advance(90.5)
    assert frozen.get("/emulator/clock")["now"] == "2026-03-01T12:01:30.500000Z"
    frozen.post("/emulator/clock", {"now": START})
    frozen.deploy("holds-the-clock")
    refused = frozen.http.post("/emulator/clock", json={"advance_seconds": -1})
    assert refused.status_code == 409
    assert "cannot go back" in refused.json()["error"]["message"]
    frozen.post("/emulator/clock", {"frozen": False})
    first = frozen.get("/emulator/clock")["now"]
    frozen.wait(lambda: frozen.get("/emulator/clock")["now"] > first)


@pytest.mark.parametrize("body", [{"now": "noon"}, {"now": 5}, {"advance_seconds": "x"}, {"frozen": 1}, {"then": 1}])
def test_clock_refuses_what_is_no_time(server: Server, body: dict[str, object]) -> None:
    assert server.http.post("/emulator/clock", json=body).status_code == 400


def test_inactive_timeout_is_accepted_and_does_nothing_as_in_reality(frozen: Server) -> None:
    endpoint, deployment = frozen.deploy("idle")
    frozen.patch(f"/v2/projects/proj_local/endpoints/{endpoint}/deployments/{deployment}", {"inactiveTimeout": 30})
    frozen.advance(60 + 7200)
    assert frozen.state(endpoint, deployment) == "READY"


@pytest.fixture
def honouring(tmp_path: Path) -> Iterator[Server]:
    options = ("--trainer", "majority", "--cold-start", "60", "--honour-inactive-timeout")
    for server in start(tmp_path / "data", *options):
        server.post("/emulator/clock", {"now": START, "frozen": True})
        yield server


def test_honoured_inactive_timeout_stops_at_its_minute(honouring: Server) -> None:
    endpoint, deployment = honouring.deploy("idle")
    path = f"/v2/projects/proj_local/endpoints/{endpoint}/deployments/{deployment}"
    honouring.patch(path, {"inactiveTimeout": 30})
    honouring.advance(60 + 1200)
    assert honouring.chat("local/idle").status_code == 200
    honouring.advance(1799)
    assert honouring.state(endpoint, deployment) == "READY"
    honouring.advance(7200)
    assert honouring.state(endpoint, deployment) == "STOPPED"
    assert amounts(honouring, "deployment") == [(20 + 30, Decimal("4.575"))]
    assert honouring.get(path)["autoscaling"] == {"minReplicas": 0, "maxReplicas": 0}


seconds = st.floats(0, 1e6, allow_nan=False)


@given(start=seconds, length=seconds, cuts=st.lists(seconds, max_size=6))
def test_windows_never_lose_or_double_a_minute(start: float, length: float, cuts: list[float]) -> None:
    edges = [-math.inf, *sorted(cuts), math.inf]
    parts = [_count_minutes(start, start + length, since, until) for since, until in itertools.pairwise(edges)]
    assert all(part >= 0 for part in parts)
    assert sum(parts) == math.ceil(((start + length) - start) / 60)


def test_lines_name_what_they_are_told_to_and_cost_the_same(frozen: Server, dataset: Path) -> None:
    job = frozen.finish(frozen.train(frozen.upload(dataset))["id"])
    _, deployment = frozen.deploy("named")
    frozen.advance(60 + 600)

    def report(attributes: str) -> tuple[Decimal, list[str]]:
        frozen.post("/emulator/bill", {"attributes": attributes})
        windows = frozen.get("/v1/billing/usage", granularity="hour")["data"]
        lines = [line for window in windows for line in window["line_items"]]
        return sum((Decimal(line["cost"]) for line in lines), Decimal(0)), [str(line["attributes"]) for line in lines]

    total, _ = report("resource")
    for attributes, wanted in (
        ("resource", [job["id"], deployment]),
        ("typed", [job["id"], deployment]),
        ("path", [job["id"], deployment]),
        ("endpoint", ["local/named"]),
        ("hardware", []),
        ("absent", []),
    ):
        cost, said = report(attributes)
        assert cost == total
        assert all(any(name in text for text in said) for name in wanted)
        hidden = {job["id"], job["model_output_name"], deployment, "named"} - {w.removeprefix("local/") for w in wanted}
        if attributes in ("hardware", "absent", "endpoint"):
            assert not any(name in text for name in hidden for text in said)


def test_an_organization_without_billing_gets_404(frozen: Server) -> None:
    frozen.post("/emulator/bill", {"api": False})
    assert frozen.http.get("/v1/billing/usage").status_code == 404
    assert frozen.get("/emulator/bill")["items"] == []
    frozen.post("/emulator/bill", {"api": True})
    assert frozen.http.get("/v1/billing/usage").status_code == 200


@pytest.mark.parametrize("body", [{"attributes": "some"}, {"api": "no"}, {"form": 1}, {"attributes": None}])
def test_a_form_of_the_bill_that_is_none_is_refused(server: Server, body: dict[str, object]) -> None:
    assert server.http.post("/emulator/bill", json=body).status_code == 400
