"""A model's life as verbs on a data folder: export, fine-tune, deploy, undeploy. Idempotent, as the steps beneath are:
stopped at any point and called again, each goes on where it was and spends nothing twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.cycle_plan import (
    Holdout,
    Step,
    hold_cycle,
    holding,
    look_ahead,
    read_holdout,
    require_worth,
    serving_steps,
    training_step,
)
from pipeline.errors import MissingStep
from pipeline.life import move_model
from pipeline.selection import find_model, ids_beginning, list_candidates, only_one
from provider.clock import Now, clock_of
from provider.endpoint.serving import end_serving, serve_model
from provider.errors import ProviderError
from provider.lifecycle.deployment_state import LIVE_STATES, STARTING_STATES
from provider.lifecycle.deployments import deploy_model
from provider.lifecycle.fine_tunes import cancel_fine_tune, follow_fine_tune, submit_fine_tune
from provider.lifecycle.routes import withdraw_model
from provider.lifecycle.shutdown import undeploy_model
from provider.lifecycle.uploads import upload_dataset
from provider.pace import Pace
from provider.port import Provider
from provider.providers import capabilities_of, open_provider_of
from provider.serving import load_serving
from quality.dataset.export import export_dataset
from quality.dataset.manifest import Manifest, read_manifest
from quality.settings import ExportSettings
from reasoning.config import load_config
from reasoning.decision_types import get_decision_type
from reasoning.errors import ReasoningError
from storage.errors import BudgetExceeded, NoSuchObject
from storage.layout import Layout
from storage.ledger.ledger import Ledger, open_ledger
from storage.ledger.rows import (
    ROUTED_STATES,
    Deployment,
    DeploymentState,
    FineTuneJob,
    Model,
    ModelState,
    UploadedDataset,
    required,
)
from storage.progress import OnProgress


@contextmanager
def at_work(data: Path, of: Model | None = None) -> Iterator[tuple[Provider, Ledger]]:
    """The provider and the ledger of a data folder; given a model, the provider that has it."""
    with open_ledger(data) as ledger, open_provider_of(data, of.provider if of else None) as provider:
        yield provider, ledger


def find_dataset(data: Path, dataset: str | Path) -> Path:
    """Folder of a dataset, given its id, the beginning of it, or the folder itself.

    Raises `MissingStep` where there is none, and `AmbiguousModel` where there are several.
    """
    if (folder := Path(dataset)).joinpath("manifest.json").is_file():
        return folder
    folders = {path.parent.name: path.parent for path in sorted(Layout(data).datasets.glob("*/*/manifest.json"))}
    text = str(dataset)
    begin = [text] if text in folders else ids_beginning(text, folders)
    if not begin:
        raise MissingStep(
            f"there is no dataset {str(dataset)!r} in {Layout(data).datasets}: "
            "`reasoning data datasets` lists them, `reasoning export DECISION_TYPE` makes one"
        )
    return folders[only_one(text, begin, "datasets")]


def find_deployment(ledger: Ledger, model_id: str, *states: DeploymentState) -> Deployment | None:
    """Ledger row of the newest deployment of a model in one of `states` (default: any but deleted)."""
    rows = ledger.find(Deployment, model_id=model_id, state=states or LIVE_STATES)
    return max(rows, key=lambda row: row.created_at, default=None)


def export(
    data: Path,
    decision_type: str,
    settings: ExportSettings | None = None,
    *,
    now: datetime | None = None,
    progress: OnProgress | None = None,
) -> Manifest:
    """`quality.dataset.export.export_dataset`, also for a decision type that reasoning.toml declares."""
    return export_dataset(data, decision_type, settings, now=now, config=load_config(data), progress=progress)


def fine_tune(
    data: Path,
    dataset: str | Path,
    *,
    tier: str | None = None,
    parameters: dict[str, Any] | None = None,
    again: bool = False,
    anyway: bool = False,
    now: Now = None,
    progress: OnProgress | None = None,
) -> FineTuneJob:
    """Upload a dataset (its id, or its folder), train a model on it and wait; returns the job's ledger row.

    `tier` is `small`, `medium`, `large` or a model's own name; by default the decision type's. What was trained before
    with the same parameters is not trained again, unless `again`. Before anything is spent the budgets must carry the
    whole cycle (BudgetExceeded), and a model that is certain to be refused afterwards is not trained (NotWorthIt),
    unless `anyway`. Raises what `provider.lifecycle.fine_tunes` does.
    """
    folder = find_dataset(data, dataset)
    manifest, clock = read_manifest(folder), clock_of(now)
    name = manifest.decision_type
    tier = tier or get_decision_type(name, load_config(data)).tier
    holdout = read_holdout(data, folder, name)
    with holding(data, name, now=now), at_work(data) as (provider, ledger):
        base = provider.base_model(tier)

        def steps() -> list[Step]:
            first = training_step(provider, ledger, manifest.dataset_id, base, parameters, again)
            return [first, *serving_steps(ledger, name, base, holdout=holdout)]

        if (planned := steps())[0].amount_usd:
            if not anyway:
                require_worth(look_ahead(data, folder, name, planned, now=clock())[0])
            hold_cycle(ledger, name, planned, now=clock())
        row = upload_dataset(provider, ledger, folder, pace=Pace(now=now, progress=progress))
        # Its true price is known only now. What was paid for before is followed to its end, whatever the budgets say.
        with suppress(BudgetExceeded) if not (planned := steps())[0].amount_usd else nullcontext():
            hold_cycle(ledger, name, planned, now=clock())
        job = submit_fine_tune(
            provider,
            ledger,
            row.id,
            tier=tier,
            parameters=parameters,
            again=again,
            pace=Pace(progress=progress, now=now),
        )
        return follow_fine_tune(
            provider, ledger, job.id, pace=Pace(now=now, progress=progress, poll_seconds=provider.poll_seconds)
        )


def cancel_job(data: Path, job: str, *, now: Now = None) -> FineTuneJob:
    """Cancel a fine-tune (its id, or the beginning of it) that has not ended; returns its ledger row.

    What it cost until then is charged. Raises `MissingStep` where there is none of that id.
    """
    with open_ledger(data) as ledger:
        rows = {row.id: row for row in ledger.find(FineTuneJob)}
        begin = [job] if job in rows else ids_beginning(job, rows)
        if not begin:
            raise MissingStep(f"there is no fine-tune {job!r}: `reasoning models jobs` lists them")
        job = only_one(job, begin, "fine-tunes")
        with open_provider_of(data, rows[job].provider) as provider:
            return cancel_fine_tune(provider, ledger, job, now=now)


def deploy(
    data: Path, model: str, *, replicas: int = 1, now: Now = None, progress: OnProgress | None = None
) -> Deployment:
    """Serve a model (its id, or a type; `pipeline.selection`) without traffic; returns the deployment's ledger row.

    The budgets must carry it, and the incumbent beside it, until the verdict (BudgetExceeded), else nothing is begun.
    A registered model that was withdrawn serves again, if its server still answers.
    """
    with open_ledger(data) as ledger:
        row = find_model(data, ledger, model, "deploy")
        if not capabilities_of(row.provider).starts_servers:
            if row.state == ModelState.RETIRED:
                raise MissingStep(f"{row.name} was unregistered: register it under another name")
            return serve_model(load_config(data), ledger, row, now=clock_of(now)())
    with at_work(data, row) as (provider, ledger):
        name = required(row.decision_type, f"the decision type of model {row.id}")
        with holding(data, name, now=now):
            if not ledger.find(Deployment, model_id=row.id, state=(*STARTING_STATES, DeploymentState.READY)):
                base = provider.base_model(row.base_model)
                holdout = _holdout_of(data, ledger, row, name)
                steps = serving_steps(ledger, name, base, model_id=row.id, replicas=replicas, holdout=holdout)
                hold_cycle(ledger, name, steps, now=clock_of(now)())
            return deploy_model(
                provider,
                ledger,
                row.id,
                replicas=replicas,
                share=load_serving().of(name).share,
                pace=Pace(now=now, progress=progress, poll_seconds=provider.poll_seconds),
            )


def _holdout_of(data: Path, ledger: Ledger, model: Model, decision_type: str) -> Holdout | None:
    """The holdout of the dataset that a model was trained on, where it is still there."""
    with suppress(MissingStep, NoSuchObject):
        dataset = ledger.get(UploadedDataset, model.upload_id or "").dataset
        return read_holdout(data, find_dataset(data, dataset), decision_type)
    return None


def undeploy(
    data: Path, model: str, *, why: str = "undeployed by the user", now: Now = None, progress: OnProgress | None = None
) -> list[Deployment]:
    """Withdraw a model's route, let it drain, stop and delete what serves it; returns the deployments' ledger rows.

    `model` is its id, or a decision type for what of it serves or costs. A model that had traffic is `trained` again.
    Given the id of a model of which nothing runs, nothing is done. Raises `MissingStep` where something else of its
    decision type does run (lists it). Of a type of which nothing runs, nothing is stopped. Where the provider cannot be
    reached, or refuses the key, the routes are withdrawn all the same and the guard stops the deployments later; then
    raises.
    """
    with open_ledger(data) as ledger:
        known = list_candidates(data, ledger, model.replace("-", "_"))
        if known and not any(candidate.serves_or_costs for candidate in known):
            return []
        row = find_model(data, ledger, model, "undeploy")
        candidates = list_candidates(data, ledger, required(row.decision_type, f"the decision type of model {row.id}"))
        running = [candidate for candidate in candidates if candidate.serves_or_costs]
        if running and row.id not in {candidate.model.id for candidate in running}:
            raise MissingStep(
                f"nothing of model {row.id} is deployed: nothing was stopped. "
                f"Of {row.decision_type} there still runs {'; '.join(map(str, running))}"
            )
    return take_down(data, row.id, why=why, now=now, progress=progress)


def _end_each(
    provider: Provider | None, ledger: Ledger, deployments: list[Deployment], **options: Any
) -> list[Deployment]:
    """Undeploy each, also behind one that fails, for the others cost money too; then raises its error."""
    ended, troubles = [], []
    for deployment in deployments:
        try:
            ended.append(undeploy_model(provider, ledger, deployment.id, **options))
        except ProviderError as error:
            troubles.append(error)
    if troubles:
        raise troubles[0]
    return ended


def take_down(
    data: Path, model_id: str, *, why: str, now: Now = None, progress: OnProgress | None = None
) -> list[Deployment]:
    """`undeploy` for whoever knows which model it is (its id): where nothing of it runs, nothing is done."""
    with open_ledger(data) as ledger:
        row = ledger.get(Model, model_id)
        _withdraw(data, ledger, row, why=why, now=clock_of(now)())
        for deployment in ledger.find(Deployment, model_id=model_id, state=DeploymentState.DELETED):
            if deployment.served_name:  # a route to what is gone helps nobody
                withdraw_model(Layout(data).routes, deployment.served_name, now=clock_of(now)())
        deployments = ledger.find(Deployment, model_id=model_id, state=LIVE_STATES)
        if not capabilities_of(row.provider).starts_servers:
            return _withdraw_registered(data, ledger, row, deployments, why=why, now=clock_of(now)())

        if not deployments:  # of a provider that is not used any more, perhaps
            return []

        def end(provider: Provider | None, **options: Any) -> list[Deployment]:
            pace = Pace(now=now, **options)
            return _end_each(provider, ledger, deployments, routes_path=Layout(data).routes, why=why, pace=pace)

        try:
            provider = open_provider_of(data, row.provider)
        except ProviderError as error:
            if not end(None):
                raise
            raise type(error)(
                f"{error}. Its route is withdrawn and its end is written down: the guard stops it once the provider "
                "can be asked"
            ) from error
        with provider:
            return end(provider, progress=progress, poll_seconds=provider.poll_seconds)


def _withdraw(data: Path, ledger: Ledger, model: Model, *, why: str, now: datetime) -> None:
    """Take a model's traffic, whatever becomes of the rest. A route that cannot be written now ends with its lease."""
    if model.state in ROUTED_STATES:
        with suppress(ReasoningError, OSError):  # its deployments are ended by hands that say so
            move_model(data, ledger, model.id, ModelState.TRAINED, why=why, now=now)


def _withdraw_registered(
    data: Path, ledger: Ledger, model: Model, deployments: list[Deployment], *, why: str, now: datetime
) -> list[Deployment]:
    """Withdraw the route of a registered model and close what serves it; returns its deployments' ledger rows.

    It is closed also where the route cannot be withdrawn, which ends with its lease; then raises RoutesError.
    """
    trouble: Exception | None = None
    for name in {row.served_name for row in deployments if row.served_name}:
        try:
            withdraw_model(Layout(data).routes, name, now=now)
        except (ReasoningError, OSError) as error:
            trouble = error
    ended = [end_serving(ledger, row, why=why, now=now) for row in deployments]
    if trouble is not None:
        raise trouble
    return ended
