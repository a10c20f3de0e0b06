"""Flow parameters made from the settings of `pipeline.parameters`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator

from pipeline import parameters
from pipeline.parameters import Parameter, collect_settings, expand_settings
from quality.settings import Moment

Result = TypeVar("Result")

_OWN_HELP = {
    "data": parameters.DATA_HELP,
    "now": parameters.NOW_HELP,
    "if_busy": parameters.IF_BUSY_HELP,
    "decision_type": parameters.DECISION_TYPE_HELP,
    "model": parameters.MODEL_HELP,
    "dataset": parameters.DATASET_HELP,
}


def with_settings(function: Callable[..., Coroutine[Any, Any, Result]]) -> Callable[..., Coroutine[Any, Any, Result]]:
    """`function` with the fields of its `settings` as parameters, for `@flow`.

    Prefect's form takes its descriptions from the docstring: the section of arguments is added to it.
    """
    signature, fields = expand_settings(function, _annotate)
    described = _OWN_HELP | {field.name: field.help for field in fields}

    @functools.wraps(function)
    async def run(*args: Any, **values: Any) -> Result:
        return await function(*args, **collect_settings(function, values))

    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in signature.parameters.values()}
    lines = [f"    {name}: {described[name]}" for name in signature.parameters]
    run.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Args:", *lines])
    return run


def _annotate(parameter: Parameter) -> Any:
    if parameter.type == Moment | None:
        read = functools.partial(_read_moment, end=parameter.name == "until")
        return Annotated[parameter.annotation, BeforeValidator(read)]
    return parameter.annotation


def _read_moment(value: Any, *, end: bool) -> Any:
    """Of text and times without a zone: as on the command line."""
    if isinstance(value, str):
        return parameters.parse_moment(value, end=end)
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value
