"""A request for a page, and rendering the answer. Every text is escaped by the templates; nothing is marked safe."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import jinja2
import orjson

from console.errors import NotAllowed
from pipeline.reports import text, to_jsonable

MAX_TEXT = 20_000
"""Of one text of the log at most so many characters are shown."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whose key asks. The operator may do all; another key reads, and labels where it has `label`."""

    name: str
    operator: bool
    label: bool

    def require_operator(self) -> None:
        """Raises `NotAllowed`."""
        if not self.operator:
            raise NotAllowed(f"the key {self.name} may look and label; this takes the operator's key")

    @property
    def may_label(self) -> bool:
        """Whether it may give labels and feedback."""
        return self.operator or self.label

    def require_label(self) -> None:
        """Raises `NotAllowed`."""
        if not self.may_label:
            raise NotAllowed(f"[gateway.keys.{self.name}] needs `label = true` for this")


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `path` is below `/pages/`, without a slash at its start. `live` is what the gateway counts."""

    data: Path
    method: str
    path: str
    query: Mapping[str, str]
    form: Mapping[str, str]
    visitor: Visitor
    live: Mapping[str, Any] = field(default_factory=dict)
    now: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class Response:
    """HTML for the part of the page that asked. `headers` are those of htmx."""

    html: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def render(template: str, /, *, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any) -> Response:
    """A template of `console/templates` with these values."""
    return Response(_environment().get_template(template).render(**values), status, headers or {})


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"text": text, "usd": usd, "json": json_text, "short": shorten, "percent": percent}
    return environment


def usd(value: Any) -> str:
    """Money for people: cents, or more digits where it is less."""
    if value is None:
        return "not known"
    amount = Decimal(str(value))
    digits = 2 if amount == 0 or abs(amount) >= Decimal("0.01") else 6
    return f"${amount:,.{digits}f}" if amount >= 0 else f"-${-amount:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share in percent."""
    return "" if value is None else f"{value:.1%}"


def json_text(value: Any) -> str:
    """A value as indented JSON, cut at `MAX_TEXT`."""
    return shorten(orjson.dumps(to_jsonable(value), option=orjson.OPT_INDENT_2).decode(), MAX_TEXT)


def shorten(value: Any, length: int = 80) -> str:
    """A text, cut."""
    shown = str(value)
    return shown if len(shown) <= length else shown[: length - 1] + "…"
