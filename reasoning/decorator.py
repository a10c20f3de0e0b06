"""`@decision`: an agent's own function becomes the original of a decision type.

::

    @decision("should_respond")
    def should_respond(context):            # or async def
        return "RESPOND" if context["agent_name"] in context["messages"][-1]["text"] else "IGNORE"

    should_respond(context)                 # {"action": "RESPOND"}, of a model or of the function
    should_respond.answer(context)          # the `Answer`, whose decision_id is for feedback
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reasoning.client import DecisionClient
from reasoning.core import Answer
from reasoning.decision_types import Context, get_decision_type
from reasoning.errors import ConfigError
from reasoning.redact import describe_error

if TYPE_CHECKING:
    from reasoning.async_client import AsyncDecisionClient

_log = logging.getLogger("reasoning")


def decision(
    decision_type: str,
    *,
    client: DecisionClient | AsyncDecisionClient | None = None,
    context: Callable[..., Context] | None = None,
    returns: Callable[[Any], Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function, sync or async, that takes the context and gives a decision.

    A function with a signature of its own is given `context`, which makes the context of the same arguments. The
    decorated function gives the decision object; `returns` turns a *model's* decision into what the function itself
    gives, and then the function's own result passes as it is. Ids go in the context (see `DecisionClient`).

    Without `client` all decorated functions of a process share one, made from the environment and `reasoning.toml`.
    The attributes `answer` (same arguments, gives the `Answer`), `client` and `__wrapped__` are there.
    Raises `UnknownDecisionType` and `ConfigError` when it decorates, never later.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        is_async = inspect.iscoroutinefunction(function)
        used = client or (_default_async_client() if is_async else _default_client())
        if isinstance(used, DecisionClient) is is_async:
            raise ConfigError(
                f"@decision on {function.__qualname__}: an async function needs an AsyncDecisionClient, "
                f"another one a DecisionClient; client is a {type(used).__name__}"
            )
        get_decision_type(decision_type, used.config)
        return (_decorate_async if is_async else _decorate_sync)(function, decision_type, used, context, returns)

    return decorate


def _decorate_sync(
    function: Callable[..., Any], decision_type: str, client: Any, context: Any, returns: Any
) -> Callable[..., Any]:
    def answer(*args: Any, **kwargs: Any) -> Answer:
        asked = _context(function, context, args, kwargs)
        found: Answer = client.decide(decision_type, asked, lambda _: function(*args, **kwargs))
        return found

    @functools.wraps(function)
    def decide(*args: Any, **kwargs: Any) -> Any:
        own: list[Any] = []

        def original(_: Context) -> Any:
            own.append(function(*args, **kwargs))
            return own[0]

        found = client.decide(decision_type, _context(function, context, args, kwargs), original)
        return _result(found, own, returns)

    decide.answer, decide.client = answer, client  # type: ignore[attr-defined]
    return decide


def _decorate_async(
    function: Callable[..., Any], decision_type: str, client: Any, context: Any, returns: Any
) -> Callable[..., Any]:
    async def answer(*args: Any, **kwargs: Any) -> Answer:
        asked = _context(function, context, args, kwargs)
        found: Answer = await client.decide(decision_type, asked, lambda _: function(*args, **kwargs))
        return found

    @functools.wraps(function)
    async def decide(*args: Any, **kwargs: Any) -> Any:
        own: list[Any] = []

        async def original(_: Context) -> Any:
            own.append(await function(*args, **kwargs))
            return own[0]

        found = await client.decide(decision_type, _context(function, context, args, kwargs), original)
        return _result(found, own, returns)

    decide.answer, decide.client = answer, client  # type: ignore[attr-defined]
    return decide


def _context(function: Callable[..., Any], context: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The context of a call. One that cannot be made is none: the client refuses it, and the function answers."""
    if context is None:
        return args[0] if args else next(iter(kwargs.values()), None)
    try:
        return context(*args, **kwargs)
    except Exception as error:
        _log.warning("the context mapper of %s failed: %s", function.__qualname__, describe_error(error))
        return None


def _result(answer: Answer, own: list[Any], returns: Callable[[Any], Any] | None) -> Any:
    if returns is None:
        return answer.decision
    return own[0] if answer.source == "original" else returns(answer.decision)


@functools.cache
def _default_client() -> DecisionClient:
    return DecisionClient()


@functools.cache
def _default_async_client() -> AsyncDecisionClient:
    from reasoning.async_client import AsyncDecisionClient

    return AsyncDecisionClient()
