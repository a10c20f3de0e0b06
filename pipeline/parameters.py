"""The parameters of every verb, defined once: type, bounds, default and help.

The command line (`cli.options.with_settings`) and the flows (`tasks.parameters.with_settings`) are both made from these
dataclasses: a function that takes `settings` becomes one that takes the fields. To add a parameter, add a field: its
option, its flow parameter and its help follow. A field's type is `Annotated` with bounds (`annotated_types`) and its
help (`Doc`). None reads "empty": the help says what that means.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from calendar import monthrange
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal, get_args, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from quality.settings import DEFAULT_MARGIN, ExportSettings, Moment

# Parameters that are no setting of a verb: where it works, when, and what it does when another run is busy.
DATA_HELP = "The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml."
NOW_HELP = "Treat this as the current time (for replays). Empty: now."
IF_BUSY_HELP = "When another run of this flow is active: wait for it, or end at once (skip)."
DECISION_TYPE_HELP = "Decision type, such as should_respond, planning or coding."
MODEL_HELP = "The model's id, or a decision type for the model that is meant (an error lists them if several)."
DATASET_HELP = "The dataset's id, or its folder."

Weight = Annotated[
    float, Gt(0), Le(1), Doc("The model's share of the decisions in the end; the fallback answers the rest.")
]
DEFAULT_CANARY = 0.1
CanaryWeight = Annotated[
    float, Gt(0), Lt(1), Doc("The model's share of the decisions as a canary, and while it is degraded.")
]
ShadowOriginal = Annotated[
    bool,
    Doc("Let the fallback answer in the background what the model serves, for comparison. Not where it costs money."),
]
Confidence = Annotated[float, Ge(0), Le(1)] | Literal["auto"]
MaxUsdPer1000 = Annotated[
    float | None,
    Ge(0),
    Doc(
        "Most US dollars per 1,000 decisions, all costs included, that a better model may cost. "
        "Empty: [worth.TYPE] of reasoning.toml, else what it replaces costs."
    ),
]
AnyPrice = Annotated[bool, Doc("Let quality alone decide: promote a better model whatever it costs.")]
Anyway = Annotated[bool, Doc("Train even a model that is certain to be refused afterwards.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """What part of the decision log is checked."""

    days: Annotated[int, Ge(1), Doc("How many days back to check.")] = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactSettings:
    """Which days of the decision log are compacted."""

    min_files: Annotated[int, Ge(2), Doc("Days with fewer small files are left as they are.")] = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireSettings:
    """What is deleted for its age."""

    retention_days: Annotated[
        int | None,
        Ge(1),
        Doc("How many days back everything is kept. Empty: `[retention]` of reasoning.toml, else nothing is deleted."),
    ] = None
    dry_run: Annotated[bool, Doc("Only count what would be deleted.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneSettings:
    """How a model is trained."""

    tier: Annotated[
        str | None, Doc("small, medium, large or the name of a base model. Empty: the decision type's tier.")
    ] = None
    n_epochs: Annotated[int, Ge(1), Le(20), Doc("Number of training epochs.")] = 3
    again: Annotated[bool, Doc("Train again even if the same was trained before.")] = False
    anyway: Anyway = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploySettings:
    """How a model is deployed."""

    replicas: Annotated[int, Ge(1), Le(8), Doc("Number of replicas; each costs the same.")] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterSettings:
    """How a model that somebody else runs at a URL is asked, and what it costs."""

    key_variable: Annotated[
        str | None, Doc("Environment variable that holds the server's API key, bound to it by [keys]. Empty: no key.")
    ] = None
    input_usd_per_million: Annotated[
        str | None,
        Doc("Price of a million prompt tokens in US dollars; 0 where they cost nothing. Empty: by the hour."),
    ] = None
    output_usd_per_million: Annotated[
        str | None,
        Doc("Price of a million answer tokens in US dollars; 0 where they cost nothing. Empty: by the hour."),
    ] = None
    hourly_usd: Annotated[
        str | None,
        Doc("Price of an hour in US dollars while it is registered; 0 where it costs nothing. Empty: by tokens."),
    ] = None
    allow_http: Annotated[bool, Doc("Send the key over http, unencrypted, to a server that is not this machine.")] = (
        False
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSettings:
    """What of a file is imported, and as what."""

    decision_type: Annotated[
        str | None, Doc("Decision type of all that is imported. Empty: the declared type that a name says.")
    ] = None
    name: Annotated[
        list[str] | None, Doc("Only what has one of these names (of a span, an observation, a row). Empty: all.")
    ] = None
    agent: Annotated[str | None, Doc("Agent that the decisions are of. Empty: what the source says.")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """What a model is evaluated on."""

    dataset: Annotated[str | None, Doc("Dataset whose holdout is used. Empty: the one it was trained on.")] = None
    limit: Annotated[int | None, Ge(1), Doc("Use only this many of the latest holdout rows. Empty: all.")] = None
    margin: Annotated[float, Ge(0), Doc("How much worse still counts as equal, for a model that is cheaper.")] = (
        DEFAULT_MARGIN
    )
    max_usd_per_1000: MaxUsdPer1000 = None
    any_price: AnyPrice = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteSettings:
    """How a model gets traffic."""

    weight: Weight = 0.9
    """The rest stays with the fallback: it keeps producing labels, and the two stay comparable."""
    mode: Annotated[
        Literal["live", "canary", "shadow"],
        Doc(
            "live serves its answers in the incumbent's place; canary serves a small share beside the incumbent; "
            "shadow answers in the background and serves none."
        ),
    ] = "live"
    canary_weight: CanaryWeight = DEFAULT_CANARY
    deadline_ms: Annotated[float, Gt(0), Doc("Use the fallback after this many milliseconds without an answer.")] = 800
    min_confidence: Annotated[
        Confidence,
        Doc("Use the fallback where the measured confidence is below this; auto: chosen on the validation rows."),
    ] = 0.0
    shadow_original: ShadowOriginal = False
    force: Annotated[bool, Doc("Promote without an evaluation, or against it.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoteSettings:
    """How much traffic a model keeps."""

    to: Annotated[
        Literal["degraded", "shadow", "rejected"],
        Doc(
            "degraded keeps the canary's share until it is proven again; shadow answers in the background and serves "
            "none; rejected loses its traffic and is undeployed."
        ),
    ] = "degraded"
    why: Annotated[str, Doc("The reason that is recorded in the ledger.")] = "demoted by the user"


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackSettings:
    """Why a decision type is rolled back."""

    why: Annotated[str, Doc("The reason that is recorded in the ledger.")] = "rolled back by the user"


@dataclass(frozen=True, slots=True, kw_only=True)
class UndeploySettings:
    """Why a model is undeployed."""

    why: Annotated[str, Doc("The reason that is recorded in the ledger.")] = "undeployed by the user"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """What one tick of the guard goes by."""

    idle_minutes: Annotated[
        int | None,
        Ge(0),
        Doc(
            "Stop a model that was not asked for this many minutes; a promoted one sleeps until it is asked again. "
            "0: never. Empty: as `[serving]` of reasoning.toml says, 15 by default."
        ),
    ] = None
    lease_minutes: Annotated[
        float, Gt(0), Le(60), Doc("How long routes stay valid without another tick: a few times the interval.")
    ] = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PaysSettings:
    """By what it is judged whether a model pays."""

    days: Annotated[int, Ge(1), Doc("How many days back the log is read.")] = 30
    idle_minutes: Annotated[
        float, Gt(0), Doc("Minutes without a decision after which a machine is taken to be stopped.")
    ] = 15
    horizon_months: Annotated[int, Ge(1), Le(120), Doc("Months over which a training is paid off.")] = 3
    min_saving_usd: Annotated[float, Ge(0), Doc("Least US dollars a month that are worth a model.")] = 1
    margin: Annotated[float, Gt(0), Lt(1), Doc("How much worse than the fallback still counts as equal.")] = (
        DEFAULT_MARGIN
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleSettings:
    """When a cycle of the flywheel is due, and how its model gets traffic."""

    min_new_decisions: Annotated[
        int, Ge(1), Doc("Labelled decisions since the last cycle's dataset that make another cycle due.")
    ] = 200
    min_changed_decisions: Annotated[
        int,
        Ge(1),
        Doc("The same where a live model fell, or the decisions drifted from those of the last dataset."),
    ] = 100
    since: Annotated[
        Moment | None,
        Doc(
            "First day (UTC), or time, to learn from. Empty: since the world changed, where the live test of a model "
            "that fell says when, else all there is."
        ),
    ] = None
    cool_down_hours: Annotated[float, Ge(0), Doc("Least hours between the end of a cycle and the next.")] = 20
    weight: Weight = 0.9
    canary_weight: Annotated[
        float | None, Ge(0), Le(1), Doc("Share of the decisions at first. Empty or 0: the final share at once.")
    ] = DEFAULT_CANARY
    canary_requests: Annotated[
        int,
        Ge(1),
        Doc("Requests after which a canary whose answers fail is withdrawn. Its live test decides the rest."),
    ] = 50
    max_failed_share: Annotated[
        float, Ge(0), Le(1), Doc("Withdraw the canary where more than this share of its answers failed.")
    ] = 0.05
    shadow_original: ShadowOriginal = False
    max_usd_per_1000: MaxUsdPer1000 = None
    any_price: AnyPrice = False
    anyway: Anyway = False
    force: Annotated[bool, Doc("Begin a cycle even if none is due.")] = False


SETTINGS: dict[str, type] = {
    "check_decisions": CheckSettings,
    "compact_decisions": CompactSettings,
    "expire_decisions": ExpireSettings,
    "export_dataset": ExportSettings,
    "fine_tune": FineTuneSettings,
    "deploy_model": DeploySettings,
    "evaluate_model": EvaluateSettings,
    "promote_model": PromoteSettings,
    "demote_model": DemoteSettings,
    "rollback_type": RollbackSettings,
    "undeploy_model": UndeploySettings,
    "guard_costs": GuardSettings,
    "estimate_value": PaysSettings,
    "turn_flywheel": CycleSettings,
}
"""Settings by the name of the flow."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One field of a settings class. `type` is without bounds and help, `annotation` is with them."""

    name: str
    type: Any
    annotation: Any
    default: Any
    help: str
    bounds: tuple[Ge | Gt | Le | Lt, ...]


def parameters_of(settings: type) -> Iterator[Parameter]:
    """The parameters of a settings class, in its order."""
    hints = get_type_hints(settings, include_extras=True)
    for field in dataclasses.fields(settings):
        bare, *metadata = get_args(hints[field.name])
        yield Parameter(
            name=field.name,
            type=bare,
            annotation=hints[field.name],
            default=field.default,
            help=next(each.documentation for each in metadata if isinstance(each, Doc)),
            bounds=tuple(each for each in metadata if isinstance(each, Ge | Gt | Le | Lt)),
        )


def bound_broken(parameter: Parameter, value: Any) -> str | None:
    """The bound that `value` is outside of, such as "above 0", or None."""
    if value is None:
        return None
    for bound in parameter.bounds:
        match bound:
            case Ge(ge=low) if not value >= low:  # NaN is outside of every bound
                return f"at least {low}"
            case Gt(gt=low) if not value > low:
                return f"above {low}"
            case Le(le=high) if not value <= high:
                return f"at most {high}"
            case Lt(lt=high) if not value < high:
                return f"below {high}"
    return None


def describe_bounds(parameter: Parameter) -> str:
    """The bounds as text for help, such as "above 0, at most 1"; empty without bounds."""
    words = {Ge: "at least", Gt: "above", Le: "at most", Lt: "below"}
    return ", ".join(f"{words[type(each)]} {getattr(each, type(each).__name__.lower())}" for each in parameter.bounds)


def expand_settings(
    function: Callable[..., Any], annotate: Callable[[Parameter], Any]
) -> tuple[inspect.Signature, list[Parameter]]:
    """The signature of `function` with the fields of its keyword-only `settings` in their place, and those fields.

    `annotate` gives the annotation of a field, for whoever reads the signature. The function's own are resolved.
    """
    hints = get_type_hints(function, include_extras=True)
    fields = list(parameters_of(hints["settings"]))
    expanded = []
    for own in inspect.signature(function).parameters.values():
        if own.name != "settings":
            expanded.append(own.replace(annotation=hints[own.name]))
            continue
        for field in fields:
            expanded.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotate(field)
                )
            )
    return inspect.Signature(expanded, return_annotation=hints.get("return")), fields


def collect_settings(function: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of an expanded signature as those of `function`: fields become its `settings`."""
    settings = get_type_hints(function)["settings"]
    names = {field.name for field in dataclasses.fields(settings)}
    own = {name: value for name, value in values.items() if name not in names}
    return own | {"settings": settings(**{name: value for name, value in values.items() if name in names})}


def parse_confidence(text: str) -> float | Literal["auto"]:
    """A number within 0 and 1, or `auto`. Raises ValueError."""
    if text == "auto":
        return "auto"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is neither a number within 0 and 1 nor auto")
    return value


_AGO = re.compile(r"([0-9]{1,6})\s*(m|h|d|w)")
_MONTH = re.compile(r"([0-9]{4})-([0-9]{2})")
_YEAR = re.compile(r"[0-9]{4}")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
MOMENT_HELP = "a day (2026-11-22), a month (2026-11), a time (2026-11-22T08:00:00Z), 7d, 12h, today or yesterday"


def parse_moment(text: str, *, end: bool = False, now: datetime | None = None) -> Moment:
    """A day, a month, a year, a time as in RFC 3339 (UTC where it names no zone), `today`, `yesterday`, `now`, or `7d`.

    `7d` is seven days before `now`; the units are m, h, d and w. Of a month or a year it is the first day, with `end`
    the last. Days are those of UTC. Raises ValueError.
    """
    now = now or datetime.now(UTC)
    word = text.strip().lower()
    days = {"today": now.date(), "yesterday": now.date() - timedelta(days=1)}
    try:
        if word in days:
            return days[word]
        if word == "now":
            return now
        if ago := _AGO.fullmatch(word):
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        if month := _MONTH.fullmatch(word):
            return _month(int(month[1]), int(month[2]), int(month[2]), end=end)
        if _YEAR.fullmatch(word):
            return _month(int(word), 1, 12, end=end)
        if len(word) == len("2026-11-22"):
            return date.fromisoformat(word)
        moment = datetime.fromisoformat(word.upper())
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no date; write {MOMENT_HELP}") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _month(year: int, first: int, last: int, *, end: bool) -> date:
    return date(year, last, monthrange(year, last)[1]) if end else date(year, first, 1)
