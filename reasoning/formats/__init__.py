"""Answer forms: each is one object that renders, parses, normalizes, formats and compares answers (`AnswerForm`).

A module of this package that has a `FORM` is a form, of the module's name: a new one is a module here and a module of
its metrics in `quality.evaluation.form_metrics`. `answer` of a decision type names its form.
"""

from __future__ import annotations

import importlib
import pkgutil

from reasoning.errors import ConfigError
from reasoning.formats.port import AnswerForm

LOADED: dict[str, AnswerForm] = {}
"""The forms that were used, by name: an agent pays for the import of no other."""


def get_form(name: str) -> AnswerForm:
    """The form called `name`. Raises `ConfigError`."""
    try:
        return LOADED[name]
    except KeyError:
        return _load(name)


def all_forms() -> dict[str, AnswerForm]:
    """The answer forms by name."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    forms: list[AnswerForm] = [module.FORM for module in modules if hasattr(module, "FORM")]
    return {form.name: form for form in forms}


def _load(name: str) -> AnswerForm:
    try:
        form: AnswerForm | None = importlib.import_module(f"{__name__}.{name}").FORM
    except (ImportError, AttributeError):
        form = None
    if form is None or form.name != name:
        raise ConfigError(f"answer: {name!r} is not an answer form; known: {', '.join(sorted(all_forms()))}")
    return LOADED.setdefault(name, form)
