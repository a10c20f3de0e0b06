"""Answering a question to a model: our models where that can be, else its own API, byte for byte."""

from __future__ import annotations

from gateway.coding.anthropic import answer_coding
from gateway.coding.model import DECISION_TYPE
from gateway.decisions.answering import Asked, answer_decision_prompt, answer_forced, find_decision_prompt
from gateway.http.bodies import read_request
from gateway.http.exchange import Exchange
from gateway.http.forward import forward
from gateway.http.inference import Inference
from gateway.protocols.port import Operation
from gateway.state import State


async def answer(state: State, exchange: Exchange, operation: Operation, path: bytes) -> None:
    """Answer a POST that is `operation` of the exchange's protocol."""
    key, protocol = exchange.admission.key, exchange.protocol
    assert key is not None
    assert protocol is not None
    exchange.route = operation.route
    body = await exchange.read()
    decides = state.settings.decisions and key.decisions
    read = await read_request(exchange, body) if decides or operation.may_be_coding else None
    if read is not None:
        request, size = read[0], len(read[1])
        provider = protocol.genai_provider or protocol.name
        exchange.inference = Inference(operation.genai, provider, operation.model(path, request))
        del read  # an answer may take minutes
        if decides and await _decide(state, exchange, Asked(operation, path, body, request)):
            return
        if operation.may_be_coding and state.classifier(request, exchange.admission.headers).coding:
            exchange.kind = DECISION_TYPE
            await answer_coding(state, exchange, path, body, request, size)
            return
        del request
    exchange.keep_body(body)
    await forward(exchange, state.http, state.pools[protocol.name], path=path, body=body)


async def _decide(state: State, exchange: Exchange, asked: Asked) -> bool:
    """Answer a request that is a decision. False for any other."""
    key = exchange.admission.key
    assert key is not None
    if asked.operation.needs_query not in exchange.query:
        return False
    if prompt := find_decision_prompt(state, asked.operation, asked.request):
        await answer_decision_prompt(state, exchange, asked, prompt)
        return True
    if state.settings.forced and key.forced and (forced := state.forced.find(asked.operation, asked.request)):
        await answer_forced(state, exchange, asked, forced)
        return True
    return False
