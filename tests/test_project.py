"""The project's own files: what its tools are told agrees with what is there."""

from __future__ import annotations

import tomllib

from tests.packages import PACKAGES, ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_mypy_checks_every_helper_of_the_tests() -> None:
    helpers = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "tests").rglob("*.py")
        if not path.name.startswith(("test_", "__init__"))
    }
    assert set(PYPROJECT["tool"]["mypy"]["modules"]) == helpers, "update [tool.mypy] modules in pyproject.toml"


def test_mypy_checks_every_package() -> None:
    assert set(PYPROJECT["tool"]["mypy"]["packages"]) == set(PACKAGES), "update [tool.mypy] packages in pyproject.toml"
