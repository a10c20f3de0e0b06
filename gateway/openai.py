"""The OpenAI door: known decision prompts are decided by our models, all else passes on, byte for byte."""

from __future__ import annotations

from gateway.bodies import read_request
from gateway.decision_prompts import answer_decision_prompt, find_decision_prompt
from gateway.exchange import Exchange
from gateway.forward import forward
from gateway.read_answers import Form
from gateway.state import State


async def chat_completions(state: State, exchange: Exchange, path: bytes) -> None:
    """`POST /v1/chat/completions`."""
    await _answer(state, exchange, path, "chat", "chat_completions")


async def responses(state: State, exchange: Exchange, path: bytes) -> None:
    """`POST /v1/responses`."""
    await _answer(state, exchange, path, "responses", "responses")


async def _answer(state: State, exchange: Exchange, path: bytes, form: Form, route: str) -> None:
    exchange.route = route
    key = exchange.admission.key
    assert key is not None
    body = await exchange.read()
    looks = state.settings.decisions and key.decisions
    read = await read_request(exchange, body) if looks else None
    if read is not None and (found := find_decision_prompt(state, form, read[0])):
        await answer_decision_prompt(
            state, exchange, found, form=form, pool=state.openai, path=path, body=body, request=read[0]
        )
        return
    del read  # an answer may take minutes
    exchange.keep_body(body)
    await forward(exchange, state.http, state.openai, path=path, body=body)
