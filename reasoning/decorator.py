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
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, cast, overload

from reasoning.client import DecisionClient
from reasoning.core import Answer
from reasoning.decision_types import Context, get_decision_type
from reasoning.error_text import describe_error
from reasoning.errors import ConfigError
from reasoning.fallback import Fallback

if TYPE_CHECKING:
    from reasoning.async_client import AsyncDecisionClient

_log = logging.getLogger("reasoning")
P = ParamSpec("P")


class Decided(Protocol[P]):
    """What a decorated function is, for type checkers. All of an async one is awaited.

    A method that is looked up on its object is bound; its other attributes are the function's, `Class.method.answer`.
    """

    client: Any
    __name__: str
    __wrapped__: Callable[..., Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any: ...

    def answer(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """The `Answer`."""

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., Any]: ...


def decision(
    decision_type: str,
    *,
    client: DecisionClient | AsyncDecisionClient | None = None,
    context: Callable[..., Context] | None = None,
    returns: Callable[[Any], Any] | None = None,
    decides: Callable[[Any], Any] | None = None,
) -> Callable[[Callable[P, Any]], Decided[P]]:
    """Decorate a function or a method, sync or async, that takes the context and gives a decision.

    The context is the parameter of that name, else the first one besides `self` or `cls`. A function with a signature
    of its own is given `context`, which makes the context of the same arguments. The decorated function gives the
    decision object; `returns` turns a *model's* decision into what the function itself gives, and then the function's
    own result passes as it is. If that is no decision (a boolean, say), `decides` turns it into the one to record,
    which models learn from. A function that returns a `Fallback` has its `decision` passed on in its place. Ids go in
    the context (see `DecisionClient`).

    Without `client` all decorated functions of a process share one, made from the environment and `reasoning.toml`.
    The attributes `answer` (same arguments, a method's `self` included; gives the `Answer`), `client` and
    `__wrapped__` are there. Raises `UnknownDecisionType` and `ConfigError` when it decorates, never later.
    """

    if not isinstance(decision_type, str):
        raise ConfigError('@decision needs its decision type: write @decision("should_respond")')

    def decorate(function: Callable[P, Any]) -> Decided[P]:
        if isinstance(function, classmethod | staticmethod):
            kind = type(function).__name__
            raise ConfigError(f"@decision on {function.__qualname__}: write it below @{kind}, next to the function")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError(
                f"@decision on {function.__qualname__}: a generator gives no decision; "
                "for text in pieces call client.decide_coding(context, function, stream=True)"
            )
        if decides is not None and returns is None:
            raise ConfigError(
                f"@decision on {function.__qualname__}: decides needs returns, "
                "which turns a model's decision into what the function gives"
            )
        used = client_for(function, client, "@decision")
        get_decision_type(decision_type, used.config)
        read_context = _context_mapper(function, context) if context else _context_parameter(function)
        record = _decision_mapper(function, decides) if decides else _as_it_is
        is_async = inspect.iscoroutinefunction(function)
        decorated: Any = (_decorate_async if is_async else _decorate_sync)(
            function, decision_type, used, read_context, record, returns
        )
        return cast("Decided[P]", decorated)

    return decorate


def _decorate_sync(
    function: Callable[..., Any],
    decision_type: str,
    client: Any,
    context: Callable[..., Any],
    record: Callable[[Any], Any],
    returns: Callable[[Any], Any] | None,
) -> Callable[..., Any]:
    def answer(*args: Any, **kwargs: Any) -> Answer:
        found: Answer = client.decide(
            decision_type, context(*args, **kwargs), lambda _: record(function(*args, **kwargs))
        )
        return found

    @functools.wraps(function)
    def decide(*args: Any, **kwargs: Any) -> Any:
        own: list[Any] = []

        def original(_: Context) -> Any:
            own.append(function(*args, **kwargs))
            return record(own[0])

        return _result(client.decide(decision_type, context(*args, **kwargs), original), own, returns)

    decide.answer, decide.client = answer, client  # type: ignore[attr-defined]
    return decide


def _decorate_async(
    function: Callable[..., Any],
    decision_type: str,
    client: Any,
    context: Callable[..., Any],
    record: Callable[[Any], Any],
    returns: Callable[[Any], Any] | None,
) -> Callable[..., Any]:
    async def answer(*args: Any, **kwargs: Any) -> Answer:
        async def original(_: Context) -> Any:
            return record(await function(*args, **kwargs))

        found: Answer = await client.decide(decision_type, context(*args, **kwargs), original)
        return found

    @functools.wraps(function)
    async def decide(*args: Any, **kwargs: Any) -> Any:
        own: list[Any] = []

        async def original(_: Context) -> Any:
            own.append(await function(*args, **kwargs))
            return record(own[0])

        return _result(await client.decide(decision_type, context(*args, **kwargs), original), own, returns)

    decide.answer, decide.client = answer, client  # type: ignore[attr-defined]
    return decide


def _context_parameter(function: Callable[..., Any]) -> Callable[..., Any]:
    """What takes the context out of the arguments of a call."""
    parameters = list(inspect.signature(function).parameters)
    name = "context" if "context" in parameters else next((p for p in parameters if p not in ("self", "cls")), None)
    place = parameters.index(name) if name else 0

    def context(*args: Any, **kwargs: Any) -> Any:
        return args[place] if len(args) > place else kwargs.get(name or "")

    return context


def _context_mapper(function: Callable[..., Any], mapper: Callable[..., Context]) -> Callable[..., Any]:
    """The user's mapper. A context that it cannot make is none: the client refuses it, and the function answers."""

    def context(*args: Any, **kwargs: Any) -> Any:
        try:
            return mapper(*args, **kwargs)
        except Exception as error:
            _log.warning("the context mapper of %s failed: %s", function.__qualname__, describe_error(error))
            return None

    return context


def _decision_mapper(function: Callable[..., Any], mapper: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The user's mapper. A result that it cannot map is recorded as what it is, no decision."""

    def record(result: Any) -> Any:
        try:
            if isinstance(result, Fallback):
                return replace(result, decision=mapper(result.decision))
            return mapper(result)
        except Exception as error:
            _log.warning("the decision mapper of %s failed: %s", function.__qualname__, describe_error(error))
            return result

    return record


def _as_it_is(result: Any) -> Any:
    return result


def _result(answer: Answer, own: list[Any], returns: Callable[[Any], Any] | None) -> Any:
    if returns is None:
        return answer.decision
    if answer.source == "original":
        return own[0].decision if isinstance(own[0], Fallback) else own[0]
    return returns(answer.decision)


def client_for(function: Callable[..., Any], client: Any, decorator: str) -> Any:
    """`client`, or the default one, for a sync or async function. Raises `ConfigError` where the two do not fit."""
    is_async = inspect.iscoroutinefunction(function)
    used = client or (default_async_client() if is_async else default_client())
    if isinstance(used, DecisionClient) is is_async:
        raise ConfigError(
            f"{decorator} on {function.__qualname__}: an async function needs an AsyncDecisionClient, another one "
            f"a DecisionClient; client is a {type(used).__name__}"
        )
    return used


@functools.cache
def default_client() -> DecisionClient:
    """The client that decorated functions of a process share."""
    return DecisionClient()


@functools.cache
def default_async_client() -> AsyncDecisionClient:
    """The client that decorated async functions of a process share."""
    from reasoning.async_client import AsyncDecisionClient

    return AsyncDecisionClient()
