"""Money as the ledger keeps it: whole nano-dollars, so that sums are exact on every database.

SQLite has no decimal type; Together's `total_price` is an integer in nano-USD as well. An amount is a `Decimal`, an
`int` or a decimal string everywhere else; a float is refused, because 0.1 + 0.2 is not 0.3.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal, InvalidOperation

NANO = 1_000_000_000

LARGEST_USD = 10_000_000
"""Nano-dollars below it fit 64 bits, also hundreds of them added up."""

Usd = Decimal | int | str


def to_nano(usd: Usd) -> int:
    """US dollars as whole nano-dollars; a fraction of one is rounded up (towards costing more).

    Raises TypeError for a float and ValueError for what is not a finite number, or too large a one.
    """
    if isinstance(usd, bool) or not isinstance(usd, (Decimal, int, str)):
        raise TypeError(f"an amount of money must be a Decimal, an int or a decimal string, not {usd!r}")
    try:
        amount = Decimal(usd)
    except InvalidOperation:
        raise ValueError(f"{usd!r} is not an amount of money: write it like '12.50'") from None
    if not amount.is_finite():
        raise ValueError(f"{usd!r} is not an amount of money: it must be finite")
    if abs(amount) >= LARGEST_USD:
        raise ValueError(f"{usd} is more money than the ledger can keep: it must be below ${LARGEST_USD:,}")
    return int((amount * NANO).to_integral_value(rounding=ROUND_CEILING))


def from_nano(nano: int) -> Decimal:
    """Whole nano-dollars as US dollars, exactly, without trailing zeros beyond the cent."""
    usd = Decimal(nano).scaleb(-9)
    cents = usd.quantize(Decimal("0.01"))
    return cents if cents == usd else usd.normalize()


def round_up(usd: Usd) -> Decimal:
    """US dollars as the ledger keeps them: a fraction of a nano-dollar is rounded up."""
    return from_nano(to_nano(usd))


def minutes_usd(hourly_usd: Decimal, minutes: int) -> Decimal:
    """What so many minutes of one replica cost, rounded up to a whole nano-dollar."""
    return from_nano(-(-to_nano(hourly_usd) * minutes // 60))


def per_million_usd(*parts: tuple[Decimal, int]) -> Decimal:
    """What pairs of a price of a million and a number of tokens cost together, rounded up to a whole nano-dollar."""
    return from_nano(-(-sum(to_nano(price) * tokens for price, tokens in parts) // 1_000_000))


def format_usd(usd: Decimal) -> str:
    """US dollars for people: `$4.00`, `$0.0915`, `-$1.20`, and what is less than a hundredth of a cent whole."""
    sign, amount = ("-" if usd < 0 else ""), abs(usd)
    digits = f"{amount:,.2f}" if amount == amount.quantize(Decimal("0.01")) or amount >= 1 else f"{amount:,.4f}"
    if 0 < amount < Decimal("0.0001"):
        digits = f"{amount:.9f}".rstrip("0")
    return f"{sign}${digits}"
