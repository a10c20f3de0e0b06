"""What questions to registered models cost that are not in the decision log: those of a check and of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from provider.completions import complete_many
from provider.endpoint.adapter import EndpointProvider
from provider.endpoint.arms import most_usd, served_name
from provider.endpoint.asking import Messages
from provider.money.token_prices import tokens_usd
from provider.port import CompletionResult, Sampling
from reasoning.config import Config
from storage.ledger.charges import ChargedTo
from storage.ledger.money import format_usd
from storage.ledger.rows import Deployment, Model, required
from storage.progress import OnProgress

if TYPE_CHECKING:
    from storage.ledger.ledger import Ledger

AT_ONCE = 4
"""Questions of an evaluation that are asked at the same time: more would measure the queue of a small server."""


def ask_charged(
    config: Config,
    ledger: Ledger,
    deployment: Deployment,
    model: Model,
    conversations: Sequence[Messages],
    sampling: Sampling,
    *,
    progress: OnProgress | None = None,
    now: datetime | None = None,
) -> list[CompletionResult]:
    """`complete_many` of a registered model, charged.

    What the tokens can cost at most is charged before, and the difference given back after the last answer. Raises
    BudgetExceeded, and then nothing was asked.
    """
    name = served_name(required(model.name, f"the name of model {model.id}"))
    with charged_at_most(ledger, model, deployment.id, conversations, sampling.max_tokens, now=now) as costs:

        def note(at: int, answer: CompletionResult | None) -> None:
            costs[at] = Decimal(0) if answer is None else counted_usd(model, answer.input_tokens, answer.output_tokens)

        with EndpointProvider(config, [model], on_answer=note) as provider:
            return complete_many(
                provider,
                name,
                conversations,
                sampling,
                concurrency=AT_ONCE,
                ledger=ledger,
                progress=progress,
                now=now,
            )


def counted_usd(model: Model, input_tokens: int | None, output_tokens: int | None) -> Decimal | None:
    """What an answer cost; None where its server did not count its tokens, or it failed."""
    if input_tokens is None or output_tokens is None:
        return None
    return tokens_usd(model, input_tokens, output_tokens)


@contextmanager
def charged_at_most(
    ledger: Ledger,
    model: Model,
    deployment_id: str | None,
    conversations: Sequence[Messages],
    max_tokens: int,
    *,
    now: datetime | None,
) -> Iterator[dict[int, Decimal | None]]:
    """Charge what these questions can cost at most; at the end of the block give back what they did not cost.

    Gives a mapping for what each cost, by its number. One that is not there, or None, keeps its most: what a server
    charges for it is not known. Raises BudgetExceeded before the block.
    """
    most = most_usd(model, conversations, max_tokens)
    what = f"{len(conversations)} questions to {model.name}"
    of = ChargedTo(decision_type=model.decision_type, model_id=model.id, deployment_id=deployment_id)
    reservation = ledger.reserve(most, purpose=what, decision_type=model.decision_type, model=model.id, now=now)
    ledger.settle(reservation, most, kind="tokens", what=f"tokens of {what}, at most", of=of, now=now)
    costs: dict[int, Decimal | None] = {}
    try:
        yield costs
    finally:
        spent = Decimal(0)
        for at, messages in enumerate(conversations):
            cost = costs.get(at)
            spent += most_usd(model, [messages], max_tokens) if cost is None else cost
        if spent != most:
            ledger.charge(
                "adjustment",
                spent - most,
                key=f"asked:{reservation.id}",
                what=f"tokens of {what}: they cost {format_usd(spent)}, charged was {format_usd(most)} at most",
                of=of,
                now=now,
            )
