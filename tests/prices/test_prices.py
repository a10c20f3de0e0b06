"""List prices: which goes first, what is unknown, and that every figure says where it is from."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from prices.listed import listed_models, listed_serving
from prices.models import Price, find_price
from prices.serving import ways_of_serving
from prices.settings import load_prices
from reasoning.errors import ConfigError

ANTHROPIC, OPENAI = "https://api.anthropic.com", "https://api.openai.com"
TS = datetime(2026, 11, 28, tzinfo=UTC)


def cost(model: object, url: str | None = None, **tokens: int) -> float | None:
    price = find_price((), model, url=url, ts=TS)
    return None if price is None else price.cost_usd(**({"input": 700, "output": 45} | tokens))


@pytest.mark.parametrize(
    ("model", "url", "per_decision"),
    [
        ("gpt-6-luna", None, 0.0000925),
        ("gpt-6-luna", OPENAI, 0.0000925),
        ("claude-sonnet-5-5", ANTHROPIC, 0.00185),
        ("claude-opus-5-5", None, 0.0037),
        ("jev-1.14.0", None, 0.0000294),
        ("clef-flash", None, 0.000063),  # of our own list
        ("pplx-decider-flash", None, 0.000007),
    ],
)
def test_models_at_the_prices_of_their_companies(model: str, url: str | None, per_decision: float) -> None:
    assert cost(model, url) == pytest.approx(per_decision)


def test_cached_tokens_have_prices_of_their_own() -> None:
    expected = (100 * 0.1 + 45 * 0.5 + 500 * 0.01 + 100 * 0.125) / 1e6
    assert cost("claude-haiku-5-5", ANTHROPIC, input=100, cache_read=500, cache_write=100) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("model", "url"),
    [
        ("nobodys-model", None),
        (None, None),
        (7, None),
        ("", None),
        ("gpt-6-luna", ANTHROPIC),
        ("gpt-6-luna", "http://127.0.0.1:8000"),  # of the same name, at home
        ("gpt-6-luna", "http://vllm.example"),
        ("gpt-6-luna", ""),
        ("clef", "http://vllm.example"),
    ],
)
def test_what_is_not_known_has_no_price(model: object, url: str | None) -> None:
    assert cost(model, url) is None


def test_the_users_price_goes_before_all_lists_and_figures_say_their_source() -> None:
    own = (Price("gpt-6-*", Decimal(1), Decimal(2), Decimal(0), Decimal(0)),)
    price = find_price(own, "gpt-6-luna", url=OPENAI)
    assert price is own[0] and price.source == "reasoning.toml"
    listed = find_price((), "gpt-6-luna")
    assert listed is not None and listed.source.startswith("genai-prices 0.") and "(202" in listed.source
    supplied = find_price((), "clef")
    assert supplied is not None and "(2026-" in supplied.source


def test_every_listed_price_has_a_source_and_a_date() -> None:
    for entry in [*listed_models().values(), *listed_serving().values()]:
        assert entry["source"].endswith(")") and "(202" in entry["source"]


def test_settings_override_ways_and_add_some(tmp_path: Path) -> None:
    file = tmp_path / "reasoning.toml"
    file.write_text("""
        [prices.models."mine-*"]
        input_usd_per_mtok = 3
        output_usd_per_mtok = 15
        [prices.serving.dedicated]
        hourly_usd = 2.5
        [prices.serving.home]
        enabled = false
        [prices.serving.closet]
        kind = "home"
        hourly_usd = 0.02
        [gateway.prices."old-*"]
        input_usd_per_mtok = 1
        output_usd_per_mtok = 1
    """)
    found = load_prices(file)
    assert [price.model for price in found.models] == ["mine-*", "old-*"]
    ways = {way.name: way for way in found.serving}
    assert ways["dedicated"].hourly_usd == Decimal("2.5") and ways["dedicated"].source == "reasoning.toml"
    assert ways["shared"].hourly_usd == Decimal("3.99") and "home" not in ways
    assert ways["closet"].title == "closet"
    assert {way.name for way in load_prices(tmp_path / "none.toml").serving} == {way.name for way in ways_of_serving()}


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ('[prices.models."m"]\ninput_usd_per_mtok = 3', "output_usd_per_mtok is needed"),
        ('[prices.models."m"]\nprice = 3', "price is not known"),
        ("[prices.model]", "did you mean models"),
        ("[prices.serving.dedicated]\nhourly_usd = -1", "hourly_usd"),
        ("[prices.serving.dedicated]\nhourly_usd = nan", "hourly_usd"),
        ('[prices.serving.mine]\nkind = "gpu"', "'gpu' is none of replica"),
        ('[prices.serving.mine]\nkind = "adapters"\nhourly_usd = 1', "max_adapters is needed"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, toml: str, named: str) -> None:
    file = tmp_path / "reasoning.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError, match=named):
        load_prices(file)
