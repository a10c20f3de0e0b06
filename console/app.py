"""From a request to a page: one function a page, by the first part of the path."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from console.errors import NoSuchPage, PageError
from console.request import Request, Response, Visitor, render
from reasoning.error_text import describe_error
from reasoning.errors import ReasoningError

log = logging.getLogger("console")

PAGES = ("now", "decisions", "label", "data", "cycles", "models", "experiments", "money", "act")
"""Each is a module of `console` with `page(request, *parts)`."""


def respond(data: Path, question: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request of the gateway: `status`, `html` and `headers`. Never raises for what a request does."""
    request = Request(
        data=data,
        method=question["method"],
        path=question["path"],
        query=question["query"],
        form=question["form"],
        visitor=Visitor(**question["key"]),
        live=question["live"],
    )
    try:
        answer = _page(request)
    except PageError as error:
        answer = render("error.html", status=error.status, title="Not done", message=str(error))
    except (ReasoningError, OSError) as error:
        answer = render("error.html", status=400, title="Not done", message=str(error))
    except Exception as error:
        log.exception("a page failed")
        answer = render("error.html", status=500, title="The page failed", message=describe_error(error))
    return {"status": answer.status, "html": answer.html, "headers": dict(answer.headers)}


def _page(request: Request) -> Response:
    name, *parts = request.path.split("/")
    if name not in PAGES or len(parts) > 3:
        raise NoSuchPage(f"there is no page {request.path!r:.80}; the menu has all")
    page: Callable[..., Response] = import_module(f"console.{name}").page
    try:
        inspect.signature(page).bind(request, *parts)
    except TypeError:
        raise NoSuchPage(f"there is no page {request.path!r:.80}; the menu has all") from None
    return page(request, *parts)
