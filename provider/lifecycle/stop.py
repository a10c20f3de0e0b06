"""Stop everything of an installation that costs money now, from the provider's own lists.

The last resort, so it leans on as little as possible: the names of remote objects (`rsn-<installation id>-...`), one
request that scales a deployment to zero, one that cancels a fine-tune. A ledger that can be read adds what a list
lacks. Traffic, ledger and routes come after the money and cannot keep it from being stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path

from provider.endpoint.arms import is_registered
from provider.errors import RemoteNotFound, UnexpectedAnswer
from provider.lifecycle.fine_tunes import cancel_fine_tune
from provider.lifecycle.routes import keep_models
from provider.lifecycle.shutdown import begin_shutdown
from provider.port import Provider, RemoteDeployment, RemoteEndpoint, RemoteJob, RemoteJobState, RemoteState
from provider.providers import providers_where
from reasoning.errors import ReasoningError
from storage.installation import remembered_installations
from storage.layout import Layout
from storage.ledger.database import ledger_url
from storage.ledger.ledger import Ledger, open_ledger
from storage.ledger.reports import ACTIVE_STATES, BILLABLE_STATES
from storage.ledger.rows import Deployment, DeploymentState, FineTuneJob

_REQUEST_TIMEOUT = 20.0  # seconds
_AT_ONCE = 32  # requests; more objects than this at one installation are not expected


@dataclass(frozen=True, slots=True)
class Running:
    """A remote object that costs money. US dollars are None where nobody told the price."""

    kind: str
    """`deployment` or `fine-tune`."""
    name: str
    remote_id: str
    state: str
    hourly_usd: Decimal | None = None
    job_usd: Decimal | None = None
    endpoint_id: str | None = None
    replicas: int = 1
    hardware: str | None = None
    is_ending: bool = False
    """It was told to stop already."""

    @property
    def daily_usd(self) -> Decimal | None:
        return None if self.hourly_usd is None else self.hourly_usd * 24


@dataclass(slots=True)
class StopReport:
    """`found` cost money at first, `remaining` may do so still. `errors` say what is not known, or was refused.

    Only an empty `remaining` with empty `errors` means that nothing costs money any more.
    """

    installations: list[str] = field(default_factory=list)
    found: list[Running] = field(default_factory=list)
    remaining: list[Running] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Objects named like ours, of installations that this data folder does not know."""

    @property
    def is_clear(self) -> bool:
        return not self.remaining and not self.errors


def installations_of(data: Path | str) -> tuple[list[str], str | None]:
    """Ids of the installation of a data folder, and why the ledger did not tell its own, if it did not."""
    known = remembered_installations(data)
    try:
        url = ledger_url(data)
        if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
            return known, "there is no ledger"  # opening would make a new one, with a new id
        with open_ledger(data) as ledger:
            return list(dict.fromkeys([*known, ledger.installation_id])), None
    except ReasoningError as error:
        return known, str(error)
    except Exception as error:  # a damaged file may fail in any way, and must not keep the money running
        return known, f"{type(error).__name__}: {error}"


def _look(provider: Provider, installations: Iterable[str], known: Iterable[Running]) -> StopReport:
    """What of these installations costs money now, by the provider's lists; `known` is asked for where they lack it."""
    report = StopReport(installations=list(installations))
    if not report.installations:
        report.errors.append(
            "the id of this installation is not known: neither the ledger nor the data folder names it"
        )
    _attempt_all(
        report,
        [
            ("deployments", lambda: _find_deployments(provider, report)),
            ("fine-tunes", lambda: _find_jobs(provider, report)),
        ],
    )
    listed_ids = {each.remote_id for each in report.found}
    _attempt_all(
        report,
        [(each.name, partial(_look_at, provider, each, report)) for each in known if each.remote_id not in listed_ids],
    )
    report.found.sort(key=lambda each: (each.kind, each.name, each.remote_id))
    return report


def _look_at(provider: Provider, each: Running, report: StopReport) -> None:
    """Ask for an object of the ledger by its id: a list may be behind. That it does not exist is no error."""
    with contextlib.suppress(RemoteNotFound):
        if each.endpoint_id is None:
            job = provider.job(each.remote_id)
            if not job.has_ended:
                report.found.append(replace(each, state=job.said or "unknown", is_ending=_is_ending(job)))
        else:
            remote = provider.deployment(each.endpoint_id, each.remote_id)
            _add_if_it_costs(remote, each.name, each.endpoint_id, report)


def stop_everything(
    provider: Provider,
    data: Path | str,
    *,
    dry_run: bool = False,
    installations: Iterable[str] = (),
    wait_seconds: float = 60.0,
    wait: Callable[[float], None] = time.sleep,
) -> StopReport:
    """Scale our deployments to zero and cancel our fine-tunes; then withdraw routes and tell the ledger.

    Waits up to `wait_seconds` until the provider says that all has ended. Works without a ledger; `installations` adds
    ids that the data folder has lost. Never raises for what the provider or the ledger does: it is in the report.
    """
    known, trouble = installations_of(data)
    ids = list(dict.fromkeys([*known, *installations]))
    prices, of_ledger = ({}, []) if trouble else _read_ledger(data)
    patient = provider.with_timeout(_REQUEST_TIMEOUT)
    report = _look(patient, ids, of_ledger)
    report.found = _with_prices(patient, report.found, prices)
    report.remaining = list(report.found)
    if trouble:
        report.notes.append(
            f"the ledger cannot be used ({trouble}); what runs is taken from the provider's lists alone"
        )
    if dry_run:
        return report
    asked_errors = list(report.errors)
    _attempt_all(report, [(each.name, partial(_stop, patient, each)) for each in report.found])
    if not trouble:
        _tell_ledger(provider, data, report)
    _withdraw_routes(data, report)
    _await_end(lambda: _look(patient, ids, of_ledger), report, asked_errors, wait_seconds, wait)
    return report


def _attempt(report: StopReport, what: str, act: Callable[[], None]) -> None:
    try:
        act()
    except ReasoningError as error:
        report.errors.append(f"{what}: {error}")
    except Exception as error:
        report.errors.append(f"{what}: {type(error).__name__}: {error}")


def _attempt_all(report: StopReport, acts: Sequence[tuple[str, Callable[[], None]]]) -> None:
    """Attempt all at the same time: an object that the provider does not answer for must not delay the others."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for what, act in acts:
            pool.submit(_attempt, report, what, act)


def _is_ours(name: str | None, installations: Iterable[str]) -> bool:
    return bool(name) and any(str(name).startswith(f"rsn-{each}-") for each in installations)


def _find_deployments(provider: Provider, report: StopReport) -> None:
    ours = []
    for number, endpoint in enumerate(provider.endpoints(), 1):
        name = endpoint.name
        if name is None:
            report.errors.append(f"endpoint {endpoint.id or number} has no name: nobody can tell whose it is")
        elif _is_ours(name, report.installations):
            ours.append((name, partial(_look_under, provider, endpoint, name, report)))
        elif name.startswith("rsn-"):
            report.others.append(f"endpoint {name}")
    _attempt_all(report, ours)


def _look_under(provider: Provider, endpoint: RemoteEndpoint, name: str, report: StopReport) -> None:
    if endpoint.id is None:
        raise UnexpectedAnswer("the provider does not tell the id of this endpoint of ours: it cannot be stopped")
    for remote in provider.deployments(endpoint.id):
        _add_if_it_costs(remote, name, endpoint.id, report)


def _add_if_it_costs(remote: RemoteDeployment, name: str, endpoint_id: str, report: StopReport) -> None:
    if remote.state == RemoteState.STOPPED or (remote.state == RemoteState.FAILED and not remote.may_run):
        return
    at_most = remote.max_replicas or 1
    report.found.append(
        Running(
            kind="deployment",
            name=name,
            remote_id=str(remote.id),
            state=remote.said or "unknown",
            endpoint_id=endpoint_id,
            replicas=max(remote.replicas(at_most), at_most if remote.may_run else 1),
            hardware=remote.hardware,
        )
    )


def _find_jobs(provider: Provider, report: StopReport) -> None:
    running = [job for job in provider.jobs() if not job.has_ended]
    _attempt_all(report, [(f"fine-tune {job.id}", partial(_judge_job, provider, job, report)) for job in running])


def _judge_job(provider: Provider, job: RemoteJob, report: StopReport) -> None:
    suffix, output = job.name, job.output_name or ""
    if suffix is None and "rsn-" in output:  # a list may leave the suffix out; a stranger's text may hold ours
        suffix = provider.job(str(job.id)).name or output[output.index("rsn-") :]
    if suffix is None or not suffix.startswith("rsn-"):
        return
    if not _is_ours(suffix, report.installations):
        report.others.append(f"fine-tune {suffix} ({job.id})")
        return
    report.found.append(
        Running(
            kind="fine-tune",
            name=suffix,
            remote_id=str(job.id),
            state=job.said or "unknown",
            job_usd=job.price_usd or None,
            is_ending=_is_ending(job),
        )
    )


def _is_ending(job: RemoteJob) -> bool:
    return job.state == RemoteJobState.CANCELLING


def _read_ledger(data: Path | str) -> tuple[dict[str, Decimal], list[Running]]:
    """US dollars by name (of a replica's hour, of a whole fine-tune), and what the ledger holds for running."""
    try:
        with open_ledger(data) as ledger:
            prices = {row.name: row.hourly_usd for row in ledger.find(Deployment)}
            jobs = ledger.find(FineTuneJob, state=ACTIVE_STATES)
            prices |= {job.suffix: job.estimate_usd for job in jobs}
            rows = ledger.find(Deployment, state=BILLABLE_STATES)
    except Exception:  # whatever ails it, the provider's lists are gone by
        return {}, []
    known = [
        Running("deployment", row.name, row.remote_id, row.state, endpoint_id=row.endpoint_id)
        for row in rows
        if row.remote_id and row.endpoint_id
    ]
    known += [Running("fine-tune", job.suffix, job.remote_id, job.state) for job in jobs if job.remote_id]
    return prices, known


def _with_prices(provider: Provider, found: list[Running], known: Mapping[str, Decimal]) -> list[Running]:
    offered: Mapping[str, Decimal] = {}
    if any(each.kind == "deployment" and not known.get(each.name) for each in found):
        try:
            offered = provider.hourly_prices()
        except ReasoningError:
            offered = {}  # the price is only for the reader
    priced = []
    for each in found:
        if each.kind == "fine-tune":
            priced.append(replace(each, job_usd=each.job_usd or known.get(each.name)))
            continue
        hourly = known.get(each.name) or offered.get(each.hardware or "") or offered.get((each.hardware or "").lower())
        priced.append(replace(each, hourly_usd=hourly and hourly * each.replicas))
    return priced


def _stop(provider: Provider, each: Running) -> None:
    if each.kind == "fine-tune":
        if not each.is_ending:
            provider.cancel_job(each.remote_id)
        return
    assert each.endpoint_id is not None
    provider.scale(each.endpoint_id, each.remote_id, 0)


def _await_end(
    look: Callable[[], StopReport],
    report: StopReport,
    asked_errors: list[str],
    wait_seconds: float,
    wait: Callable[[float], None],
) -> None:
    """Look again until nothing is left. What was refused but has ended all the same is no error any more."""
    refused = [error for error in report.errors if error not in asked_errors]
    deadline = time.monotonic() + wait_seconds
    while True:
        after = look()
        done = not after.found and not after.errors
        if done or time.monotonic() >= deadline:
            break
        wait(min(1.0, max(wait_seconds, 0.0)))
    known = {each.remote_id: each for each in report.found}
    report.remaining = [
        replace(known[each.remote_id], state=each.state) if each.remote_id in known else each for each in after.found
    ]
    report.errors = after.errors + ([] if done else refused)


def _withdraw_routes(data: Path | str, report: StopReport) -> None:
    """Agents fall back at once instead of running into what was stopped."""
    try:
        prefixes = tuple(f"rsn-{each}-" for each in report.installations)

        def keep(_: str, model: str) -> bool:
            # An adapter's name holds ours, behind its base model's.
            return not (any(prefix in model for prefix in prefixes) or is_registered(model))

        keep_models(Layout(data).routes, keep)
    except Exception as error:
        report.notes.append(f"the routes could not be withdrawn ({error}); agents fall back when a request fails")


def withdraw_registered(data: Path | str) -> list[str]:
    """Withdraw all registered models (`provider.endpoint`), which takes no provider; returns their names.

    Their routes go also where there is no ledger.
    """
    now, names = datetime.now(UTC), set[str]()
    with contextlib.suppress(ReasoningError, OSError):  # they end with their lease
        gone = keep_models(Layout(data).routes, lambda _, model: not is_registered(model), now=now)
        names |= {model for _, model in gone}
    if installations_of(data)[1] is None:
        with contextlib.suppress(ReasoningError), open_ledger(data) as ledger:
            registered = providers_where(lambda offered: not offered.starts_servers)
            for row in ledger.find(Deployment, provider=registered, state=BILLABLE_STATES):
                begin_shutdown(ledger, row.id, why="reasoning stop", immediately=True, now=now)
                names.add(row.served_name or row.name)
    return sorted(names)


def _tell_ledger(provider: Provider, data: Path | str, report: StopReport) -> None:
    """So that nothing of ours starts them again, and the guard settles what they cost."""
    now = datetime.now(UTC)
    try:
        with open_ledger(data) as ledger:
            for row in ledger.find(Deployment, state=(DeploymentState.INTENDED, *BILLABLE_STATES)):
                begin_shutdown(ledger, row.id, why="reasoning stop", immediately=True, now=now)
            _sync_jobs(provider, ledger, report, now)
            ledger.release_hold(None, now=now)  # no cycle goes on
    except Exception as error:
        report.notes.append(f"the ledger could not be told ({error}); `reasoning reconcile` makes up for it")


def _sync_jobs(provider: Provider, ledger: Ledger, report: StopReport, now: datetime) -> None:
    for job in ledger.find(FineTuneJob, provider=provider.name, state=ACTIVE_STATES):
        try:
            cancel_fine_tune(provider, ledger, job.id, why="reasoning stop", now=now)
        except ReasoningError as error:
            report.notes.append(f"the ledger does not know yet how {job.suffix} ended ({error})")
