"""`@typed_decision`: a function whose return annotation is the questions, and which is the fallback itself.

::

    class Team(Enum):
        PIPES = "pipes"
        POWER = "power"

    @typed_decision
    def crew(state) -> Team:
        "Who repairs it?"
        return Team.PIPES if "leak" in state["note"] else Team.POWER

    @dataclass
    class Triage:
        urgent: Annotated[bool, "Does the line have to stop?"]
        team: Annotated[Team, choice({"pipes": "faults of fluids", "power": None}, "Who repairs it?")]

    @typed_decision
    async def triage(state) -> Triage: ...

    crew({"note": "Valve 7 leaks"})          # Team.PIPES, of a model or of the function
    crew.answer({"note": "Valve 7 leaks"})   # the `Answer`, with its decision_id and its probabilities
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from reasoning.core import Answer
from reasoning.decorator import client_for
from reasoning.errors import ConfigError
from reasoning.fallback import Fallback
from reasoning.questions import TypedQuestion, boolean, choice

_ONE = "answer"
"""The name of the question of a function that answers one."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Shape:
    """What a return annotation asks, and how answers become its values.

    `kind` is the dataclass; None for a function that answers one question. `values` has per question the Python value
    of each option.
    """

    questions: Mapping[str, TypedQuestion]
    values: Mapping[str, Mapping[str, Any]]
    kind: Callable[..., Any] | None = None

    def read(self, decision: Mapping[str, Any]) -> Any:
        """The value that the function would have returned."""
        found = {name: self.values[name][_key(value)] for name, value in decision.items()}
        return found[_ONE] if self.kind is None else self.kind(**found)

    def write(self, result: Any) -> Any:
        """What a function returned, as answers by question."""
        if isinstance(result, Fallback):
            return dataclasses.replace(result, decision=self.write(result.decision))
        if self.kind is None:
            return {_ONE: result}
        return {name: getattr(result, name, None) for name in self.questions}


def typed_decision(
    function: Callable[..., Any] | None = None, *, client: Any = None, name: str | None = None
) -> Callable[..., Any]:
    """Decorate a function of one state, sync or async, that returns an `Enum`, a `Literal`, a boolean or a dataclass of
    these.

    The question is the docstring's first paragraph, or the text in `Annotated[..., "text"]`; a `choice`, `boolean` or
    `score` there describes the options as well. `name` is the first part of the decision type's name, by default the
    function's. The attributes `answer` and `client` are there, as those of `reasoning.decision`. Raises `ConfigError`
    and `InvalidQuestions` when it decorates, never later.
    """
    if function is None:
        return functools.partial(typed_decision, client=client, name=name)
    hints = get_type_hints(function, include_extras=True)
    if "return" not in hints:
        raise ConfigError(f"@typed_decision on {function.__qualname__}: annotate what it returns, such as `-> bool`")
    text = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
    shape = _shape(function.__qualname__, hints["return"], text)
    used = client_for(function, client, "@typed_decision")
    is_async = inspect.iscoroutinefunction(function)
    called = (name or function.__name__).strip("_")
    used._core.question_type(shape.questions, called)  # what is wrong with the questions is told here
    return (_decorate_async if is_async else _decorate_sync)(function, used, shape, called)


def _decorate_sync(function: Callable[..., Any], client: Any, shape: _Shape, name: str) -> Callable[..., Any]:
    def answer(state: Any, own: list[Any] | None = None) -> Answer:
        def fallback(given: Any) -> Any:
            result = function(given)
            if own is not None:
                own.append(result)
            return shape.write(result)

        found: Answer = client.ask(state, shape.questions, fallback, name=name)
        return found

    @functools.wraps(function)
    def decide(state: Any) -> Any:
        own: list[Any] = []
        return _result(answer(state, own), own, shape)

    decide.answer, decide.client = answer, client  # type: ignore[attr-defined]
    return decide


def _decorate_async(function: Callable[..., Any], client: Any, shape: _Shape, name: str) -> Callable[..., Any]:
    async def answer(state: Any, own: list[Any] | None = None) -> Answer:
        async def fallback(given: Any) -> Any:
            result = await function(given)
            if own is not None:
                own.append(result)
            return shape.write(result)

        found: Answer = await client.ask(state, shape.questions, fallback, name=name)
        return found

    @functools.wraps(function)
    async def decide(state: Any) -> Any:
        own: list[Any] = []
        return _result(await answer(state, own), own, shape)

    decide.answer, decide.client = answer, client  # type: ignore[attr-defined]
    return decide


def _result(answer: Answer, own: list[Any], shape: _Shape) -> Any:
    if answer.source == "original":
        return own[0].decision if isinstance(own[0], Fallback) else own[0]
    return shape.read(answer.decision)


def _shape(place: str, annotation: Any, text: str) -> _Shape:
    bare = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if not (dataclasses.is_dataclass(bare) and isinstance(bare, type)):
        question, values = _question(place, annotation, text)
        return _Shape({_ONE: question}, {_ONE: values})
    hints = get_type_hints(bare, include_extras=True)
    asked = {each.name: _question(f"{place}: {each.name}", hints[each.name], "") for each in dataclasses.fields(bare)}
    return _Shape(
        {name: question for name, (question, _) in asked.items()},
        {name: values for name, (_, values) in asked.items()},
        bare,
    )


def _question(place: str, annotation: Any, text: str) -> tuple[TypedQuestion, dict[str, Any]]:
    """The question that an annotation asks, and the Python value of each of its options."""
    given: TypedQuestion | None = None
    if get_origin(annotation) is Annotated:
        annotation, *about = get_args(annotation)
        text = next((each for each in about if isinstance(each, str)), text)
        given = next((each for each in about if isinstance(each, TypedQuestion)), None)
    if annotation is bool:
        values: dict[str, Any] = {"true": True, "false": False}
        question = boolean(text)
    elif isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        values = {_key(member): member for member in annotation}
        question = choice(list(values), text)
    elif get_origin(annotation) is Literal:
        values = {_key(value): value for value in get_args(annotation)}
        question = choice(list(values), text)
    elif annotation is int and given is not None and given.kind == "score":
        values = {key: int(key) for key in given.keys}
        question = given
    else:
        shown = (
            annotation if isinstance(annotation, types.GenericAlias) else getattr(annotation, "__name__", annotation)
        )
        raise ConfigError(
            f"@typed_decision on {place}: {shown} is not bool, an Enum or a Literal, nor a dataclass of these"
        )
    if given is not None and set(given.keys) != values.keys():
        raise ConfigError(f"@typed_decision on {place}: its annotation and its question have different options")
    return given or question, values


def _key(value: Any) -> str:
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
