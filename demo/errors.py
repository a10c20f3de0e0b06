"""What can go wrong in the demo.

ReasoningError
└── DemoError
    └── DataPackageError: a package with the demo's real data is missing or does not parse
"""

from reasoning.errors import ReasoningError


class DemoError(ReasoningError):
    """The base of this room's errors."""


class DataPackageError(DemoError):
    """A package with real data is missing, or one of its files does not parse: which, where, and the mend."""
