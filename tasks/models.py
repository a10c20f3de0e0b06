"""A model's life as verbs on a data folder: export, fine-tune, deploy, undeploy. Idempotent, as the steps beneath are:
stopped at any point and called again, each goes on where it was and spends nothing twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import provider.deployments
import provider.shutdown
from provider.client import Now, clock_of, connect
from provider.deployments import LIVE_STATES
from provider.errors import ProviderError
from provider.files import upload_dataset
from provider.fine_tunes import cancel_fine_tune, follow_fine_tune, submit_fine_tune
from quality.dataset import Manifest, export_dataset
from reasoning.config import is_loopback, load_config
from reasoning.decision_types import get_decision_type
from storage.layout import Layout
from storage.ledger import Ledger, open_ledger
from tasks.errors import MissingStep
from tasks.progress import Progress

if TYPE_CHECKING:
    from together import Together


@contextmanager
def at_work(data: Path) -> Iterator[tuple[Together, Ledger]]:
    """The provider's client and the ledger of a data folder."""
    with open_ledger(data) as ledger, connect() as client:
        yield client, ledger


def poll_seconds(client: Together) -> float:
    """How often to look how far something is: the local provider takes seconds for what Together takes minutes for."""
    return 0.25 if is_loopback(urlsplit(str(client.base_url)).hostname or "") else 5.0


def find_dataset(data: Path, dataset: str | Path) -> Path:
    """Folder of a dataset, given its id or the folder itself. Raises `MissingStep`."""
    if (folder := Path(dataset)).joinpath("manifest.json").is_file():
        return folder
    found = sorted(Layout(data).datasets.glob(f"*/{dataset}/manifest.json"))
    if not found:
        raise MissingStep(
            f"there is no dataset {str(dataset)!r} in {Layout(data).datasets}: "
            "`reasoning data datasets` lists them, `reasoning export DECISION_TYPE` makes one"
        )
    return found[0].parent


def find_model(ledger: Ledger, model: str) -> dict[str, Any]:
    """Ledger row of a model, given its id, or the decision type whose newest model is meant. Raises `MissingStep`."""
    models = ledger.find("models", id=model) or ledger.find("models", decision_type=model.replace("-", "_"))
    if not models:
        raise MissingStep(
            f"there is no model {model!r}: `reasoning models list` shows them, `reasoning fine-tune DATASET` makes one"
        )
    return max(models, key=lambda row: row["created_at"])


def find_deployment(ledger: Ledger, model_id: str, *states: str) -> dict[str, Any] | None:
    """Ledger row of the newest deployment of a model in one of `states` (default: any but deleted)."""
    rows = ledger.find("deployments", model_id=model_id, state=states or LIVE_STATES)
    return max(rows, key=lambda row: row["created_at"], default=None)


def export(data: Path, decision_type: str, **options: Any) -> Manifest:
    """`quality.dataset.export_dataset` (its options too), also for a decision type that reasoning.toml declares."""
    return export_dataset(data, decision_type, config=load_config(data), **options)


def fine_tune(
    data: Path,
    dataset: str | Path,
    *,
    tier: str | None = None,
    parameters: dict[str, Any] | None = None,
    again: bool = False,
    now: Now = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Upload a dataset (its id, or its folder), train a model on it and wait; returns the job's ledger row.

    `tier` is `small`, `medium`, `large` or a model's own name; by default the decision type's. What was trained before
    with the same parameters is not trained again, unless `again`. Raises what `provider.fine_tunes` does.
    """
    folder = find_dataset(data, dataset)
    with at_work(data) as (client, ledger):
        row = upload_dataset(client, ledger, folder, now=now, progress=progress)
        kind = get_decision_type(row["decision_type"], load_config(data))
        job = submit_fine_tune(
            client,
            ledger,
            row["id"],
            tier=tier or kind.tier,
            parameters=parameters,
            again=again,
            progress=progress,
            now=now,
        )
        return follow_fine_tune(
            client, ledger, job["id"], now=now, progress=progress, poll_seconds=poll_seconds(client)
        )


def cancel(data: Path, job: str, *, now: Now = None) -> dict[str, Any]:
    """Cancel a fine-tune (its id) that has not ended; returns its ledger row. What it cost until then is charged.

    Raises `MissingStep` where there is none of that id.
    """
    with open_ledger(data) as ledger:
        if not ledger.find("fine_tune_jobs", id=job):
            raise MissingStep(f"there is no fine-tune {job!r}: `reasoning models jobs` lists them")
        with connect() as client:
            return cancel_fine_tune(client, ledger, job, now=now)


def deploy(
    data: Path, model: str, *, replicas: int = 1, now: Now = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Serve a model (its id, or a type for its newest) without traffic; returns the deployment's ledger row."""
    with at_work(data) as (client, ledger):
        return provider.deployments.deploy_model(
            client,
            ledger,
            find_model(ledger, model)["id"],
            replicas=replicas,
            now=now,
            progress=progress,
            poll_seconds=poll_seconds(client),
        )


def undeploy(
    data: Path, model: str, *, why: str = "undeployed by the user", now: Now = None, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Withdraw a model's route, let it drain, stop and delete what serves it; returns the deployments' ledger rows.

    None run: nothing is done. A model that had traffic is `trained` again. Where the provider cannot be reached, or
    refuses the key, the routes are withdrawn all the same and the guard stops the deployments later; then raises.
    """
    with open_ledger(data) as ledger:
        row = find_model(ledger, model)
        deployments = ledger.find("deployments", model_id=row["id"], state=LIVE_STATES)

        def end(client: Together | None, **options: Any) -> list[dict[str, Any]]:
            ended, troubles = [], []
            for deployment in deployments:
                try:
                    ended.append(
                        provider.shutdown.undeploy_model(
                            client,
                            ledger,
                            deployment["id"],
                            routes_path=Layout(data).routes,
                            why=why,
                            now=now,
                            **options,
                        )
                    )
                except ProviderError as error:  # the others cost money too
                    troubles.append(error)
            if troubles:
                raise troubles[0]
            return ended

        try:
            client = connect()
        except ProviderError as error:
            if not end(None):
                raise
            raise type(error)(
                f"{error}. Its route is withdrawn and its end is written down: the guard stops it once the provider "
                "can be asked"
            ) from error
        finally:
            if row["state"] == "promoted":  # it has no traffic any more, whatever becomes of the rest
                ledger.transition("models", row["id"], "trained", why=why, now=clock_of(now)())
        with client:
            return end(client, progress=progress, poll_seconds=poll_seconds(client))
