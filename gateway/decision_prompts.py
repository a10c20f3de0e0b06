"""Answering a decision prompt: our model by its route, or the upstream that the client meant to ask."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.answer_forms import answer_body
from gateway.decisions import count_answer
from gateway.episodes import told_episode, told_room, told_user
from gateway.errors import ModelAnswerError, UpstreamError
from gateway.exchange import Exchange
from gateway.prompts import STAGE_ONE_TOOL, DecisionPrompt, read_decision, recognise, write_answer
from gateway.read_answers import Form, Said, read_answer
from gateway.security import Headers, forwarded_headers, returned_headers
from gateway.state import State
from gateway.upstream import Pool, ask
from reasoning.bounded import MAX_BYTES
from reasoning.decision_types import DecisionType, get_decision_type
from reasoning.errors import InvalidContext, UnparseableAnswer


class _Upstream:
    """The upstream as the original logic of a decision: asked once at most, its answer kept as it came."""

    def __init__(
        self, state: State, exchange: Exchange, prompt: DecisionPrompt, form: Form, pool: Pool, path: bytes, body: bytes
    ) -> None:
        self._state, self._exchange, self._prompt = state, exchange, prompt
        self._form, self._pool, self._path, self._body = form, pool, path, body
        self.status = 0
        self.headers: Headers = []
        self.answer = b""

    async def __call__(self, context: dict[str, Any]) -> dict[str, Any]:
        await self.fetch()
        content_type = dict(self.headers).get(b"content-type", b"").decode("latin-1")
        if self.status != 200:
            raise ModelAnswerError("upstream_status", str(self.status))
        said = read_answer(self._form, self.answer, content_type)
        kind = get_decision_type(self._prompt.decision_type, self._state.config)
        return self._read(said, kind)

    def _read(self, said: Said, kind: DecisionType) -> dict[str, Any]:
        """The decision in an answer that its model ended, in words. Raises `UnparseableAnswer`."""
        if said.stop is not None and not said.whole:
            raise UnparseableAnswer(f"the answer was cut: {said.stop[:60]}")
        text = said.text
        if said.tool_calls:
            call = said.tool_calls[0]
            if len(said.tool_calls) > 1 or call["name"] != STAGE_ONE_TOOL or text.strip():
                raise UnparseableAnswer(f"the answer calls tools: {call['name'][:60]!r}")
            arguments = call["arguments"]
            text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
        return read_decision(self._prompt.format, text, kind, self._prompt.context)

    async def fetch(self) -> None:
        """Ask, and read the answer whole: a decision is small. Raises `UpstreamError`."""
        upstream, response = await ask(
            self._state.http,
            self._pool,
            self._exchange.method,
            self._path,
            self._exchange.query,
            lambda chosen: forwarded_headers(
                self._exchange.headers, self._exchange.admission, chosen.settings.api_key, identity=True
            ),
            self._body,
        )
        try:
            parts, size = [], 0
            while chunk := await response.content.readany():
                size += len(chunk)
                if size > MAX_BYTES:  # not asked again: it would cost the same once more
                    raise UpstreamError(f"{self._pool.name} answered a decision with more than {MAX_BYTES} bytes")
                parts.append(chunk)
        finally:
            upstream.active -= 1
            response.release() if response.content.at_eof() else response.close()
        self.status, self.answer = response.status, b"".join(parts)
        self.headers = [h for h in returned_headers(response.raw_headers) if h[0] != b"content-length"]
        self.headers.append((b"content-length", b"%d" % size))


# What asks for an answer that is more than a decision's words, or for one that the upstream has to remember.
_MORE_THAN_WORDS = (
    *("tools", "functions", "mcp_servers", "output_config", "output_format", "logprobs", "top_logprobs", "audio"),
    *("previous_response_id", "conversation", "background", "container", "include"),
)
_STOPS = ("stop", "stop_sequences")
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def find_decision_prompt(state: State, form: Form, request: dict[str, Any]) -> DecisionPrompt | None:
    """The decision that a request asks for. One that asks for more than its words is not one: tools may be called,
    several answers or one of a given schema be wanted."""
    if any(request.get(name) for name in _MORE_THAN_WORDS) or request.get("n") not in (None, 1):
        return None
    if request.get("web_search_options") is not None or any(request.get(name) in (0, 1) for name in _LIMITS):
        return None  # an answer from the web; or a probe, whose one token is no decision
    text = request.get("text")
    formats = (request.get("response_format"), text.get("format") if isinstance(text, dict) else None)
    kinds = {str(wanted.get("type", "text")) for wanted in formats if isinstance(wanted, dict)} - {"text"}
    if kinds - {"json_object"} or not all(isinstance(request.get(name), str | list | None) for name in _STOPS):
        return None
    prompt = _last_user_text(request.get("input") if form == "responses" else request.get("messages"))
    if prompt is None:
        return None
    found = recognise(prompt, state.prompt_kinds, state.config.decision_types)
    return found if found is None or not kinds or found.format == "json" else None


async def answer_decision_prompt(
    state: State,
    exchange: Exchange,
    prompt: DecisionPrompt,
    *,
    form: Form,
    pool: Pool,
    path: bytes,
    body: bytes,
    request: dict[str, Any],
) -> None:
    """Decide and answer in the format asked for. What the upstream answered goes back as it came."""
    exchange.kind = prompt.decision_type
    upstream = _Upstream(state, exchange, prompt, form, pool, path, body)
    key = exchange.admission.key
    assert key is not None
    with exchange.watch():
        answer = None
        try:
            answer = await state.client.decide(
                prompt.decision_type,
                prompt.context,
                upstream,
                episode_id=_episode(state, exchange, prompt, request),
                room_id=told_room(exchange.admission.headers, request),
                subject_ids=[*prompt.subject_ids, *filter(None, [told_user(request)])],
                tags={"door": form, "key": key.name},
            )
        except (ModelAnswerError, UnparseableAnswer, InvalidContext):
            if not upstream.status:  # our client could not use the context: the upstream still can
                await upstream.fetch()
        if answer is None or answer.source == "original":
            exchange.served_by = pool.name
            exchange.reason = answer.fallback_reason if answer else "upstream_undecided"
            if exchange.reason:
                state.metrics.fallbacks.labels(prompt.decision_type, exchange.reason).inc()
            if answer is not None and state.settings.record:  # for feedback
                upstream.headers.append((b"x-reasoning-decision-id", str(answer.decision_id).encode()))
            await exchange.start(upstream.status, upstream.headers)
            await exchange.write(upstream.answer, more=False)
            return
        exchange.served_by = "custom"
        count_answer(state, prompt.decision_type, answer)
        options = request.get("stream_options")
        kind = get_decision_type(prompt.decision_type, state.config)
        text, stop = _until_stop(write_answer(prompt, answer.decision, kind), request)
        content_type, out = answer_body(
            form,
            text,
            model=answer.model or "",
            input_tokens=answer.input_tokens or 0,
            output_tokens=answer.output_tokens or 0,
            stop_sequence=stop,
            stream=bool(request.get("stream")),
            stream_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        )
        headers = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(out)),
            (b"request-id", exchange.request_id.encode()),
            (b"x-reasoning-source", b"custom"),
        ]
        if state.settings.record:
            headers.append((b"x-reasoning-decision-id", str(answer.decision_id).encode()))
        await exchange.start(200, headers)
        await exchange.write(out, more=False)


def _until_stop(text: str, request: dict[str, Any]) -> tuple[str, str | None]:
    """The text before the first of the sequences at which the client wants it to end, and that sequence."""
    wanted: Any = next((request[name] for name in _STOPS if request.get(name)), [])
    stops = [wanted] if isinstance(wanted, str) else [stop for stop in wanted if isinstance(stop, str) and stop]
    found = min((stop for stop in stops if stop in text), key=text.index, default=None)
    return (text, None) if found is None else (text[: text.index(found)], found)


def _episode(state: State, exchange: Exchange, prompt: DecisionPrompt, request: dict[str, Any]) -> str:
    key = exchange.admission.key
    assert key is not None
    if told := told_episode(exchange.admission.headers, request):
        return key.episode(told)
    scope = (key.name, prompt.context["agent_name"], told_user(request) or "")
    return state.episodes.find("\0".join(scope), prompt.marks)


def _last_user_text(turns: Any) -> str | None:
    if isinstance(turns, str):
        return turns
    if not isinstance(turns, list) or not turns:
        return None
    last = turns[-1]
    if not isinstance(last, dict) or last.get("role") != "user":
        return None
    content = last.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in ("text", "input_text"):
            return None  # a picture: our models do not see it
        texts.append(str(part.get("text", "")))
    return "\n".join(texts)
