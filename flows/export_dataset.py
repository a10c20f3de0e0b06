"""Export a dataset from the decision log."""

from __future__ import annotations

from prefect import flow

from quality.dataset.manifest import Manifest
from quality.settings import ExportSettings
from tasks.model_tasks import export
from tasks.parameters import with_settings
from tasks.runs import DataFolder, DecisionTypeName, Moment, data_folder, utc


@flow(name="export_dataset")
@with_settings
async def export_dataset(
    decision_type: DecisionTypeName, data: DataFolder = None, *, settings: ExportSettings, now: Moment = None
) -> Manifest:
    """Select, label, redact, deduplicate, split by time, validate and write. Every dropped row has its reason in the
    manifest."""
    return export(data_folder(data), decision_type.replace("-", "_"), settings=settings, now=utc(now))
