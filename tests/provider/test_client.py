"""The way to the provider: settings, tiers, prices, and a lease that nobody forgets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from provider.completions import complete_many
from provider.errors import NotServable, ProviderRefused, ProviderSettingsError, ProviderUnavailable
from provider.hardware import instance_price
from provider.lifecycle.routes import keep_models, publish_route, renew_lease, routed_models
from provider.port import Sampling
from provider.together.client import connect, provider_url
from provider.together.prices import hourly_prices
from provider.together.tiers import TIERS, resolve_tier
from reasoning.errors import RoutesError
from reasoning.serving.routes import Arm, Route, read_routes
from storage.errors import PriceUnknown
from tests.provider.world import World, conversation

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "REASONING_PROVIDER",
        "REASONING_PROVIDER_URL",
        "TOGETHER_BASE_URL",
        "TOGETHER_API_KEY",
        "TOGETHER_PROJECT_ID",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("provider", "url", "message"),
    [
        (None, None, "set REASONING_PROVIDER_URL"),
        ("openai", None, "unknown provider 'openai'"),
        ("local", "https://api.together.ai", "costs money"),
        ("local", "https://api.together.xyz", "costs money"),
        ("local", "http://127.0.0.1:8000/v1", "must not end in /v1"),
        ("together", "ftp://x", "not an http"),
        ("together", None, "TOGETHER_API_KEY is not set"),
    ],
)
def test_wrong_settings_are_named(provider: str | None, url: str | None, message: str) -> None:
    with pytest.raises(ProviderSettingsError, match=message):
        connect(provider=provider, base_url=url)


def test_the_real_provider_is_never_chosen_by_a_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGETHER_API_KEY", "a-real-key")
    monkeypatch.setenv("REASONING_PROVIDER_URL", "http://127.0.0.1:1")
    assert provider_url() == "http://127.0.0.1:1"
    assert provider_url("together") == "https://api.together.ai"


def test_a_real_key_does_not_go_to_another_server(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGETHER_API_KEY", "a-real-key")
    with connect(base_url=world.emulator.url) as client:
        assert client.api_key == "local"
        assert client.project_id == "proj_local"


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProviderUnavailable, match=r"this key's project at http://127\.0\.0\.1:9: no answer"):
        connect(base_url="http://127.0.0.1:9")


def test_a_key_is_in_no_error(world: World) -> None:
    world.emulator.fault(401, "GET /v3/whoami")
    with pytest.raises(ProviderRefused) as caught:
        connect(base_url=world.emulator.url, api_key="very-secret")
    assert "very-secret" not in str(caught.value)
    world.emulator.fault(401, "GET /v3/whoami", message="Invalid API key very-secret-2. It is very-secret-2")
    with pytest.raises(ProviderRefused, match=r"Invalid API key \*\*\*\. It is \*\*\*") as caught:
        connect(base_url=world.emulator.url, api_key="very-secret-2")
    assert "very-secret" not in str(caught.value)


def test_tiers_take_the_first_that_can_be_trained_and_served(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_tier(world.client, "small").name == "Qwen/Qwen3.5-2B"
    large = resolve_tier(world.client, "large")
    assert (large.hardware, large.hourly_usd) == ("4xnvidia-h100-80gb", Decimal("21.96"))  # the cheaper of two configs
    monkeypatch.setitem(TIERS, "mine", ("nobody/none", "Qwen/Qwen3.5-4B"))
    with pytest.raises(
        NotServable, match=r"nobody/none is not on the provider's list; Qwen/Qwen3\.5-4B cannot be served"
    ):
        resolve_tier(world.client, "mine")


def test_prices_are_read_and_unknown_ones_refused(world: World) -> None:
    assert instance_price(world.provider, "1xnvidia-h100-80gb") == Decimal("5.49")
    assert hourly_prices(world.client)["1xnvidia-b200-180gb"] == Decimal("8.99")
    with pytest.raises(PriceUnknown, match="lists no price for 1xmystery"):
        instance_price(world.provider, "1xmystery")


def test_a_question_that_fails_does_not_lose_the_others(world: World) -> None:
    row = world.deploy()
    world.emulator.fault(400, "POST /v1/chat/completions")
    world.emulator.fault(503, "POST /v1/chat/completions")
    seen: list[float] = []
    answers = complete_many(
        world.provider,
        row.served_name,
        [conversation("hi")[:2]] * 5,
        Sampling(max_tokens=10),
        progress=lambda event: seen.append(event.fraction),
    )
    assert [answer.error is None for answer in answers].count(False) == 1
    assert seen[-1] == 1


async def test_questions_may_be_asked_from_an_event_loop(world: World) -> None:
    row = world.deploy()
    (answer,) = complete_many(world.provider, row.served_name, [conversation("hi")[:2]], Sampling(max_tokens=10))
    assert answer.error is None


def arm(model: str, weight: float = 1.0) -> Arm:
    return Arm(model, "custom", weight, model=model, base_url="http://127.0.0.1:1")


def test_a_lease_is_published_renewed_withdrawn_and_runs_out(tmp_path: Path) -> None:
    path = tmp_path / "routes.json"
    assert renew_lease(path, now=NOON) is None
    assert routed_models(path, now=NOON) == frozenset()
    publish_route(path, "planning", Route((arm("a"), arm("b"), Arm("o", "original"))), now=NOON)
    publish_route(path, "coding", Route((arm("a"),)), now=NOON)
    assert routed_models(path, now=NOON) == {"a", "b"}
    assert routed_models(path, now=NOON + timedelta(minutes=3)) == frozenset()
    renew_lease(path, now=NOON + timedelta(minutes=3))
    assert routed_models(path, now=NOON + timedelta(minutes=5)) == {"a", "b"}
    assert keep_models(path, lambda kind, model: model != "a") == [("planning", "a"), ("coding", "a")]
    assert [one.name for one in read_routes(path).routes["planning"].arms] == ["b", "o"]
    assert "coding" not in read_routes(path).routes
    assert keep_models(path, lambda kind, model: False) == [("planning", "b")]
    assert read_routes(path).routes == {}


def test_routes_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "routes.json").mkdir()
    with pytest.raises(RoutesError, match=r"routes\.json cannot be written: Is a directory.*make it a file"):
        keep_models(tmp_path / "routes.json", lambda kind, model: False)


def test_routes_that_cannot_be_read_are_cleared_but_never_renewed(tmp_path: Path) -> None:
    path = tmp_path / "routes.json"
    path.write_text("{")
    with pytest.raises(RoutesError):
        renew_lease(path, now=NOON)
    keep_models(path, lambda kind, model: True, now=NOON)
    assert read_routes(path).routes == {}


@pytest.mark.parametrize("url", ["http://u:secret@127.0.0.1:9", "http://127.0.0.1:9/?key=secret"])
def test_a_url_with_a_secret_in_it_is_refused_without_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for provider, setting in (("local", "REASONING_PROVIDER_URL"), ("together", "TOGETHER_BASE_URL")):
        monkeypatch.setenv(setting, url)
        with pytest.raises(ProviderSettingsError, match="write the address alone") as caught:
            provider_url(provider)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["api.together.ai", "api.together.ai.", "together.xyz", "API.together.xyz"])
def test_what_costs_money_is_never_local(host: str) -> None:
    with pytest.raises(ProviderSettingsError, match="costs money"):
        provider_url("local", f"https://{host}")
