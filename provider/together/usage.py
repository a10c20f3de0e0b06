"""The provider's bill as it is read: its complete hours, and whom each line names.

Together's `GET /v1/billing/usage` is a beta API (its reference, "Get billing usage"): an organisation that it is not
enabled for gets 404, it reports on the whole organisation, and what the `attributes` of a line name varies by product
(SDK 3.1.1, `types/organization/billing_usage_line_item.py`). So a line is looked through for everything that we know
our objects by, and one that names nobody is nobody's and anybody's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from provider.clock import moment, time_from_headers
from provider.errors import AccessDenied, ProviderError, RemoteNotFound
from provider.money.billed import BILLABLE_KINDS, Bill, Billable, BillableKind, Objects
from provider.together.answers import listed, text, usd
from provider.together.client import translate_sdk_errors
from storage.ledger.ledger import period_start

if TYPE_CHECKING:
    from together import Together

BILL_LAG = timedelta(hours=1)
"""How long after its end an hour of the provider's bill is taken for complete, if it names the object at all."""

PAGE_SIZE = 1000
"""Windows a page, the most that the API gives: a month of hours has 744."""

# Names of products are for people, and not stable (the same page): they decide only what is doubted, and never what is
# charged.
_TUNING = re.compile(r"fine.?tun|training", re.IGNORECASE)
_DEDICATED = re.compile(r"dedicated|deployment|\b[ABHL]\d{2,3}\b|\bgpu\b", re.IGNORECASE)
_OTHER = re.compile(
    r"serverless|cluster|token|image|audio|video|speech|storage|code|sandbox|embed|rerank|batch|moderation|seat|support",
    re.IGNORECASE,
)
_NAMING_KEY = re.compile(
    r"(deployment|endpoint|resource|job|model|fine_?tun(e|ing)(_job)?|adapter|replica|cluster)(_?(id|name|slug|uuid))",
    re.IGNORECASE,
)
_NAMING_VALUE = re.compile(r"(dep|ep|dpl|deployment|endpoint|ft|ml)[-_][A-Za-z0-9][A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class _Alias:
    """One of the names of an object of ours. `rank` 0 is its own id; 1 is of all that is under one endpoint, 2 of a
    model's deployments."""

    kind: BillableKind
    id: str
    rank: int


def fetch_windows(
    client: Together, *, since: datetime, now: datetime
) -> tuple[dict[str, list[Any]], list[str], datetime]:
    """The windows of every month from `since` to `now`, the months that cannot be read (404, 403), and the bill's time.

    The time is `now`, or what the provider's clock says, if that is earlier. Raises RemoteNotFound (the account has no
    billing API) or AccessDenied (the key may not read it) when no month can be read. Raises ProviderUnavailable,
    ProviderRefused.
    """
    months: dict[str, list[Any]] = {}
    missing: list[str] = []
    as_of, month = now, _hour(since).replace(day=1, hour=0)
    absent: RemoteNotFound | AccessDenied | None = None
    organization = _organization(client)
    while month < now:
        name = f"{month:%Y-%m}"
        try:
            with translate_sdk_errors(f"the bill of {name}"):
                answer = client.organization.usage.costs.with_raw_response.list(
                    granularity="hour", month=name, limit=PAGE_SIZE, **organization
                )
                months[name] = listed(answer.parse())
            as_of = min(as_of, time_from_headers(answer.headers) or as_of)
        except (RemoteNotFound, AccessDenied) as error:
            absent = error
            missing.append(name)
        month = (month + timedelta(days=32)).replace(day=1)
    if absent is not None and not months:
        raise absent
    return months, missing, as_of


def _organization(client: Together) -> dict[str, Any]:
    """The argument `organization_id`, which will be required; none where the provider does not tell it."""
    import httpx

    try:
        with translate_sdk_errors("this key's organization"):
            answer = client.get("/v3/whoami", cast_to=httpx.Response).json()
            told = text((answer.get("organization") or {}).get("id"))
    except ProviderError:
        told = None
    return {"organization_id": told} if told else {}


def read_bill(
    client: Together,
    objects: Objects,
    *,
    since: datetime,
    now: datetime,
    errors: list[str],
) -> Bill:
    """The provider's bill from the month of `since` on, by our `objects` (rows of the ledger).

    Lines that cannot be read are told in `errors`. Raises what `fetch_windows` does.
    """
    months, missing, as_of = fetch_windows(client, since=since, now=now)
    bill = Bill(since=_hour(since).replace(day=1, hour=0), until=_hour(as_of - BILL_LAG), as_of=as_of, missing=missing)
    aliases = _aliases(objects)
    project = text(getattr(client, "project_id", None))
    for name in missing:
        errors.append(f"the bill of {name} is not to be had, so it gives no money back for that month")
    for name, windows in months.items():
        before = bill.unreadable
        for window in windows:
            _read_window(window, bill, aliases, project)
        if odd := bill.unreadable - before:
            errors.append(f"the bill of {name}: {odd} lines cannot be read, so it gives no money back for them")
    return bill


def _hour(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _aliases(objects: Objects) -> dict[str, list[_Alias]]:
    """Every name that a line may have for our objects."""
    found: defaultdict[str, list[_Alias]] = defaultdict(list)

    def add(name: str | None, kind: BillableKind, row: Billable, rank: int) -> None:
        if name:
            found[name].append(_Alias(kind, row.id, rank))

    for row in objects.deployments:
        add(row.remote_id, "deployments", row, 0)
        if row.name != row.remote_id:  # a double is named after its id, and is under the endpoint of another
            add(row.name, "deployments", row, 1)
            add(row.endpoint_id, "deployments", row, 1)
            add(row.model_object_id, "deployments", row, 2)
    for job in objects.jobs:
        add(job.remote_id, "fine_tune_jobs", job, 0)
        add(job.suffix, "fine_tune_jobs", job, 1)
    return found


def _read_window(window: Any, bill: Bill, aliases: Mapping[str, list[_Alias]], project: str | None) -> None:
    end, lines = moment(getattr(window, "end_time", None)), getattr(window, "line_items", None)
    if end is not None and end > bill.until:
        return
    for line in lines if isinstance(lines, list) else [None]:
        _read_line(line, end, bill, aliases, project)


def _read_line(
    line: Any, end: datetime | None, bill: Bill, aliases: Mapping[str, list[_Alias]], project: str | None
) -> None:
    """Add a line to what is billed to whom it names."""
    attributes, cost = getattr(line, "attributes", None), usd(getattr(line, "cost", None))
    if not isinstance(attributes, dict):
        _doubt(bill, {alias.id for found in aliases.values() for alias in found})
        return
    product = text(getattr(line, "product_name", None)) or ""
    ours = _named(attributes, product, aliases)
    if end is None or cost is None:
        if ours or not (_names_somebody(attributes) or _kind_of(product) == "other"):
            _doubt(bill, {alias.id for alias in ours} or {alias.id for found in aliases.values() for alias in found})
        return
    day = period_start("day", end - timedelta(microseconds=1))
    if len(ours) > 1:
        _doubt(bill, {alias.id for alias in ours})
    elif ours:
        bill.named.add(ours[0].kind)
        entry = bill.of[ours[0].id]
        entry.by_day[day] += cost
        entry.until = max(entry.until or end, end)
        entry.by_endpoint = entry.by_endpoint or bool(ours[0].kind == "deployments" and ours[0].rank)
    elif cost and not _names_somebody(attributes) and not _is_anothers(attributes, project):
        kind = _kind_of(product)
        if kind in BILLABLE_KINDS:
            bill.nameless[kind][day] += cost
        elif kind is None:
            bill.unsure[day] += cost


def _kind_of(product: str) -> BillableKind | Literal["other"] | None:
    """What a product may be the bill of, by its name; None where that tells nothing."""
    if _TUNING.search(product):
        return "fine_tune_jobs"
    if "dedicated" not in product.lower() and _OTHER.search(product):
        return "other"
    return "deployments" if _DEDICATED.search(product) else None


def _doubt(bill: Bill, ids: set[str]) -> None:
    if ids:
        bill.unreadable += 1
    for object_id in ids:
        bill.of[object_id].doubtful = True


def _named(attributes: Mapping[Any, Any], product: str, aliases: Mapping[str, list[_Alias]]) -> list[_Alias]:
    """The object of ours that a line is for, by its most exact name; several only where it names several so."""
    tuning = bool(_TUNING.search(product))
    found: list[_Alias] = []
    for value in attributes.values():
        if not isinstance(value, str):
            continue
        names = {value, value.rsplit("/", 1)[-1]}
        known = [alias for name in names for alias in aliases.get(name, ())]
        if not known and tuning:  # the name of a trained model holds its job's suffix
            known = [alias for name, of in aliases.items() if len(name) > 8 and name in value for alias in of]
        found.extend(known)
    # A deployment's line may name the model that it serves, and with it the job that trained it.
    wanted: BillableKind = "fine_tune_jobs" if tuning else "deployments"
    found = [alias for alias in found if alias.kind == wanted] or [
        alias for alias in found if not alias.rank or alias.kind == "deployments"
    ]
    if _kind_of(product) == "other":
        found = [alias for alias in found if not alias.rank]  # such as tokens of a model that was trained here
    best = min((alias.rank for alias in found), default=0)
    return list({(alias.kind, alias.id): alias for alias in found if alias.rank == best}.values())


def _names_somebody(attributes: Mapping[Any, Any]) -> bool:
    """Does a line name an object at all, ours or another's?"""
    for key, value in attributes.items():
        if not isinstance(value, str) or not value:
            continue
        if _NAMING_VALUE.fullmatch(value.rsplit("/", 1)[-1]):
            return True
        # The base model that a line is priced by says nothing of whose it is.
        if _NAMING_KEY.fullmatch(str(key)) and not str(key).lower().startswith("model"):
            return True
    return False


def _is_anothers(attributes: Mapping[Any, Any], project: str | None) -> bool:
    """Is a line of another project of the organisation?"""
    told = text(attributes.get("project_id"))
    return bool(told and project and told.rsplit("/", 1)[-1] != project)
