"""What the tokens of a registered model cost, at the prices that it was registered with."""

from __future__ import annotations

from decimal import Decimal

from storage.errors import PriceUnknown
from storage.ledger.money import per_million_usd
from storage.ledger.rows import Model

MESSAGE_TOKENS = 16
"""More than a chat template adds to a message."""


def tokens_usd(model: Model, input_tokens: int, output_tokens: int) -> Decimal:
    """US dollars that a registered model charges for so many tokens, rounded up as the ledger does.

    0 where it is paid by the hour alone. Raises PriceUnknown where it has no price at all.
    """
    if model.input_million_usd is None or model.output_million_usd is None:
        if model.hourly_usd is None:
            raise PriceUnknown(f"model {model.id} has no price: register it anew with its prices")
        return Decimal(0)
    return per_million_usd((model.input_million_usd, input_tokens), (model.output_million_usd, output_tokens))
