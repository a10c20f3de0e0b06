"""Which tests start processes: found from their code, so that `make test-fast` can leave them out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

import pytest

from tests.packages import PACKAGES

STARTERS = {
    "subprocess",
    "Popen",
    "fork",
    "forkpty",
    "create_subprocess_exec",
    "multiprocessing",
    "ProcessPoolExecutor",
}
"""A function that uses one of these names starts a process."""

OURS = {"tests", *PACKAGES}

AUDITED = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec")

_known: dict[int, bool] = {}


def starts_processes(item: pytest.Item) -> bool:
    """Whether the test, one of its fixtures, or a function of ours that they call starts a process."""
    if not isinstance(item, pytest.Function):
        return False
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    return any(_reaches(each) for each in (item.function, *(one.func for found in fixtures for one in found)))


def _reaches(value: Any) -> bool:
    """Follow what a function or class refers to. What only a method of an object leads to is not seen."""
    if id(value) in _known:
        return _known[id(value)]
    _known[id(value)] = False  # a circle reaches nothing by itself
    if isinstance(value, type):
        found = any(_reaches(each) for each in vars(value).values())
    else:
        function = getattr(value, "__wrapped__", value)
        found = isinstance(function, FunctionType) and _function_reaches(function)
    _known[id(value)] = found
    return found


def _function_reaches(function: FunctionType) -> bool:
    for name in _names(function.__code__):
        if name in STARTERS:
            return True
        value = function.__globals__.get(name)
        if str(getattr(value, "__module__", "")).partition(".")[0] in OURS and _reaches(value):
            return True
    return False


def _names(code: CodeType) -> Iterator[str]:
    """The names that a function refers to, those of the functions within it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def forbid_processes() -> Callable[[bool], None]:
    """Make every start of a process in this one an error while it is switched on; returns the switch."""
    active = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event in AUDITED:
            raise RuntimeError(f"a test starts a process: {event} {arguments[:1]}; mark it `processes`")

    def switch(on: bool) -> None:
        nonlocal active
        active = on

    sys.addaudithook(hook)
    return switch
