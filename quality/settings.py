"""Settings of the verbs of this package. Light to import: the command line is made from them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

DEFAULT_MARGIN = 0.02

Moment = date | datetime
"""A whole day (UTC), or a time."""

Design = Literal["shadow", "ab"]
"""`shadow`: both sides answered the same questions. `ab`: an arm was drawn for each question."""


class LabelSource(StrEnum):
    """Where a label may come from: a person or a better model, confirming feedback, or the fallback's answer."""

    DEMONSTRATION = "demonstration"
    OUTCOME = "outcome"
    ORIGINAL = "original"


class Source(StrEnum):
    """Who gave the answer that was served."""

    ORIGINAL = "original"
    CUSTOM = "custom"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """Which rows of the decision log become a dataset, and how they are split."""

    since: Annotated[Moment | None, Doc("First day (UTC), or time, to learn from. Empty: all there is.")] = None
    until: Annotated[Moment | None, Doc("Last day (UTC), or time, inclusive. Empty: now.")] = None
    limit: Annotated[int, Ge(1), Doc("Most rows; of more, the latest are kept.")] = 10_000
    seed: Annotated[int, Doc("Random seed for subsampling.")] = 0
    validation_share: Annotated[
        float, Gt(0), Lt(1), Doc("Share of the rows before the holdout that training is validated on.")
    ] = 0.1
    holdout_share: Annotated[
        float, Gt(0), Lt(1), Doc("Share of the latest rows that is kept from training, for the evaluation.")
    ] = 0.2
    retention_days: Annotated[
        int | None, Ge(1), Doc("Ignore rows older than this many days. Empty: use all rows of the log.")
    ] = None
    label_sources: Annotated[
        list[LabelSource] | None,
        Doc("Where labels may come from. Empty: demonstrations and outcomes where there are 200 of them, else all."),
    ] = None
    agent: Annotated[list[str] | None, Doc("Only decisions of these agents, by agent_id. Empty: of all.")] = None
    answered_by: Annotated[
        list[str] | None,
        Doc("Only questions that one of these models answered: a custom model, or one of the fallback. Empty: all."),
    ] = None
    source: Annotated[
        Source | None, Doc("Only questions whose served answer came from the fallback (original) or a model (custom).")
    ] = None
    feedback: Annotated[
        list[str] | None,
        Doc("Only questions whose feedback, or their episode's, meets all these rules, such as 'helpful >= 0.5'."),
    ] = None
    min_confidence: Annotated[
        float | None, Ge(0), Le(1), Doc("Only questions that were answered with this measured confidence or more.")
    ] = None
    max_confidence: Annotated[
        float | None, Ge(0), Le(1), Doc("Only questions that were answered with this measured confidence or less.")
    ] = None
    tag: Annotated[
        list[str] | None, Doc("Only decisions with all these tags, each NAME or NAME=VALUE. Empty: all.")
    ] = None
    max_per: Annotated[
        list[str] | None,
        Doc("Most training rows of each answer, agent, room, episode or model, such as agent=500. Empty: no cap."),
    ] = None
    max_class_share: Annotated[
        float | None,
        Gt(0),
        Lt(1),
        Doc("Thin out the most frequent answer of the training rows to this share. Empty: leave it."),
    ] = None
    max_characters: Annotated[
        int | None, Ge(1), Doc("Drop rows with more characters than this. Empty: the limit of the answer form.")
    ] = None
    region: Annotated[
        str | None, Doc("Region (such as US) for recognising phone numbers. Empty: that of reasoning.toml.")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentSettings:
    """Which logged answers are compared, and how."""

    since: Annotated[Moment | None, Doc("First day (UTC), or time, to compare. Empty: all there is.")] = None
    until: Annotated[Moment | None, Doc("Last day (UTC), or time, inclusive. Empty: now.")] = None
    design: Annotated[
        Design | None, Doc("`shadow` or `ab`. Empty: `shadow` if any question was answered by both sides.")
    ] = None
