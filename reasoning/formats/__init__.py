"""Answer forms: each is one object that renders, parses, normalizes, formats and compares answers (`AnswerForm`).

Each module of this package that has a `FORM` adds it to `FORMS`: a new form is a module here and a module of its
metrics in `quality.form_metrics`. `answer` of a decision type names its form.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from reasoning.errors import ConfigError
from reasoning.formats.port import AnswerForm


def get_form(name: str) -> AnswerForm:
    """The form called `name`. Raises `ConfigError`."""
    try:
        return FORMS[name]
    except KeyError:
        raise ConfigError(f"answer: {name!r} is not an answer form; known: {', '.join(sorted(FORMS))}") from None


def find_forms() -> Iterator[AnswerForm]:
    """The forms of the modules in this package."""
    for module in pkgutil.iter_modules(__path__):
        form = getattr(importlib.import_module(f"{__name__}.{module.name}"), "FORM", None)
        if form is not None:
            yield form


FORMS: dict[str, AnswerForm] = {form.name: form for form in find_forms()}
"""The answer forms by name."""
