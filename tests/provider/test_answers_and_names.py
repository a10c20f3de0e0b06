"""What the provider says, in the ledger and in errors; names of hardware; which host is asked; what a rank costs."""

from __future__ import annotations

import json
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.completions import complete_many
from provider.errors import LONGEST_MESSAGE, ProviderRefused, brief
from provider.hardware import compare_hardware, price_of, read_hardware
from provider.lifecycle.fine_tunes import submit_fine_tune
from provider.port import Sampling
from provider.together.adapter import TogetherProvider
from provider.together.client import INFERENCE_URL, asynchronous, connect, inference_url
from provider.together.prices import lora_rank
from provider.together.serving_configs import ServingConfig, fittest
from storage.ledger.rows import Deployment
from tests.provider.world import World, conversation

PAGE = "<!DOCTYPE html><html><head><title>502 Bad\n Gateway</title><style>b{}</style></head><body>" + "x" * 9000


# -- the provider's words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("no capacity", "no capacity"),
        ("two\n\n lines", "two lines"),
        (PAGE, "an HTML page: 502 Bad Gateway"),
        ("<html><body><h1>Sorry &amp; bye</h1><script>alert(1)</script></body></html>", "an HTML page: Sorry & bye"),
        ("", ""),
    ],
)
def test_words_are_kept_in_one_short_line(said: str, kept: str) -> None:
    assert brief(said) == kept


@given(st.text(alphabet=st.sampled_from("<>html /titlebody\n\t&;x\x00é"), max_size=6000) | st.text(max_size=6000))
def test_any_words_become_one_short_line(said: str) -> None:
    kept = brief(said)
    assert len(kept) <= LONGEST_MESSAGE + len("an HTML page: ")
    assert len(kept.splitlines()) <= 1


def test_an_error_page_does_not_fill_the_ledger(world: World) -> None:
    model_id = world.model()

    def hook(response: httpx.Response) -> None:
        if response.request.method == "POST" and response.request.url.path.endswith("/deployments"):
            response.read()
            response.status_code = 403
            response.headers["content-type"] = "text/html"
            response._content = PAGE.encode()

    world.client._client.event_hooks = {"response": [hook]}
    with pytest.raises(ProviderRefused, match=r"403: an HTML page: 502 Bad Gateway$"):
        world.deploy(model_id)
    (row,) = world.ledger.find(Deployment)
    assert "x" * 20 not in json.dumps([row, *world.ledger.history(Deployment, row.id)], default=str)


# -- hardware ---------------------------------------------------------------------------------------------------------

SAME = ["1xnvidia-h100-80gb", "1xh100-80gb", "1xH100", "1x H100 80GB", "1 x NVIDIA H100 (80 GiB)", "H100 x 1"]
OTHER = ["8xnvidia-h100-80gb", "2xH100", "1xnvidia-b200-180gb", "1xH200", "1xnvidia-a100-80gb", "1xgb200", "1xl40s"]
SILENT = ["H100", "hw_h100_1", "pool-3", "", "gpu", "1x", "x" * 10_000, "1xnvidia-rtx-pro-6000-96gb"]


@pytest.mark.parametrize(("names", "match"), [(SAME, "same"), (OTHER, "different"), (SILENT, "unknown")])
def test_names_of_hardware_are_compared_by_what_they_say(names: list[str], match: str) -> None:
    for name in names:
        assert compare_hardware("1xnvidia-h100-80gb", name) == match, name
        assert compare_hardware(name, "1xnvidia-h100-80gb") == match, name


@given(st.text(max_size=120), st.text(max_size=120))
def test_no_name_is_an_error_and_the_order_does_not_matter(first: str, second: str) -> None:
    assert compare_hardware(first, second) == compare_hardware(second, first)
    assert compare_hardware(first, first) == "same"


@given(st.integers(1, 16), st.sampled_from(["h100", "h200", "b200", "a100", "l40s"]), st.sampled_from([80, 141, 180]))
def test_what_a_name_is_made_of_is_read_from_it(count: int, model: str, memory: int) -> None:
    read = read_hardware(f"{count}xnvidia-{model}-{memory}gb")
    assert (read.count, read.model, read.memory_gb) == (count, model, memory)


def test_the_price_of_a_name_that_fits_several_is_the_dearest() -> None:
    prices = {"1xnvidia-h100-80gb": Decimal("5.49"), "1xnvidia-h100-94gb": Decimal(7), "1xb200": Decimal(9)}
    assert price_of(prices, "1xnvidia-h100-80gb") == Decimal("5.49")
    assert price_of(prices, "1xH100") == Decimal(7)
    assert price_of(prices, "H100") is None


def test_of_configs_precision_then_adapter_mode_then_price_decide() -> None:
    def config(quantization: str, mode: str, usd: int) -> ServingConfig:
        return ServingConfig(f"{quantization}-{mode}-{usd}", "1xh100", Decimal(usd), quantization, mode)

    ordered = [
        config("BF16", "disabled", 5),
        config("BF16", "disabled", 6),
        config("BF16", "", 1),
        config("bf16", "dynamic", 1),
        config("BF16", "fixed", 1),
        config("", "disabled", 1),
        config("FP8", "disabled", 1),
        config("FP8", "fixed", 0),
    ]
    while ordered:
        assert fittest(reversed(ordered)) == ordered.pop(0)
    assert fittest([]) is None


# -- hosts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host"),
    [
        (None, "api-inference.together.ai"),
        ("https://api.together.ai/", "api-inference.together.ai"),
        ("https://eu.together.ai", "eu.together.ai"),
    ],
)
def test_chat_goes_to_the_host_that_is_made_for_it(monkeypatch: pytest.MonkeyPatch, url: str | None, host: str) -> None:
    asked: list[str] = []

    async def send(self: Any, request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(403, json={"error": {"message": "no"}})

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", send)
    monkeypatch.delenv("TOGETHER_BASE_URL", raising=False)
    client = connect(provider="together", base_url=url, api_key="key", project_id="proj_1")
    (answer,) = complete_many(TogetherProvider(client), "p/e", [conversation("hi")[:2]], Sampling(max_tokens=1))
    assert answer.error is not None
    assert asked == [host]
    assert client.base_url.host == host.replace("api-inference", "api")


def test_agents_are_sent_to_the_same_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOGETHER_BASE_URL", raising=False)
    assert inference_url("together") == INFERENCE_URL
    monkeypatch.setenv("TOGETHER_BASE_URL", "https://eu.together.ai")
    assert inference_url("together") == "https://eu.together.ai"
    assert inference_url("local", "http://127.0.0.1:1") == "http://127.0.0.1:1"


def test_the_asynchronous_twin_has_the_same_account_and_host(world: World) -> None:
    twin = asynchronous(world.client)
    assert (twin.api_key, twin.project_id, twin.max_retries) == (world.client.api_key, world.client.project_id, 0)
    assert twin.base_url == world.client.base_url


# -- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "limits", "rank"),
    [
        ({}, {"default_rank": 8, "max_rank": 64}, 8),
        ({"lora_r": 32}, {"default_rank": 8, "max_rank": 64}, 32),
        ({"lora_r": 128}, {"default_rank": 8, "max_rank": 64}, 64),
        ({}, {"max_rank": 16}, 16),
        ({}, {}, 64),
    ],
)
def test_the_rank_is_the_models_own(parameters: dict[str, int], limits: dict[str, int], rank: int) -> None:
    assert lora_rank(parameters, SimpleNamespace(lora_training=SimpleNamespace(**limits))) == rank
    assert lora_rank(parameters, None) == (parameters.get("lora_r") or 64)


def test_the_price_is_asked_for_the_rank_that_is_trained(world: World) -> None:
    dataset = world.upload()
    sent: dict[str, Any] = {}

    def note(request: httpx.Request) -> None:
        if request.method == "POST" and request.url.path.startswith("/v1/fine-tunes"):
            sent[request.url.path.rsplit("/", 1)[-1]] = json.loads(request.read())["training_type"]

    def limit(response: httpx.Response) -> None:
        if response.request.url.path.endswith("/models/limits"):
            response.read()
            answer = response.json()
            answer["lora_training"] |= {"default_rank": 16, "max_rank": 32}
            response._content = json.dumps(answer).encode()

    world.client._client.event_hooks = {"request": [note], "response": [limit]}
    submit_fine_tune(world.provider, world.ledger, dataset.id, tier="small", pace=world.pace)
    assert sent["estimate-price"]["lora_r"] == sent["fine-tunes"]["lora_r"] == 16
