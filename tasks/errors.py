"""Errors of the flows and what they are made of.

::

    ReasoningError
    └── FlowError
        ├── UnknownFlow      prefect.yaml has no deployment of that name
        ├── FlowBusy         another run of the flow is at work (names it)
        └── MissingStep      a step was asked for before what it needs is there (says what, and how to get it)
"""

from __future__ import annotations

from reasoning.errors import ReasoningError


class FlowError(ReasoningError):
    """Base of the errors of flows."""


class UnknownFlow(FlowError):
    """`prefect.yaml` has no deployment of that name."""


class FlowBusy(FlowError):
    """Another run of the flow is at work on the same data folder."""


class MissingStep(FlowError):
    """A step was asked for before what it needs is there."""
