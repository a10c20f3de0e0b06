"""What a server at a URL is: reachable, OpenAI-shaped, with this model, streamed too, with log-probabilities or not."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from provider.endpoint.arms import arm_of
from provider.endpoint.asking import Asker, Messages
from provider.endpoint.charging import charged_at_most, counted_usd
from provider.errors import (
    AccessDenied,
    KeyRefused,
    ProviderRefused,
    ProviderSettingsError,
    ProviderUnavailable,
    RemoteNotFound,
    UnexpectedAnswer,
    brief,
)
from provider.port import Sampling
from reasoning.config import Config, api_key_for, is_loopback
from reasoning.errors import CallFailed, ConfigError
from reasoning.serving.completion import Completion
from reasoning.serving.model_calls import REQUEST_ERRORS
from reasoning.serving.routes import Arm, Logprobs
from reasoning.toml_tables import server_url
from storage.ledger.rows import Model

if TYPE_CHECKING:
    from reasoning.decision_types import DecisionType
    from storage.ledger.ledger import Ledger

MOST_QUESTIONS = 4
"""Calls of one check at most: three ways of asking for log-probabilities, and one streamed."""

_LOGPROBS: Sequence[Logprobs] = ("flag", "count", "none")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class ServerCheck:
    """What a server does. `answers` are all that were received, for their price."""

    logprobs: Logprobs
    counts_tokens: bool
    counts_tokens_streamed: bool
    text: str
    answers: tuple[Completion, ...]


def check_url(url: str) -> str:
    """The base URL without `/v1`. Raises ProviderSettingsError for what is no plain address of a server."""
    found = server_url("--url", url, "name the variable of its key with --key-variable", ProviderSettingsError)
    host = urlsplit(found).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if address is not None and (address.is_link_local or address.is_multicast or address.is_unspecified):
        raise ProviderSettingsError(f"--url: {host} is no address of a server (link-local, multicast or unspecified)")
    if not found.isascii():
        raise ProviderSettingsError(f"--url: {found!r} is not ASCII; write the host name in its xn-- form")
    return found


def check_key(config: Config, url: str, key_variable: str | None, *, allow_http: bool) -> None:
    """Raises ProviderSettingsError unless the key in `key_variable` may be sent to `url`."""
    if key_variable is None:
        return
    if not _VARIABLE.fullmatch(key_variable):  # perhaps the key itself: it is not shown
        raise ProviderSettingsError(
            "--key-variable: the name of an environment variable is needed, such as VLLM_API_KEY, never the key"
        )
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or "") and not allow_http:
        raise ProviderSettingsError(
            f"--url: {url} would get the key in {key_variable} unencrypted; use https, or insist with --allow-http"
        )
    try:
        api_key_for(config, url, key_variable)
    except ConfigError as error:
        raise ProviderSettingsError(str(error)) from None


def check_server(
    config: Config, model: Model, messages: Messages, sampling: Sampling, seen: list[Completion]
) -> ServerCheck:
    """Ask one question until it is known how this server is asked, then once more as a stream.

    Every answer is added to `seen`, also where the check fails afterwards. Raises ProviderUnavailable,
    UnexpectedAnswer, KeyRefused, AccessDenied, RemoteNotFound, ProviderRefused.
    """
    arm = arm_of(model)
    with closing(Asker(config, sampling)) as asker:
        logprobs, whole = _find_logprobs(asker, arm, messages, seen)
        arm = replace(arm, logprobs=logprobs)
        streamed = _ask(asker, arm, messages, seen, stream=True)
    if not whole.text.strip() and not streamed.text.strip():
        raise UnexpectedAnswer(
            f"{arm.base_url}: {arm.asked_as} answered nothing (finish_reason {whole.finish_reason!r}): if it thinks "
            "first, give the decision type more max_tokens, or thinking = false, in reasoning.toml"
        )
    return ServerCheck(logprobs, _counts(whole), _counts(streamed), whole.text or streamed.text, tuple(seen))


def _counts(answer: Completion) -> bool:
    return None not in (answer.input_tokens, answer.output_tokens)


def check_model(config: Config, ledger: Ledger, model: Model, kind: DecisionType, *, now: datetime) -> ServerCheck:
    """Ask the server of a model one question of its decision type, at most `MOST_QUESTIONS` times, and charge it.

    Raises BudgetExceeded before anything is asked, what `check_server` does, and ProviderRefused where it is to be paid
    by the token and does not count them.
    """
    messages = kind.render(golden_context())
    with _charging(ledger, model, kind, messages, now) as seen:
        checked = check_server(config, model, messages, Sampling.of(kind), seen)
    if model.input_million_usd is not None and not checked.counts_tokens:
        raise ProviderRefused(
            f"{model.base_url} does not say how many tokens an answer took (`usage`), so its cost cannot be known: "
            "register it with --hourly-usd, or use a server that counts them"
        )
    return checked


@contextmanager
def _charging(
    ledger: Ledger, model: Model, kind: DecisionType, messages: Messages, now: datetime
) -> Iterator[list[Completion]]:
    """Charge a check. A call that got no answer in time, or none that can be read, is charged at its most."""
    seen: list[Completion] = []
    with charged_at_most(ledger, model, None, [messages] * MOST_QUESTIONS, kind.max_tokens, now=now) as costs:
        in_doubt = False
        try:
            yield seen
        except UnexpectedAnswer:
            in_doubt = True
            raise
        except Exception as error:
            in_doubt = isinstance(error.__cause__, CallFailed) and error.__cause__.reason == "timeout"
            raise
        finally:
            costs.update(dict.fromkeys(range(MOST_QUESTIONS), Decimal(0)))
            costs.update(
                {at: counted_usd(model, each.input_tokens, each.output_tokens) for at, each in enumerate(seen)}
            )
            if in_doubt and len(seen) < MOST_QUESTIONS:
                costs[len(seen)] = None


def _find_logprobs(asker: Asker, arm: Arm, messages: Messages, seen: list[Completion]) -> tuple[Logprobs, Completion]:
    """The first way of asking for log-probabilities that gives some. What a server refuses is asked without them."""
    answer: Completion | None = None
    for way in _LOGPROBS[:-1]:
        try:
            answer = _ask(asker, replace(arm, logprobs=way), messages, seen)
        except ProviderRefused as error:
            if not isinstance(error.__cause__, CallFailed) or error.__cause__.status not in REQUEST_ERRORS:
                raise
            continue
        if answer.token_logprobs:
            return way, answer
    return "none", answer or _ask(asker, replace(arm, logprobs="none"), messages, seen)


def _ask(asker: Asker, arm: Arm, messages: Messages, seen: list[Completion], *, stream: bool = False) -> Completion:
    try:
        answer = asker.ask(arm, messages, stream=stream)
    except CallFailed as error:
        raise _explain(error, arm, streamed=stream) from error
    seen.append(answer)
    return answer


def _explain(error: CallFailed, arm: Arm, *, streamed: bool) -> Exception:
    """What went wrong, and what to do."""
    said, place, status = brief(str(error)), arm.base_url, error.status
    how = f"{place}, asked for a stream" if streamed else f"{place}"
    if error.reason == "disabled":
        return ProviderSettingsError(said)
    if status == 401:
        cure = (
            f"check the key in {arm.key_variable}"
            if arm.key_variable
            else "name the variable of its key: --key-variable"
        )
        return KeyRefused(f"{how}: the key was refused ({said}); {cure}")
    if status == 403:
        return AccessDenied(f"{how}: the key may not use {arm.asked_as} ({said}); use one that may")
    if status == 404:
        return RemoteNotFound(
            f"{how}: no model {arm.asked_as!r}, or no {place}/v1/chat/completions ({said}); `curl {place}/v1/models` "
            "lists the models of most servers"
        )
    if 300 <= status < 400:
        return UnexpectedAnswer(f"{how}: it redirects elsewhere ({said}), which is not followed; give the final URL")
    if status in REQUEST_ERRORS:
        return ProviderRefused(
            f"{how}: the request was refused ({said}); if it does not know a field such as `reasoning` or "
            '`chat_template_kwargs`, set thinking = "model" for the decision type in reasoning.toml'
        )
    if status:
        return ProviderUnavailable(f"{how}: {said}; try again when the server is well")
    if "not a chat" in said or "stream ended" in said:
        return UnexpectedAnswer(
            f"{how}: its answer is not OpenAI-shaped ({said}); give the URL that has /v1/chat/completions"
        )
    if error.reason == "timeout":
        return ProviderUnavailable(f"{how}: {said}; try again when it is less busy, or give the type fewer max_tokens")
    return ProviderUnavailable(f"{how}: cannot be reached ({said}); check host and port, and that it runs")


def golden_context() -> dict[str, Any]:
    """The context of the one question: every answer form can render it."""
    action = {"name": "REPLY", "description": "Answer the last message."}
    tool = {"name": "read_file", "description": "Read a file.", "parameters": {"type": "object", "properties": {}}}
    return {
        "agent_name": "Ada",
        "messages": [{"speaker": "Bob", "text": "Good morning, Ada. Are you there?"}],
        "actions": [action],
        "tools": [tool],
        "prompt": "Write a function that adds two numbers.",
    }
