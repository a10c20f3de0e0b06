"""Errors of the demo.

ReasoningError
└── DemoError
    └── DataPackageError: a package with the demo's real data is missing or does not parse
"""

from reasoning.errors import ReasoningError


class DemoError(ReasoningError):
    """Base of the demo's errors."""


class DataPackageError(DemoError):
    """A package with real data is missing, or one of its files does not parse; says which, where, and the remedy."""
