"""Errors of the flows and what they are made of.

::

    ReasoningError
    └── FlowError
        ├── UnknownFlow      prefect.yaml has no deployment of that name
        ├── FlowBusy         another run of the flow is at work (names it)
        ├── AmbiguousModel   a decision type, or the beginning of an id, is that of several (lists them)
        ├── NameTaken        another model is, or was, registered by this name
        ├── ModelMoved       a model's state is not what a step was decided by: another was faster (says what it is)
        ├── LabelRefused     a person's label cannot be recorded (says why, and how to write it)
        ├── NotWorthIt       what is certain to be refused later, or cannot be paid (says why, and what would mend it)
        ├── ImportRefused    a file of another system cannot be read as what it was said to be
        ├── SetupError       `reasoning init` was given what makes no valid settings, or cannot write them
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


class AmbiguousModel(FlowError):
    """A decision type, or the beginning of an id, stands for several: one has to be named by its id."""


class NameTaken(FlowError):
    """Another model is registered by this name, or was."""


class ModelMoved(FlowError):
    """A model is not in the state any more that a step was decided by."""


class NotWorthIt(FlowError):
    """Money is about to be spent on what is certain to be refused later, or on what the budgets do not carry."""


class MissingStep(FlowError):
    """A step was asked for before what it needs is there."""


class LabelRefused(FlowError):
    """A person's label cannot be recorded: it is no answer of the type, or the disk does not take it."""


class SetupError(FlowError):
    """Answers of `reasoning init` that make no valid settings, or files that cannot be read or written."""


class ImportRefused(FlowError):
    """A file of another system cannot be read as what it was said to be. Nothing was imported."""
